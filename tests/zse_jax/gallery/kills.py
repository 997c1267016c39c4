"""Kills additions: the index must open, verify, and continue.

    python -m tests.zse_jax.gallery.kills CHECKPOINT FOLDER [KILLS]

FOLDER/album contains photos; the index is written to FOLDER/killed. Each of KILLS (20) additions
runs in a separate process, which gets SIGKILL at a random time between its first and last commits.
"""

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

COMMIT, PAUSE = 4, 0.02
"""Photos per commit, and seconds of sleep before and after each."""


def child(checkpoint: str, folder: Path, seconds: float) -> None:
    """Adds the album, and kills this process `seconds` after its first commit begins; 0: never."""
    from zse_jax.gallery import encoder, index, ingest
    from zse_jax.gallery.tables import Tables

    ingest.COMMIT_PHOTOS = COMMIT
    encoder.BATCH = COMMIT
    put = Tables.put
    begun = threading.Event()

    def slow(self: Tables, *args: object) -> None:
        if seconds and not begun.is_set():
            begun.set()
            kill = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
        time.sleep(PAUSE)
        put(self, *args)
        time.sleep(PAUSE)

    Tables.put = slow  # type: ignore[method-assign]
    index.build(photos=[folder / "album"], index=folder / "killed", checkpoint=checkpoint)


def run(checkpoint: str, folder: Path, kills: int) -> int:
    """Kills additions, and verifies the index after each; returns how many were killed."""
    from zse_jax.gallery import index

    # Children are forked from a server that has imported jax but not started it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zse_jax.gallery.index"])
    total = len(list((folder / "album").iterdir()))
    commits = total / COMMIT / kills
    draw, there, killed = random.Random(0), 0, 0
    for number in range(kills + 1):
        seconds = draw.uniform(0.001, commits * 4 * PAUSE) if number < kills else 0
        process = context.Process(target=child, args=(checkpoint, folder, seconds))
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        found = index.verify(folder / "killed")
        assert not (found.twice or found.damaged or found.gone or found.refused), found
        assert found.photos >= there, f"{there - found.photos} photos were lost"
        there = found.photos
        print(f"kill {number}: exit {process.exitcode}, {there} of {total} photos", flush=True)
    assert there == total
    print(f"{killed} of {kills} additions killed: {there} photos, each once, none lost")
    return killed


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 20)
