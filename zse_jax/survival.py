"""How a run survives its machine: notices of preemption, full disks, hung peers, wild losses.

A notice is SIGTERM (Kubernetes, Cloud TPU, spot machines, `scancel`), SIGUSR1 (SLURM's
`--signal=USR1@120`), or Google's announcement of maintenance. The run goes on to the next step,
with several processes to one that all of them reach, saves, and leaves with the exit code
`distributed.AGAIN`: the same command goes on from there.
"""

import collections
import contextlib
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from zse_jax import agreement, checkpoint, distributed

HISTORY = 100
"""Steps whose losses say what is usual."""

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


class Watchdog:
    """Ends the process with an error when no step is finished for too long; a context manager.

    A peer that is gone is noticed by `zse_jax.distributed`; this is for one that still gives signs
    of life and does not get on (a dead network disk, a deadlock), on which the others would wait.
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


class SpikeGuard:
    """Tells a loss that has left its usual range: larger than `factor` times its median."""

    def __init__(self, factor: float):
        """`factor`: above 1; 0: every loss is usual."""
        if factor and factor <= 1:
            raise ValueError(
                f"config.train.spike={factor} must be above 1: the run stops at a loss larger than "
                "that many times its median; 0 never stops."
            )
        self._factor = factor
        self._losses: collections.deque[float] = collections.deque(maxlen=HISTORY)

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is one; remembers it otherwise. The first 20 losses never are."""
        enough = self._factor and len(self._losses) >= 20
        if enough and loss > self._factor * statistics.median(self._losses):
            return True
        self._losses.append(loss)
        return False


def writable(workdir: str | os.PathLike) -> epath.Path:
    """The workdir as an absolute path, created if need be; the same for all processes.

    Raises:
      OSError: it cannot be created or written, or other processes do not see it.
    """
    path = checkpoint.absolute(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if "://" not in os.fspath(path):
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        raise OSError(
            f"--workdir={path} cannot be written ({error.strerror or error}): choose a folder you "
            "may write to, or mend its permissions."
        ) from error
    agreement.check_shared(path)
    return path


def check_room(workdir: epath.Path, state: Any, keep_last: int) -> None:
    """Checks that the disk of `workdir` can take a checkpoint beside those that are kept.

    Args:
      workdir: local; of a bucket nothing is asked.
      state: arrays or shapes of what is saved.
      keep_last: checkpoints kept, beside the best one.

    Raises:
      OSError: it cannot, with the numbers.
    """
    if "://" in os.fspath(workdir):
        return
    leaves = jax.tree.leaves(state)
    size = sum(math.prod(x.shape) * getattr(x.dtype, "itemsize", 4) for x in leaves)
    folder = workdir / checkpoint.FOLDER
    there = len([p for p in folder.iterdir() if p.name.isdigit()]) if folder.is_dir() else 0
    wanted = size * max(1, keep_last + 2 - there)
    if (free := shutil.disk_usage(workdir).free) < wanted:
        raise OSError(
            f"The disk of --workdir={workdir} is nearly full: {free / 1e9:.2f} GB are free, and "
            f"the checkpoints to come ({size / 1e9:.2f} GB each, the best, the last {keep_last} "
            f"and one that is being written) need {wanted / 1e9:.2f} GB. Free some space, choose "
            "another --workdir, or keep fewer (--config.checkpoint.keep_last=1)."
        )
