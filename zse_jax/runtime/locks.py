"""Locks: one writer at a time, known by its process and host.

The operating system releases a lock when its process ends, however it ends, so a lock cannot become
stale, with one exception: a child process that outlives its killed parent keeps it. Such a lock is
recognised by the process that the file names, and taken over.
"""

import contextlib
import errno
import fcntl
import getpass
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from data_pipelines import paths

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def held(place: str | os.PathLike, name: str, doing: str) -> Iterator[None]:
    """Holds the lock of a folder inside the `with` block.

    A lock on a shared disk holds for all hosts, if the disk supports locks. One of a bucket is in
    the temporary folder of this machine, and holds for its processes.

    Args:
      place: an existing folder, or a bucket's path.
      name: of the lock file, which stays when the lock is released.
      doing: what its owner does, for the error message: "trains in".

    Raises:
      BlockingIOError: another process holds it; says which, and since when.
    """
    file = Path(place) / name
    if paths.in_bucket(place):
        digest = hashlib.blake2b(os.fspath(place).encode(), digest_size=12).hexdigest()
        file = Path(tempfile.gettempdir()) / f"zse_jax-{os.getuid()}-{digest}{name}"
    with _locked(file, place, doing) as stream:
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps(_this_process()).encode())
        stream.flush()
        yield


@contextlib.contextmanager
def _locked(file: Path, place: str | os.PathLike, doing: str) -> Iterator[Any]:
    for takeover in (True, False):
        stream = file.open("a+b")  # not emptied: it names the owner
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(stream)
            stream.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                logger.warning("%s cannot be locked (%s): start no second run.", place, error)
                with file.open("a+b") as stream:
                    yield stream
                return
            if takeover and _is_gone(owner):
                logger.warning(
                    "Process %s, which locked %s, is gone: the lock is taken over.",
                    owner["process"],
                    place,
                )
                file.unlink(missing_ok=True)
                continue
            raise BlockingIOError(
                f"Another process {doing} {place}: {_described(owner)}. Wait until it ends, end "
                f"it, or choose another folder. If its machine was lost, delete {file}."
            ) from error
        with stream:
            yield stream
        return


def _this_process() -> dict[str, Any]:
    user = ""
    with contextlib.suppress(KeyError, OSError, ImportError):  # an unknown user id
        user = getpass.getuser()
    process = psutil.Process()
    return {
        "process": process.pid,
        "started": process.create_time(),
        "host": _host(),
        "user": user,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _host() -> str:
    """The name of this machine, and of its container: process ids are valid in there only."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    return f"{socket.gethostname()} {space}".strip()


def _owner(stream: Any) -> dict[str, Any]:
    """What the lock file says about its owner; empty if it is not readable (yet)."""
    stream.seek(0)
    with contextlib.suppress(ValueError):
        found = json.loads(stream.read())
        if isinstance(found, dict):
            return found
    return {}


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this host, and no longer does."""
    if owner.get("host") != _host():
        return False
    try:
        return psutil.Process(owner["process"]).create_time() != owner["started"]
    except psutil.NoSuchProcess:
        return True


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "it does not say which"
    of = f" of {owner['user']}" if owner.get("user") else ""
    host = str(owner.get("host")).split()[0]
    return f"process {owner.get('process')}{of} on {host}, since {owner.get('since')}"
