"""One run at a time writes to a workdir, and a lock whose owner is gone does not count."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from tests.zse_jax import tiny
from zse_jax.runtime import locks
from zse_jax.training import loop

NAME = ".lock"


def test_a_second_run_in_a_workdir_is_refused_and_told_who_has_it(tmp_path, monkeypatch):
    tiny.install(monkeypatch.setattr)
    expected = rf"trains in {tmp_path}: process {os.getpid()}\b.* on {socket.gethostname()}, since"
    with (
        locks.held(tmp_path, NAME, "trains in"),
        pytest.raises(BlockingIOError, match=expected),
    ):
        loop.train(tiny.config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_lock_is_free_when_its_owner_ends_however(tmp_path):
    for _ in range(2):
        with locks.held(tmp_path, NAME, "trains in"):
            pass
    program = (
        "import os, sys; from zse_jax.runtime import locks\n"
        f"with locks.held(sys.argv[1], {NAME!r}, 'trains in'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert json.loads((tmp_path / NAME).read_text())["process"] != os.getpid()
    with locks.held(tmp_path, NAME, "trains in"):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def orphaned(folder, **owner):
    """A lock that a child of the named owner still holds."""
    text = json.dumps({**locks._this_process(), "started": 0.0, **owner})
    (folder / NAME).write_text(text)
    stream = (folder / NAME).open("r+b")
    fcntl.flock(stream, fcntl.LOCK_EX)
    return stream


def test_a_lock_whose_owner_is_gone_is_taken_over(tmp_path, caplog):
    with orphaned(tmp_path), locks.held(tmp_path, NAME, "trains in"):
        assert "is gone: the lock is taken over" in caplog.text
        with pytest.raises(BlockingIOError), locks.held(tmp_path, NAME, "trains in"):
            pass


@pytest.mark.parametrize("owner", [{"host": "another"}, {"host": None}])
def test_a_lock_of_another_host_is_respected(tmp_path, owner):
    with (
        orphaned(tmp_path, **owner),
        pytest.raises(BlockingIOError, match=r"If its machine was lost, delete .*lock"),
        locks.held(tmp_path, NAME, "trains in"),
    ):
        pass


def test_a_bucket_is_locked_on_this_machine():
    with locks.held("gs://bucket/run", NAME, "trains in"):
        with pytest.raises(BlockingIOError), locks.held("gs://bucket/run", NAME, "trains in"):
            pass
        with locks.held("gs://bucket/other", NAME, "trains in"):
            pass
