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
    """Ends the process with an error when no step finishes for too long; a context manager.

    `zse_jax.runtime.distributed` detects a process that is gone. This class detects one that is
    alive but makes no progress (a dead network disk, a deadlock), for which the others would wait.
    """

    def __init__(self, seconds: float):
        """`seconds`: the longest time between two steps; 0 disables the watchdog."""
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
        """Records that the run has reached `step`."""
        self._step, self._last = step, time.monotonic()
        distributed.progress(step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Suspends the time limit, for an evaluation, a save or a compilation."""
        self._last = math.inf
        yield
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                others = f" ({distributed.steps_of_all()})" if distributed.together() else ""
                message = (
                    f"no step finished for {self._seconds:g} s after step {self._step}{others}: a "
                    "process, a disk or a device hangs; if the processes are at different steps, "
                    "it is the one with the lowest step. Run the same command to resume from the "
                    "last checkpoint. If a step takes longer, increase "
                    "--config.train.stall_seconds (0 waits forever)."
                )
                print(f"error: {message}", file=sys.stderr, flush=True)
                distributed.leave(distributed.AGAIN, message)
                os._exit(distributed.AGAIN)
