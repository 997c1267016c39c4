"""Ends a run in which no step finishes for too long."""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterator

from zse_jax.runtime import distributed


class Watchdog:
    """Ends the process with an error when no step is finished for too long; a context manager.

    A peer that is gone is noticed by `zse_jax.runtime.distributed`; this is for one that still
    gives signs of life and does not get on (a dead network disk, a deadlock), on which the others
    would wait.
    """

    def __init__(self, seconds: float):
        """`seconds`: without a beat that are too long; 0: never."""
        self._seconds = seconds
        self._step: int | None = None
        self._last = math.inf
        self._done = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="zse_jax watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        distributed.progress(None)

    def beat(self, step: int) -> None:
        """The run has come to `step`."""
        self._step, self._last = step, time.monotonic()
        distributed.progress(step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what may take long: an evaluation, a save, a compilation."""
        self._last = math.inf
        yield
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                others = f" ({distributed.steps_of_all()})" if distributed.together() else ""
                message = (
                    f"no step has been finished for {self._seconds:g} s after step {self._step}"
                    f"{others}: a process, a disk or a device hangs; where processes are at "
                    "different steps, the one that is behind. The same command goes on from the "
                    "last checkpoint. A step that takes longer needs another "
                    "--config.train.stall_seconds (0: wait for ever)."
                )
                print(f"error: {message}", file=sys.stderr, flush=True)
                distributed.leave(distributed.AGAIN, message)
                os._exit(distributed.AGAIN)
