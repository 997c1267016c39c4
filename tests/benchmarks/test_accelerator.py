"""The command for a machine with a GPU: what it runs, what it keeps, and what it needs."""

import json
import os
import subprocess
import sys
import threading

import pytest

from tests.benchmarks.accelerator import projections
from tests.benchmarks.accelerator_measurements import Bench, with_compilation
from tests.benchmarks.accelerator_plan import Measurement, execute, table
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


class Clock:
    """Seconds that pass only in measurements."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def measurement(self, name, estimated, taken, values=None, error=None):
        def run(left):
            self.now += taken
            if error:
                raise error
            return values or {}

        return Measurement(name, "float32", estimated, run)


def statuses(clock, plan, seconds):
    rows = execute(plan, seconds, clock, clock.now)
    return {row["name"]: row["status"].partition(":")[0] for row in rows}


def test_a_plan_leaves_out_what_does_not_fit_and_runs_what_still_does():
    clock = Clock()
    plan = [clock.measurement(name, cost, cost) for name, cost in (("a", 10), ("b", 50), ("c", 5))]
    assert statuses(clock, plan, 20) == {"a": "measured", "b": "skipped", "c": "measured"}


def test_estimates_follow_the_measured_cost():
    clock = Clock()
    plan = [clock.measurement("slow", 10, 40), clock.measurement("next", 10, 40)]
    assert statuses(clock, plan, 60) == {"slow": "measured", "next": "skipped"}


def test_a_failed_measurement_does_not_stop_the_others():
    clock = Clock()
    plan = [
        clock.measurement("broken", 1, 1, error=ValueError("no such kernel\nmore")),
        clock.measurement("good", 1, 1, {"rate": 4.0, "unit": "images/s", "torch": 2.0}),
    ]
    rows = list(execute(plan, 10, clock, clock.now))
    broken, good = table(rows).splitlines()[1:]
    assert "no such kernel" in broken
    assert "2.00" in good  # the ratio


def failing():
    raise ValueError("no such kernel")


def test_programs_are_compiled_together_and_their_errors_stay_with_them():
    bench = Bench(torch=False)
    bench.build({"good": lambda: 1, "bad": failing, "torch good": lambda: 2}, lambda: 60)
    assert bench.result("good") == 1
    with pytest.raises(ValueError, match="no such kernel"):
        bench.result("bad")
    with pytest.raises(TimeoutError):
        bench.result("torch good")


def test_programs_that_take_too_long_are_left_out():
    bench, event = Bench(torch=False), threading.Event()
    note = bench.build({"slow": event.wait}, lambda: 0)["note"]
    assert note == "1 programs, 1 not in time"
    with pytest.raises(TimeoutError):
        bench.result("slow")
    event.set()


def test_compilation_comes_before_every_few_measurements():
    names = ["a", "b", "rest", "c"]
    items = [
        Measurement(name, "float32", 1, dict, {} if name == "rest" else {name: dict})
        for name in names
    ]
    planned = [item.name for item in with_compilation(Bench(torch=False), items, 2)]
    assert planned == ["compilation", "a", "b", "rest", "compilation", "c"]


def test_projections_add_images_and_pairs():
    rows = [
        {"name": f"{what} ZSE B/16", "dtype": "bfloat16", "rate": rate}
        for what, rate in (("encoding", 32_330.0), ("scoring", 15_229 * 17_101 / 3599))
    ]
    assert next(projections(rows)).endswith("= 1 h")  # Sketchy split 1: 1 s and 3599 s


@pytest.mark.slow
def test_the_accelerator_benchmark_runs_without_tensorflow_tfds_clu_and_grain(tmp_path):
    command = [sys.executable, "-c", PROGRAM, "--tiny", "--no-torch", "--minutes=30"]
    one = " ".join(x for x in FLAGS if "device_count" not in x)  # one device, as such a machine
    done = subprocess.run(
        [*command, "--dtypes=bfloat16", f"--output={tmp_path}", "--only", "copy", "encoding CLIP",
         "training clip_prompt"],
        env=os.environ | {"XLA_FLAGS": one}, cwd=ROOT, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["measured"] * 4  # one is their compilation
    assert all(row["rate"] > 0 for row in rows if row["name"] != "compilation")
