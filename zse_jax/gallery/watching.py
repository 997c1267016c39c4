"""Watches folders and calls a function after their files have changed.

Changes are reported by the operating system (through `watchdog`). Some are not, such as those of
other machines on a network disk, so the function is also called at intervals.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from data_pipelines.files import message

logger = logging.getLogger(__name__)

SETTLED, AT_LATEST = 2.0, 30.0
"""Seconds without a change after which `update` is called, and seconds after the first change after
which it is called although changes continue."""

RESCAN = 600.0
"""Seconds after which `update` is called without a change."""

LOOK = 0.5
"""Seconds between two looks at what has changed."""

Identity = tuple[int, int]


class ChangeTimes:
    """When files changed. Methods can be called from several threads.

    Attributes:
      settled, at_latest: as `SETTLED`, `AT_LATEST`.
    """

    def __init__(self, settled: float = SETTLED, at_latest: float = AT_LATEST):
        """No change yet."""
        self.settled, self.at_latest = settled, at_latest
        self._first = self._last = 0.0
        self._lock = threading.Lock()

    def add(self, now: float) -> None:
        """Notes a change at the time `now`, in seconds of any clock that does not go back."""
        with self._lock:
            self._first, self._last = self._first or now, now

    def take(self, now: float) -> bool:
        """Whether the changes have settled at the time `now`; if so, they are forgotten."""
        with self._lock:
            quiet, waited = now - self._last >= self.settled, now - self._first >= self.at_latest
            if not self._first or not (quiet or waited):
                return False
            self._first = self._last = 0.0
            return True


def watch(
    folders: Sequence[Path],
    update: Callable[[], None],
    stop: threading.Event,
    *,
    ignored: Sequence[Path] = (),
    changes: ChangeTimes | None = None,
    rescan: float = RESCAN,
    look: float = LOOK,
) -> None:
    """Calls `update` after files below the folders have changed, until `stop` is set.

    A folder that disappears, such as that of a disk that is unplugged, is watched again when it is
    back; `update` is called in both cases.

    Args:
      folders: the folders.
      update: is called in this thread.
      stop: ends the function.
      ignored: folders below which changes are ignored.
      changes: how long to wait after a change.
      rescan: as `RESCAN`.
      look: as `LOOK`.
    """
    events = import_module("watchdog.events")
    noted = changes or ChangeTimes()
    kinds = [
        getattr(events, f"{kind}{change}Event")
        for kind in ("File", "Dir")
        for change in ("Created", "Deleted", "Modified", "Moved")
        if (kind, change) != ("Dir", "Modified")  # follows from the other ones
    ]

    class Handler(events.FileSystemEventHandler):  # type: ignore[name-defined]
        def on_any_event(self, event: Any) -> None:
            file = Path(event.src_path)
            if not any(folder == file or folder in file.parents for folder in ignored):
                noted.add(time.monotonic())

    observer = import_module("watchdog.observers").Observer()
    observer.start()
    watched: dict[Path, tuple[Identity, Any]] = {}
    rescanned = time.monotonic()
    try:
        while True:
            for folder in folders:
                if _follow(observer, Handler(), kinds, folder, watched):
                    noted.add(time.monotonic())
            if stop.wait(look):
                return
            now = time.monotonic()
            if noted.take(now) or now - rescanned >= rescan:
                rescanned = now
                update()
    finally:
        observer.stop()
        observer.join()


def _follow(
    observer: Any,
    handler: Any,
    kinds: Sequence[type],
    folder: Path,
    watched: dict[Path, tuple[Identity, Any]],
) -> bool:
    """Watches a folder if it is a new one at its path; returns whether it has come or gone."""
    try:
        status = folder.stat()
        identity = status.st_dev, status.st_ino
    except OSError:
        identity = None
    before, scheduled = watched.get(folder, (None, None))
    if identity == before:
        return False
    if scheduled is not None:
        observer.unschedule(scheduled)
    watched.pop(folder, None)
    if identity is None:
        logger.warning("%s cannot be reached. It is watched again when it is back.", folder)
        return True
    try:
        scheduled = observer.schedule(
            handler, str(folder), recursive=True, event_filter=kinds, follow_symlink=True
        )
    except OSError as error:  # too many folders, or a disk without notifications
        scheduled = None
        logger.warning(
            "Changes in %s are not reported (%s), so they are found only every %.0f minutes.",
            folder,
            message(error),
            RESCAN / 60,
        )
    watched[folder] = identity, scheduled
    return True
