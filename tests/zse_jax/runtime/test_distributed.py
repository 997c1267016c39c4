"""Several processes train what one does, and none waits forever for one that has died."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zse_jax
from launch import processes
from tests.conftest import FLAGS
from tests.zse_jax import tiny
from zse_jax.runtime import distributed
from zse_jax.runtime.metrics_file import read_metrics
from zse_jax.training import loop

ROOT = Path(__file__).parents[3]
QUICK_COMPILATION = " ".join(flag for flag in FLAGS if "device_count" not in flag)
QUICK = {"ZSE_START_SECONDS": "8", "ZSE_LOST_SECONDS": "5"}


def launched(*arguments, devices=2, **environment):
    """Trains the tiny system in two processes, started by `launch/processes.py`."""
    program = [sys.executable, "launch/processes.py", "-n=2", f"--devices={devices}"]
    return subprocess.run(
        [*program, "--program=tests.zse_jax.tiny", "--", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILATION} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def values(workdir, prefix):
    """{step: {name: value}} of metrics.jsonl."""
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


def test_flags_or_the_environment_specify_the_process(monkeypatch):
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
def test_invalid_flags_are_an_error_with_the_remedy(arguments, message):
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


JOIN = """
from zse_jax.runtime import cli, distributed
cli.with_message(lambda: distributed.initialize(**distributed.from_arguments([""])))
"""
SHORT = "evaluation.every=0"
OPTIONS = {"log.every": 1, "mesh.fsdp": 2, "model.width": 128}  # wide enough to be split
TOLD = [f"{key}={value}" for key, value in OPTIONS.items()]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The workdir and the output of an uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("two")
    run = launched(workdir, *TOLD)
    assert run.returncode == 0, run.stderr
    return workdir, run.stdout


@pytest.mark.slow
def test_a_checkpoint_of_which_one_part_is_damaged_falls_back(tmp_path, two, tiny_system, capsys):
    workdir = shutil.copytree(two[0], tmp_path / "damaged")
    parts = workdir / "checkpoints/12/model/ocdbt.process_1/d"
    large = max(parts.iterdir(), key=lambda file: file.stat().st_size)
    large.write_bytes(large.read_bytes()[:2000])
    damaged = launched(workdir, *TOLD)
    assert damaged.returncode == distributed.AGAIN
    assert re.search("same command again.* from step 9", damaged.stderr)
    loop.train(tiny.config(**OPTIONS), workdir)
    assert "from step 9" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path, two, tiny_system):
    workdir, output = two
    assert "on 4 CPU devices" in output
    assert output.count("from step 0 (random values) to 12") == 1  # only process 0 prints
    loop.train(tiny.config(**OPTIONS, **{"train.steps": 15}), tmp_path / "one")
    files = {file.name for file in (workdir / "checkpoints/12/data").iterdir()}
    assert {"process_0-of-2.json", "process_1-of-2.json"} <= files
    assert isinstance(zse_jax.load(workdir), tiny.Tiny)

    # One process continues the run of two, with the data that comes next.
    continued = shutil.copytree(workdir, tmp_path / "continued")
    loop.train(tiny.config(**OPTIONS, **{"train.steps": 15}), continued)
    for prefix, tolerance in (("train/loss", 1e-5), ("train/gradient_norm", 1e-5),
                              ("validation/", 1e-6)):  # fmt: skip
        expected, found = (values(path, prefix) for path in (tmp_path / "one", continued))
        assert len(found) >= 15
        for step, wanted in found.items():
            one, other = ([x[key] for key in wanted] for x in (wanted, expected[step]))
            np.testing.assert_allclose(one, other, rtol=tolerance, err_msg=str(step))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "returncode", "message"),
    [
        (["--only=1", "seed=1"], 1, "config.seed is 1 there and 0 elsewhere"),
        ([SHORT, "--only=1", "--die-at=4"], 75, "to resume from the last checkpoint"),
        ([SHORT, "--only=1", "--stop-at=2"], 75, "process 1 on .* sent no heartbeat for 5 s"),
        ([SHORT, "train.stall_seconds=3", "--hang-at=2"], 75, "no step finished for 3 s"),
    ],
)
def test_processes_that_differ_die_or_hang_end_the_others(tmp_path, options, returncode, message):
    run = launched(tmp_path / "run", *options, devices=1, **QUICK)
    assert run.returncode == returncode, run.stderr
    assert re.search(message, run.stderr), run.stderr


@pytest.mark.slow
def test_a_process_without_the_others_reports_what_it_waited_for():
    addresses = f"127.0.0.1:{processes.free_port()}", "127.0.0.1:1"
    runs = []
    for process, address in enumerate(addresses):
        environment = {
            "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(process), **QUICK,
        }  # fmt: skip
        command = [sys.executable, "-c", JOIN]
        runs.append(
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True
            )
        )
    expected = r"the others[,;].* coordinator", "nobody answers|does not respond"
    for process, (run, message) in enumerate(zip(runs, expected, strict=True)):
        error = run.communicate(timeout=300)[1]
        assert run.returncode == distributed.AGAIN
        assert f"process {process} of 2" in error
        assert re.search(message, error), error


@pytest.mark.slow
def test_a_notice_to_one_process_saves_all_and_resumes_to_the_bit(tmp_path, two):
    told = launched(tmp_path, *TOLD, "--term-at=3", "--slow=0.5")
    assert told.returncode == distributed.AGAIN, told.stderr
    again = launched(tmp_path, *TOLD)
    assert again.returncode == 0, again.stderr
    assert re.search(r"from step [4-9]\b", again.stdout)
    one, other = (json.loads((path / "metrics.json").read_text()) for path in (two[0], tmp_path))
    assert one == other
