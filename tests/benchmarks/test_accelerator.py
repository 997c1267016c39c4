"""The command for a machine with a GPU needs none of the heavy packages, and works."""

import os
import subprocess
import sys

import pytest

from tests.conftest import FLAGS
from tests.source import ROOT

PROGRAM = """
import sys

BLOCKED = {"tensorflow", "tensorflow_datasets", "clu", "grain"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not on a machine with a GPU")

sys.meta_path.insert(0, Blocker())
from tests.benchmarks import accelerator
from zse_jax.retrievers import clip_prompt, efficient_cnn, zse
accelerator.main(sys.argv[1:])
assert not BLOCKED & set(sys.modules)
"""


@pytest.mark.slow
def test_the_accelerator_benchmark_runs_without_tensorflow_tfds_clu_and_grain():
    command = [sys.executable, "-c", PROGRAM, "--tiny", "--no-torch", "--systems", "clip_prompt"]
    one = " ".join(x for x in FLAGS if "device_count" not in x)  # one device, as such a machine
    done = subprocess.run(
        [*command, "--batches", "8", "--rounds", "1"], env=os.environ | {"XLA_FLAGS": one},
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best: 24 images" in done.stdout
    assert "encoding 4 images" in done.stdout
