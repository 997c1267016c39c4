"""The launchers: valid shell syntax, dry runs, and local processes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.source import ROOT

SHELLS = sorted((ROOT / "launch").glob("*.s*"))
DEMO = "--config=configs/demo.py"


def run(*command, **environment):
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | environment, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip


def processes(*arguments, program):
    """The command of `launch/processes.py` with a small module, and its environment."""
    launcher = [sys.executable, "launch/processes.py", *arguments, f"--program={program.stem}"]
    return [*launcher, "--", "argument"], {"PYTHONPATH": str(program.parent)}


@pytest.mark.parametrize("file", SHELLS, ids=lambda file: file.name)
def test_shell_scripts_parse(file):
    assert run("bash", "-n", file).stderr == ""
    assert os.access(file, os.X_OK)
    if shutil.which("shellcheck"):
        assert run("shellcheck", "-s", "bash", file).stdout == ""


def test_the_readme_lists_every_launcher():
    readme = (ROOT / "launch" / "README.md").read_text()
    names = {file.name for file in (ROOT / "launch").iterdir() if file.is_file()}
    assert {name for name in names if f"| `{name}` |" not in readme} == {"README.md"}


def test_a_dry_run_on_cloud_tpu_prints_all_commands():
    shown = run("launch/tpu_vm.sh", "--dry-run", "resume", DEMO, NAME="mine", SPOT="1").stdout
    deleted, created, packed, copied, installed, started = shown.splitlines()
    assert "tpu-vm delete mine" in deleted
    assert "tpu-vm create mine" in created
    assert "--spot" in created
    assert packed.startswith("tar ")
    assert "scp" in copied
    assert "--worker=all" in installed
    assert DEMO in started
    assert "launch/local.sh" in started  # restarts it after exit code 75
    assert run("launch/tpu_vm.sh").returncode == 2


def test_dry_runs_of_clusters_pass_the_arguments_on():
    xpk = run("launch/xpk.sh", "--dry-run", DEMO, CLUSTER="c", IMAGE="i")
    assert "--cluster c" in xpk.stdout
    assert "--restart-on-exit-codes 75" in xpk.stdout
    assert DEMO in xpk.stdout
    assert (
        "the image that launch/Dockerfile builds" in run("launch/xpk.sh", DEMO, CLUSTER="c").stderr
    )
    slurm = run("launch/slurm.sbatch", DEMO, DRY_RUN="1", SLURM_SUBMIT_DIR=str(ROOT))
    assert slurm.stdout.startswith("srun ")
    assert DEMO in slurm.stdout


def test_the_cloud_job_restarts_on_our_exit_code():
    from zse_jax.runtime.distributed import AGAIN

    job = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [AGAIN]
    assert "zse_jax.main" in job["run"]
    for file in ("local.sh", "slurm.sbatch", "processes.py"):
        assert str(AGAIN) in (ROOT / "launch" / file).read_text()


def test_processes_get_their_numbers_and_only_the_first_prints(tmp_path):
    program = tmp_path / "printing.py"
    program.write_text(
        "import os, sys\n"
        "print(os.environ['JAX_PROCESS_ID'], os.environ['JAX_NUM_PROCESSES'], sys.argv[1],"
        " os.environ['XLA_FLAGS'])\n"
        "print('problem', os.environ['JAX_COORDINATOR_ADDRESS'][:9], file=sys.stderr)\n"
    )
    command, environment = processes("-n3", "--devices=2", program=program)
    done = run(*command, XLA_FLAGS="", **environment)
    assert done.returncode == 0
    assert done.stdout == "0 3 argument --xla_force_host_platform_device_count=2\n"
    problem = "problem 127.0.0.1"
    assert sorted(done.stderr.splitlines()) == [f"[1] {problem}", f"[2] {problem}", problem]


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (75, 75), (-9, 75)])
def test_a_failing_process_ends_the_others_and_sets_the_exit_code(tmp_path, code, expected):
    program = tmp_path / "failing.py"
    program.write_text(
        "import os, sys, time\n"
        "if os.environ['JAX_PROCESS_ID'] == '1':\n"
        f"    os.kill(os.getpid(), 9) if {code} < 0 else sys.exit({code})\n"
        "time.sleep(600)\n"
    )
    command, environment = processes("-n2", "--grace=1", program=program)
    assert run(*command, **environment).returncode == expected


def test_a_run_is_restarted_after_exit_code_75(tmp_path):
    program = tmp_path / "again.py"
    program.write_text(
        "import pathlib, sys\n"
        f"file = pathlib.Path({str(tmp_path / 'tries')!r})\n"
        "tries = int(file.read_text()) + 1 if file.exists() else 1\n"
        "file.write_text(str(tries))\n"
        "sys.exit(0 if tries == 3 else 75)\n"
    )
    command, environment = processes("-n1", "--restarts=5", program=program)
    assert run(*command, **environment).returncode == 0
    assert (tmp_path / "tries").read_text() == "3"


def test_signals_are_forwarded_and_disable_restarts(tmp_path):
    program = tmp_path / "handling.py"
    program.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    command, environment = processes("-n1", "--restarts=5", program=program)
    launcher = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout.readline() == "ready\n"
    time.sleep(0.2)
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(timeout=60) == 75
