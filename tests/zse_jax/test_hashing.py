"""Binary codes of a trained system, from its checkpoint to the table."""

import json

import numpy as np
import pytest
from absl import flags

from tests.zse_jax import tiny
from zse_jax import hashing
from zse_jax.checkpoints import reading
from zse_jax.evaluation import domain_means
from zse_jax.retrieval import codes
from zse_jax.runtime import sharding
from zse_jax.training.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch.setattr)
        settings = tiny.config(**{"model.width": 64, "train.steps": 2, "evaluation.every": 2})
        train(settings, folder)
    return folder


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    tiny.install(monkeypatch.setattr)


def run(*arguments):
    options = flags.FlagValues()
    argv = ["hashing", *map(str, arguments)]
    hashing.define_flags(options, argv)
    options(argv)
    hashing.main(options)


def test_writes_the_projection_and_the_metrics_of_both_rankings(workdir, capsys):
    output = workdir / "codes.json"
    run(f"--checkpoint={workdir}", "--bits=32", f"--output={output}")
    assert codes.load(workdir / hashing.FILE).matrix.shape == (64, 32)
    written = json.loads(output.read_text())
    assert written["embedding"].keys() == written["codes"].keys()
    assert {"exact/mAP@all", "voc/P@100"} <= written["codes"].keys()
    assert "32-bit codes" in capsys.readouterr().out


def test_the_projection_is_learned_on_seen_images_of_both_modalities(workdir):
    config = reading.read_config(workdir)
    model = reading.load(workdir)
    parts = domain_means.training_embeddings(model, model.embed, config, sharding.make_mesh(), 20)
    found = np.concatenate(parts)
    assert found.shape == (36, 64)  # every fourth of 72 sketches and 72 photos
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-3)


def test_a_missing_checkpoint_is_an_error():
    with pytest.raises(ValueError, match="--checkpoint is missing"):
        run()


def test_bits_that_do_not_fit_are_an_error(workdir):
    with pytest.raises(ValueError, match="33 bits cannot be learned"):
        run(f"--checkpoint={workdir}", "--bits=33")
