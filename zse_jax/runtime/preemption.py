"""How a run survives its machine: notices of preemption, full disks, hung peers, wild losses.

A notice is SIGTERM (Kubernetes, Cloud TPU, spot machines, `scancel`), SIGUSR1 (SLURM's
`--signal=USR1@120`), or Google's announcement of maintenance. The run goes on to the next step,
with several processes to one that all of them reach, saves, and leaves with the exit code
`distributed.AGAIN`: the same command goes on from there.
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
"""Where a Google Cloud machine reads its own maintenance events; "NONE" while there is none."""


class Preempted(SystemExit):
    """The run was told to leave, and has saved; a SystemExit with the code `distributed.AGAIN`."""

    def __init__(self, text: str):
        """`text`: for people."""
        super().__init__(distributed.AGAIN)
        self.text = text

    def __str__(self) -> str:
        return self.text


class Preemption:
    """Hears notices of preemption while it is entered, as a context manager.

    Outside of the main thread, where Python hears no signal, it hears none.
    """

    def __init__(self) -> None:
        """Deaf until it is entered."""
        self._noticed = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        numbers = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []
        if not distributed.together():  # else jax hears SIGTERM itself, and tells all processes
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
            raise Preempted("Told to leave after the last step.")
        if distributed.together() and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._noticed:
            self._noticed = True
            os.write(2, b"Told to leave: saving after this step.\n")

    def due(self, step: int) -> bool:
        """Whether to save at `step` and leave: True at the same step in every process.

        To be asked at every step.
        """
        if distributed.together():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed

    def at_once(self) -> None:
        """From here on, when everything is saved, a notice ends the process where it stands."""
        if self._noticed:
            raise Preempted("Told to leave after the last step.")
        self._at_once = True
        if self._before and signal.SIGTERM not in self._before:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)


def _on_google_cloud() -> bool:
    return jax.default_backend() == "tpu" or "GCE_METADATA_HOST" in os.environ


def watch_maintenance(pause: float = 5.0) -> None:
    """Turns Google's announcement of maintenance into a SIGTERM of this process; returns then.

    Args:
      pause: between two questions, in seconds. A machine without such a service is asked no more.
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
