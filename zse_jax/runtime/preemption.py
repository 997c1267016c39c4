"""Handles notices to stop: save, then exit with a code that says how to go on.

A notice is SIGTERM (Kubernetes, Cloud TPU, spot machines, `scancel`), SIGUSR1 (SLURM's
`--signal=USR1@120`), a maintenance event announced by Google Cloud, or Ctrl-C (SIGINT). The run
finishes its step (with several processes: all reach the same step), saves, and exits with
`distributed.AGAIN`, or with `INTERRUPTED` after Ctrl-C. The same command then resumes it. A second
Ctrl-C ends the process at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import jax
from jax.experimental import multihost_utils

from zse_jax.runtime import distributed

METADATA = "http://{host}/computeMetadata/v1/instance/maintenance-event"
"""Where a Google Cloud machine reads its own maintenance events; "NONE" if there are none."""


INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""


class Preempted(SystemExit):
    """The run got a notice to stop and has saved; a SystemExit with the exit code."""

    def __init__(self, text: str, code: int = distributed.AGAIN):
        """`text`: the message for the user."""
        super().__init__(code)
        self.text = text

    def __str__(self) -> str:
        return self.text


class _Stop(BaseException):
    """Leaves `Preemption.breakable`."""


class Preemption:
    """Listens for notices to stop inside its `with` block.

    Python delivers signals to the main thread only. In other threads, this class does nothing.

    Attributes:
      noticed: whether this process got a notice.
      broken: whether a notice ended a `breakable` block.
    """

    def __init__(self) -> None:
        """Installs no handler yet: `with` does."""
        self.noticed = self._interrupted = False
        self._at_once = self._breaks = False
        self.broken = False
        self._calls = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        numbers = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background jobs do
            numbers.append(signal.SIGINT)
        if not distributed.together():  # otherwise jax handles SIGTERM and informs all processes
            numbers.append(signal.SIGTERM)
        with contextlib.suppress(ValueError):  # not the main thread
            for number in numbers:
                self._before[number] = signal.signal(number, self._notice)
            if signal.SIGUSR1 in self._before:
                _shield_resource_tracker()
            if self._before and _on_google_cloud():
                threading.Thread(target=watch_maintenance, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            self._interrupted = True
            # The system's own action ends the process even while it waits for a device or a disk.
            notebook = "ipykernel" in sys.modules
            signal.signal(number, signal.default_int_handler if notebook else signal.SIG_DFL)
        if self._at_once:
            raise self.left(" after the last step, which is saved")
        first, self.noticed = not self.noticed, True
        if first:
            again = b" Press Ctrl-C again to end at once." if self._interrupted else b""
            what = b"Interrupted" if self._interrupted else b"Preempted"
            os.write(2, what + b": saving after this step." + again + b"\n")
        if distributed.together() and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
        if self._breaks:
            self._breaks = False
            raise _Stop

    def due(self) -> bool:
        """Whether to save and exit now: True at the same call in every process.

        To be called at every step, by all processes. With several, they agree on a call soon after
        one of them gets a notice.
        """
        self._calls += 1
        if distributed.together():
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self.noticed

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """A notice ends the block at once, because an evaluation may outlast the grace period.

        With several processes the block is finished: they compute it together.
        """
        try:
            try:
                self._breaks = not distributed.together()
                if self._breaks and self.noticed:
                    raise _Stop
                yield
            finally:
                self._breaks = False
        except _Stop:
            self.broken = True

    def left(self, when: str) -> Preempted:
        """The exception with which the run ends, and its message."""
        what = "Interrupted" if self._interrupted else "Preempted"
        code = INTERRUPTED if self._interrupted else distributed.AGAIN
        return Preempted(f"{what}{when}. Run the same command to resume.", code)

    def at_once(self) -> None:
        """Call when everything is saved: from now on a notice ends the process immediately."""
        self._at_once = True
        if self.noticed:
            raise self.left(" after the last step, which is saved")
        if self._before and signal.SIGTERM not in self._before:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)


def _shield_resource_tracker() -> None:
    """Starts Python's process that cleans shared memory up, unless it runs, without SIGUSR1.

    SLURM sends the signal to all processes of a program, and this one would die of it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # which a new process inherits
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def _on_google_cloud() -> bool:
    return jax.default_backend() == "tpu" or "GCE_METADATA_HOST" in os.environ


def watch_maintenance(pause: float = 5.0) -> None:
    """Polls Google's metadata server; sends this process SIGTERM before maintenance and returns.

    Args:
      pause: seconds between two requests. Ten failed requests in a row end the polling.
    """
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        METADATA.format(host=host), headers={"Metadata-Flavor": "Google"}
    )
    misses = 0
    while misses < 10:
        try:
            with urllib.request.urlopen(request, timeout=pause) as answer:
                event = answer.read().decode().strip()
            misses = 0
        except OSError:
            misses += 1
            event = "NONE"
        if event not in ("", "NONE"):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(pause)
