"""Runs that are preempted, killed, damaged or diverge lose nothing and report it."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import zse_jax
from tests import survival as killing
from tests.zse_jax import tiny
from zse_jax.checkpoints import reading
from zse_jax.runtime import distributed, preemption
from zse_jax.runtime import watchdog as watchdog_
from zse_jax.training import divergence, loop, profiling

SELECT = "relation/exact/mAP@all"


@pytest.fixture(autouse=True)
def tiny_system(monkeypatch):
    tiny.install(monkeypatch.setattr)


def truncate(folder):
    """Empties the files of the arrays below `folder`, as a lost disk cache does."""
    files = [file for file in folder.rglob("*") if file.is_file() and "d" in file.parts]
    assert files
    for file in files:
        file.write_bytes(b"")


def check_resumed(workdir, reference):
    assert killing.last_saved(workdir) == 5
    loop.train(tiny.config(), workdir)
    # The step at which the run was interrupted has one line more.
    assert killing.different(workdir, reference) == ["metrics.jsonl"]


@pytest.mark.slow
def test_sigterm_saves_at_the_next_step_and_exits_with_code_75(tmp_path, reference):
    program = [sys.executable, "-m", "tests.zse_jax.tiny", str(tmp_path), "--term-at=4"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == distributed.AGAIN == 75, done.stderr
    assert re.search(r"step 5\b", done.stdout)
    check_resumed(tmp_path, reference)


def stopped(workdir, number, at, part="note"):
    """Trains until signal `number` arrives: in `note` of a step, or in its evaluation."""
    original = getattr(loop.Run, part)

    def signalled(run, step, *args, **options):
        if step == at:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert part == "note", "the evaluation went on"
        return original(run, step, *args, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(preemption.Preempted) as left:
        patch.setattr(loop.Run, part, signalled)
        loop.train(tiny.config(), workdir)
    return left.value


@pytest.mark.slow
def test_sigusr1_does_the_same(tmp_path, reference):
    assert stopped(tmp_path, signal.SIGUSR1, 4).code == distributed.AGAIN
    check_resumed(tmp_path, reference)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(tmp_path, reference):
    end = stopped(tmp_path, signal.SIGINT, 4)
    assert end.code == preemption.INTERRUPTED == 130
    assert str(end) == "Interrupted: saved step 5. Run the same command to resume."
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    check_resumed(tmp_path, reference)


def test_a_second_ctrl_c_ends_at_once():
    with preemption.Preemption() as notice:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert notice.due()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_worker_processes_leave_ctrl_c_to_their_parent_and_end_with_it(tmp_path):
    program = [sys.executable, "-m", "tests.zse_jax.tiny", str(tmp_path), "--slow=0.3"]
    process = subprocess.Popen(
        [*program, "data.workers=1", "train.steps=500", "evaluation.every=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    for line in process.stdout:
        if line.startswith("Interrupted"):
            break
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]  # ends when no worker holds the pipe any more
    assert process.returncode in (-signal.SIGINT, preemption.INTERRUPTED)
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(("part", "at"), [("note", 5), ("evaluate", 6)])
def test_a_due_evaluation_does_not_delay_the_save(tmp_path, reference, part, at):
    """Neither one that would begin nor one that has begun; it is made up for after the restart."""
    stopped(tmp_path, signal.SIGTERM, at, part)
    assert killing.last_saved(tmp_path) == 6
    assert not (tmp_path / "checkpoints/6/metrics").exists()
    loop.train(tiny.config(), tmp_path)
    assert killing.different(tmp_path, reference) == []


def test_before_the_first_step_nothing_is_claimed_to_be_saved(tmp_path):
    end = stopped(tmp_path, signal.SIGTERM, 0, "evaluate")
    assert str(end).startswith("Preempted before the first step; nothing was saved.")
    assert end.code == distributed.AGAIN
    assert killing.last_saved(tmp_path) == -1


@pytest.mark.slow
def test_a_notice_that_ends_the_loading_too_still_saves(tmp_path, monkeypatch):
    def killed(health, batches):
        if health.cost is not None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("a worker process was terminated")
        return next(batches)

    with monkeypatch.context() as patch, pytest.raises(preemption.Preempted, match="saved step 1"):
        patch.setattr(profiling.Health, "fetch", killed)
        loop.train(tiny.config(), tmp_path)
    assert killing.last_saved(tmp_path) == 1


def test_a_notice_after_the_last_step_ends_at_once():
    with preemption.Preemption() as notice:
        assert not notice.due()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        assert notice.due()
        with pytest.raises(preemption.Preempted) as left:
            notice.at_once()
        assert left.value.code == distributed.AGAIN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_equal_to_the_byte(tmp_path, reference):
    command = ["tests.zse_jax.tiny", str(tmp_path), "--slow=0.3"]
    moments = np.random.default_rng(0).uniform(0, 2, 2)
    hit = list(killing.kills(command, tmp_path, moments, begun=True))
    assert hit
    assert max(step for _, step, _ in hit) >= 0
    loop.train(tiny.config(), tmp_path)
    assert killing.different(tmp_path, reference) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "config", "data"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path, reference, part, caplog
):
    workdir = shutil.copytree(reference, tmp_path / "run")
    newest = workdir / "checkpoints" / "12"
    if part == "model":
        truncate(newest / "model")
    else:
        for file in (newest / part).rglob("*"):
            file.write_bytes(b"")
    results = loop.train(tiny.config(), workdir)
    assert results == json.loads((reference / "metrics.json").read_text())
    assert f"{workdir}/checkpoints/12 cannot be read" in caplog.text
    assert "resuming from step 9" in caplog.text
    assert (workdir / "damaged-checkpoints" / "12" / "model").is_dir()
    assert killing.different(workdir, reference) == []


@pytest.mark.slow
def test_without_a_readable_checkpoint_a_run_does_not_restart_silently(tmp_path, reference):
    workdir = shutil.copytree(reference, tmp_path / "run")
    for step in (workdir / "checkpoints").iterdir():
        truncate(step / "model")
    with pytest.raises(reading.DamagedError, match=r"None of the checkpoints in .* be read"):
        loop.train(tiny.config(), workdir)
    loop.train(tiny.config(**{"train.steps": 2}), workdir)
    assert killing.last_saved(workdir) == 2


def test_load_reads_the_next_best_only_if_it_may(tmp_path, reference, caplog):
    workdir = shutil.copytree(reference, tmp_path / "run")
    best = reading.step_of(workdir)
    truncate(workdir / "checkpoints" / str(best) / "model")
    with pytest.raises(reading.DamagedError, match=f"checkpoints/{best} cannot.*next best step is"):
        zse_jax.load(workdir)
    assert not caplog.text
    assert isinstance(zse_jax.load(workdir, allow_fallback=True), tiny.Tiny)
    assert f"checkpoints/{best} cannot be read" in caplog.text
    assert "Reading step" in caplog.text
    with pytest.raises(reading.DamagedError, match="cannot be read"):
        zse_jax.load(workdir / "checkpoints" / str(best))  # that one was asked for


def test_a_loss_far_above_its_median_is_a_spike():
    guard = divergence.SpikeGuard(3.0)
    assert not any(guard.is_spike(loss) for loss in [9.0, *np.linspace(2, 1, 40)])
    assert guard.is_spike(6.0)
    assert not guard.is_spike(2.0)
    assert not divergence.SpikeGuard(0.0).is_spike(1e9)
    with pytest.raises(ValueError, match="config.train.spike=0.5 must be above 1"):
        divergence.SpikeGuard(0.5)


@pytest.mark.slow
def test_a_spike_stops_the_run_and_names_the_last_good_step(tmp_path, monkeypatch):
    step = loop.Run.note

    def wild(run, step_, losses, **options):
        losses = {**losses, "loss": losses["loss"] * (50 if step_ == 30 else 1)}
        step(run, step_, losses, **options)

    monkeypatch.setattr(loop.Run, "note", wild)
    changes = {"train.steps": 40, "train.spike": 10.0, "evaluation.every": 0, "log.every": 5}
    with pytest.raises(FloatingPointError, match=r"diverged at step 31: .*checkpoints/30"):
        loop.train(tiny.config(**changes), tmp_path)


def test_a_nearly_full_disk_is_an_error_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"nearly full: 0.00 GB are free.*keep_last=1"):
        loop.train(tiny.config(), tmp_path)


def test_announced_maintenance_becomes_a_notice(monkeypatch):
    answers = iter(["NONE", "TERMINATE_ON_HOST_MAINTENANCE"])

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            assert self.path.endswith("/instance/maintenance-event")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(next(answers).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        heard = []
        before = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
        try:
            preemption.watch_maintenance(pause=0.1)
        finally:
            signal.signal(signal.SIGTERM, before)
            server.shutdown()
    assert heard == [True]


def test_a_watchdog_ignores_pauses(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with watchdog_.Watchdog(0.2) as watchdog:
        watchdog.beat(1)
        with watchdog.paused():
            time.sleep(0.5)
        assert not ended
        time.sleep(0.6)
    assert set(ended) == {distributed.AGAIN}
    assert jax.process_count() == 1
