"""Paths that users give, and files that are written in one step.

The lowest module of all: every folder may import it, and it imports nothing of the project.
"""

import contextlib
import json
import logging
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

logger = logging.getLogger(__name__)

BUCKETS = ("gs",)
"""The schemes of the buckets that are read and written."""

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>/+)(?P<rest>.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")


def located(path: str | os.PathLike, buckets: Sequence[str] = BUCKETS) -> epath.Path:
    """The place that a user's `path` names: an absolute local path, or one in a bucket.

    A leading `~` and environment variables are replaced, except in the name of a file that exists
    as it is written. `file:///folder` is a local path.

    Args:
      path: of the user.
      buckets: the schemes that are accepted besides local paths.

    Raises:
      ValueError: the path is empty, contains an environment variable that is not set or the home of
        an unknown user, or is neither local nor in one of `buckets`.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("A path is empty: give the name of a file or folder.")
    if match := _SCHEME.fullmatch(text):
        scheme, slashes, rest = match["scheme"].lower(), match["slashes"], match["rest"]
        if scheme == "file":
            return located("/" + rest)
        if scheme in buckets and len(slashes) == 2 and rest:
            return epath.Path(f"{scheme}://{_expanded(rest, text)}")
        if len(slashes) != 2 and len(scheme) > 1 and not os.path.lexists(f"{match['scheme']}:"):
            raise ValueError(f"{text} is not a valid path: write {scheme}://BUCKET/FOLDER.")
        if len(slashes) > 1:
            known = ", ".join(f"{name}://" for name in buckets)
            raise ValueError(
                f"{text}: this path cannot start with {scheme}://. Give a local path (a bucket can "
                f"be mounted) or one that starts with {known}."
            )
    if not os.path.lexists(text):
        text = _expanded(text, text)
        home = os.path.expanduser(text)  # noqa: PTH111 - Path's raises for an unknown user
        if home == text and text.startswith("~"):
            raise ValueError(
                f"{text}: the home folder is not known. Set HOME, or give the whole path."
            )
        text = home
    return epath.Path(Path(text).absolute())


def _expanded(text: str, whole: str) -> str:
    """`text` with the values of its environment variables."""

    def value(match: re.Match) -> str:
        name = match["braced"] or match["plain"]
        if name not in os.environ:
            raise ValueError(f"{whole}: the environment variable {name} is not set.")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def local(path: str | os.PathLike, what: str) -> Path:
    """As `located`, for what must be on a local disk.

    Args:
      path: of the user.
      what: how the user named it, such as "--scratch" or "config.data.data_dir".

    Raises:
      ValueError: the path is in a bucket; and as `located`.
    """
    place = located(path)
    if in_bucket(place):
        raise ValueError(
            f"{os.fspath(path)}: {what} must be on a local disk, not in a bucket. Copy it, or "
            "mount the bucket and give the path of the mount."
        )
    return Path(place)


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path of `located` is in a bucket."""
    return "://" in os.fspath(path)


def replace(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a small file in one step, and creates its folder.

    A kill, a full disk or a power failure leaves the old file or the new one, and no reader finds
    a part of it. Text is written as UTF-8. A link is followed; a pipe or device is written to.

    Raises:
      ValueError: as `located`.
      OSError: the file cannot be written; the old one is unchanged.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    place = located(path)
    if in_bucket(place):  # an object appears when it is complete
        place.write_bytes(data)
        return
    file = Path(place).resolve()
    if Path(place).is_relative_to("/dev") or (file.exists() and not file.is_file()):
        with Path(place).open("ab") as stream:  # raises IsADirectoryError for a folder
            stream.write(data)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, of this process only, and of a length that every file system takes.
    partial = file.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as stream:
            if file.exists():
                partial.chmod(file.stat().st_mode & 0o7777)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: str | os.PathLike) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file, or, with a warning, if it is damaged.

    For files that can be computed again.

    Raises:
      OSError: the file exists but cannot be read.
    """
    file = epath.Path(path)
    try:
        found = json.loads(file.read_bytes())
        if isinstance(found, dict):
            return found
        problem = f"it contains a {type(found).__name__}, not an object"
    except FileNotFoundError:
        return None
    except ValueError as error:  # also of bytes that are not text
        problem = str(error)
    logger.warning("%s is damaged (%s): it is ignored and made again.", file, problem)
    return None
