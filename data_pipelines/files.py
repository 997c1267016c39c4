"""A user's files: which of them belong to the system, and one walker for all folders.

Albums, data sets and folders for output all contain files that nobody put there: thumbnails, trash,
resource forks, version control. `is_system` is the one list of their names.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

_SYSTEM = frozenset(
    (
        # Windows
        *("$recycle.bin", "recycler", "system volume information", "found.000"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        # macOS, besides hidden files
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        # Synology, QNAP, Asustor and other network storage
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb"),
        *("@sharebin", "@sharesnap", "~snapshot"),
        # Linux, Python, Picasa
        *("lost+found", "__pycache__", "picasa.ini"),
        # Version control, besides hidden folders
        *("cvs", "_darcs"),
    )
)
"""Names in lower case; names that start with a dot are hidden and belong to the system too."""

_SYSTEM_SUFFIXES = ("@synoeastream", "@synoresource", ".lrdata")
"""The last one is that of Lightroom's previews."""


class Entry(NamedTuple):
    """What `walk` found.

    Attributes:
      path: below the folder that is walked.
      kind: "file"; "other": not a regular file, such as a pipe; "system": a file or folder that is
        not the user's, see `is_system`; "again": a link to a folder that was already walked, or to
        a parent of the first one; "failed": it cannot be inspected, for example a broken link;
        "closed": a folder that cannot be opened.
      status: of a file, links followed.
      reason: why it failed or is closed.
    """

    path: Path
    kind: Literal["file", "other", "system", "again", "failed", "closed"]
    status: os.stat_result | None = None
    reason: str = ""


def is_system(name: str) -> bool:
    """Whether a name is hidden or one of the operating system's, a server's or a trash folder's.

    Includes thumbnails, resource forks and version control.
    """
    lower = name.lower()
    return lower.startswith(".") or lower in _SYSTEM or lower.endswith(_SYSTEM_SUFFIXES)


def contents(folder: Path) -> list[str]:
    """The sorted names of the user's entries of a folder, without those of the system.

    Raises:
      OSError: the folder cannot be opened.
    """
    return sorted(path.name for path in folder.iterdir() if not is_system(path.name))


def nothing_in(folder: Path) -> str:
    """Why a folder has no content, "does not exist", "is a file" or "is empty"; "" if it has some.

    Raises:
      OSError: the folder cannot be opened.
    """
    if not folder.exists():
        return "does not exist"
    if not folder.is_dir():
        return "is a file"
    return "" if contents(folder) else "is empty"


def walk(
    folder: Path,
    visited: set[tuple[int, int]] | None = None,
    *,
    nested: bool = True,
    system: bool = False,
) -> Iterator[Entry]:
    """Everything below a folder, sorted, files before subfolders; links to folders are followed.

    An entry that cannot be opened does not end the walk. The folder itself is always walked, even
    if its name is one of the system's.

    Args:
      folder: the folder.
      visited: device and inode of the folders that were walked before; new ones are added.
      nested: whether to walk subfolders; if not, they are of the kind "other".
      system: whether to treat what belongs to the system as the user's.
    """
    above = set()
    for parent in folder.resolve().parents:
        with contextlib.suppress(OSError):  # then no link below can lead there either
            status = parent.stat()
            above.add((status.st_dev, status.st_ino))
    visited = set() if visited is None else visited
    waiting = [folder]
    while waiting:  # without recursion, for folders of any depth
        here = waiting.pop()
        try:
            status = here.stat()
            identity = status.st_dev, status.st_ino
            if identity in visited or identity in above:  # so that cyclic links end
                yield Entry(here, "again")
                continue
            visited.add(identity)
            entries = sorted(here.iterdir())
        except OSError as error:
            yield Entry(here, "closed", None, f"the folder cannot be opened: {message(error)}")
            continue
        folders = []
        for path in entries:
            if not system and is_system(path.name):
                yield Entry(path, "system")
                continue
            try:
                status = path.stat()
            except OSError as error:
                yield Entry(path, "failed", None, message(error))
                continue
            if stat.S_ISDIR(status.st_mode) and nested:
                folders.append(path)
            else:
                yield Entry(path, "file" if stat.S_ISREG(status.st_mode) else "other", status)
        waiting += reversed(folders)


def message(error: OSError) -> str:
    """An error of the operating system without the path."""
    return error.strerror or str(error)


def is_gone(path: Any) -> bool:
    """Whether a file was deleted. A file in a folder that cannot be opened may still exist.

    Args:
      path: a `pathlib.Path`, or, of an object in a bucket, one with the same methods.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
