"""Several processes: they train what one does, and none waits for another that is gone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zse_jax
from launch import processes
from tests.zse_jax import tiny
from zse_jax.runtime import distributed
from zse_jax.runtime.metrics_file import read_metrics
from zse_jax.training import loop

ROOT = Path(__file__).parents[3]
QUICK = {"ZSE_START_SECONDS": "8", "ZSE_LOST_SECONDS": "5"}


def launched(*arguments, n=2, devices=4, **environment):
    """What `launch/processes.py` says and returns, of the tiny system."""
    program = [sys.executable, "launch/processes.py", f"-n={n}", f"--devices={devices}"]
    return subprocess.run(
        [*program, "--program=tests.zse_jax.tiny", "--", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def values(workdir, prefix):
    """{step: {name: value}} of what metrics.jsonl says."""
    found = {}
    for line in read_metrics(Path(workdir) / "metrics.jsonl"):
        chosen = {key: value for key, value in line.items() if key.startswith(prefix)}
        found.setdefault(line["step"], {}).update(chosen)
    return found


@pytest.fixture
def tiny_system(monkeypatch):
    tiny.install(monkeypatch.setattr)


def test_one_process_needs_no_flag():
    assert distributed.from_arguments(["main", "--config=configs/demo.py"]) == {}
    distributed.initialize()
    assert not distributed.together()
    assert distributed.exchange("value") == ["value"]


def test_flags_or_the_environment_say_which_process_this_is(monkeypatch):
    expected = {"coordinator_address": "node0:81", "process_id": 1, "num_processes": 2}
    flags = ["main", "--coordinator_address=node0:81", "--process_id=1", "--num_processes=2"]
    assert distributed.from_arguments([*flags, "--config.train.steps=3"]) == expected
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0:81")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert distributed.from_arguments(["main", "--process_id=1"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process_id=1"], "needs --coordinator_address and --num_processes as well"),
        (
            ["--coordinator_address=a:1", "--process_id=2", "--num_processes=2"],
            "--process_id=2 does not fit --num_processes=2: choose 0 to 1",
        ),
        (
            ["--coordinator_address=a", "--process_id=0", "--num_processes=2"],
            "lacks a port: write HOST:PORT",
        ),
    ],
)
def test_flags_that_do_not_fit_say_what_would(arguments, message):
    with pytest.raises(ValueError, match=message):
        distributed.from_arguments(["main", *arguments])


def test_slurm_with_several_tasks_is_detected(monkeypatch):
    found = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **_: found.update(args=args))
    monkeypatch.setattr(distributed._monitor, "start", lambda: None)
    environment = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NTASKS": "1",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert not found  # one task is one process
    monkeypatch.setenv("SLURM_NTASKS", "2")
    distributed.initialize()
    assert found["args"] == (None, None, None)  # jax fills them in


@pytest.mark.slow
def test_a_checkpoint_of_which_one_part_is_damaged_falls_back(tmp_path):
    options = ["model.width=128", "mesh.fsdp=2", "train.steps=9"]  # wide enough to be split
    assert launched(tmp_path, *options, devices=1).returncode == 0
    parts = tmp_path / "checkpoints/9/model/ocdbt.process_1/d"
    large = max(parts.iterdir(), key=lambda file: file.stat().st_size)
    large.write_bytes(large.read_bytes()[:2000])
    damaged = launched(tmp_path, *options, devices=1)
    assert damaged.returncode == distributed.AGAIN
    assert "Run the same command again: it resumes from step 6" in damaged.stderr
    again = launched(tmp_path, *options, devices=1)
    assert again.returncode == 0, again.stderr
    assert "resuming from step 6" in again.stdout


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path, tiny_system):
    options = {"log.every": 1, "evaluation.every": 20, "checkpoint.every": 20}
    told = [f"{key}={value}" for key, value in options.items()]
    for name, n, devices in (("two", 2, 4), ("one", 1, 1)):
        run = launched(tmp_path / name, "train.steps=20", *told, n=n, devices=devices)
        assert run.returncode == 0, run.stderr
        assert f"on {n * devices} CPU device" in run.stdout
        assert run.stdout.count("from step 0 to 20") == 1  # process 0 alone speaks
    loop.train(tiny.config(**options, **{"train.steps": 24}), tmp_path / "eight")
    files = {file.name for file in (tmp_path / "two/checkpoints/20/data").iterdir()}
    assert {"process_0-of-2.json", "process_1-of-2.json"} <= files
    assert isinstance(zse_jax.load(tmp_path / "two"), tiny.Tiny)

    # The run of two processes goes on as one, with the data that comes next.
    loop.train(tiny.config(**options, **{"train.steps": 24}), tmp_path / "two")
    for prefix, tolerance, names in (
        ("train/loss", 1e-5, ("two", "one")),
        ("train/gradient_norm", 1e-5, ("two", "one")),
        ("validation/", 1e-6, ("two", "one")),
    ):
        expected = values(tmp_path / "eight", prefix)
        for name in names:
            found = values(tmp_path / name, prefix)
            assert len(found) >= 20
            for step, wanted in found.items():
                one, other = ([x[key] for key in wanted] for x in (wanted, expected[step]))
                np.testing.assert_allclose(one, other, rtol=tolerance, err_msg=f"{name} {step}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "returncode", "message"),
    [
        (["--only=1", "seed=1"], 1, "config.seed is 1 there and 0 elsewhere"),
        (["--only=1", "--die-at=4"], 75, "to resume from the last checkpoint"),
        (["--only=1", "--stop-at=4"], 75, "process 1 on .* sent no heartbeat for 5 s"),
        (["train.stall_seconds=3", "--hang-at=4"], 75, "no step finished for 3 s"),
    ],
)
def test_processes_that_differ_die_or_hang_end_the_others(tmp_path, options, returncode, message):
    run = launched(tmp_path / "run", *options, devices=1, **QUICK)
    assert run.returncode == returncode, run.stderr
    assert re.search(message, run.stderr), run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_stays_alone_says_for_whom_it_waited(tmp_path, process):
    environment = {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process), **QUICK,
    }  # fmt: skip
    if process == 0:
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{processes.free_port()}"
    run = subprocess.run(
        [sys.executable, "-m", "tests.zse_jax.tiny", str(tmp_path)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == distributed.AGAIN
    expected = ["the others; the coordinator responds", "which does not respond"][process]
    assert f"process {process} of 2" in run.stderr
    assert expected in run.stderr


@pytest.mark.slow
def test_a_notice_to_one_process_saves_all_and_goes_on_to_the_bit(tmp_path):
    steps = ["train.steps=30", "evaluation.every=30", "checkpoint.every=30"]
    assert launched(tmp_path / "whole", *steps, devices=1).returncode == 0
    told = launched(tmp_path / "told", *steps, "--term-at=4", "--slow=0.3", devices=1)
    assert told.returncode == distributed.AGAIN, told.stderr
    assert "Run the same command to resume." in told.stdout
    again = launched(tmp_path / "told", *steps, devices=1)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stdout
    one, other = (
        json.loads((tmp_path / x / "metrics.json").read_text()) for x in ("whole", "told")
    )
    assert one == other
