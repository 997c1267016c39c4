"""Handles notices of preemption: save, then exit with a code that asks for a restart.

A notice is SIGTERM (Kubernetes, Cloud TPU, spot machines, `scancel`), SIGUSR1 (SLURM's
`--signal=USR1@120`), or a maintenance event announced by Google Cloud. The run finishes its step
(with several processes: all reach the same step), saves, and exits with `distributed.AGAIN`. The
same command then resumes it.
"""

import contextlib
import os
import signal
import threading
import time
import urllib.request
from typing import Any

import jax
from jax.experimental import multihost_utils

from zse_jax.runtime import distributed

METADATA = "http://{host}/computeMetadata/v1/instance/maintenance-event"
"""Where a Google Cloud machine reads its own maintenance events; "NONE" if there are none."""


class Preempted(SystemExit):
    """The run was preempted and has saved; a SystemExit with the code `distributed.AGAIN`."""

    def __init__(self, text: str):
        """`text`: the message for the user."""
        super().__init__(distributed.AGAIN)
        self.text = text

    def __str__(self) -> str:
        return self.text


class Preemption:
    """Listens for notices of preemption inside its `with` block.

    Python delivers signals to the main thread only. In other threads, this class does nothing.
    """

    def __init__(self) -> None:
        """Installs no handler yet: `with` does."""
        self._noticed = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        numbers = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []
        if not distributed.together():  # otherwise jax handles SIGTERM and informs all processes
            numbers.append(signal.SIGTERM)
        with contextlib.suppress(ValueError):  # not the main thread
            for number in numbers:
                self._before[number] = signal.signal(number, self._notice)
            if self._before and _on_google_cloud():
                threading.Thread(target=watch_maintenance, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: Any) -> None:
        if self._at_once:
            raise Preempted("Preempted after the last step.")
        if distributed.together() and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._noticed:
            self._noticed = True
            os.write(2, b"Preempted: saving after this step.\n")

    def due(self, step: int) -> bool:
        """Whether to save at `step` and exit: True at the same step in every process.

        Must be called at every step.
        """
        if distributed.together():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed

    def at_once(self) -> None:
        """Call when everything is saved: from now on a notice ends the process immediately."""
        if self._noticed:
            raise Preempted("Preempted after the last step.")
        self._at_once = True
        if self._before and signal.SIGTERM not in self._before:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)


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
