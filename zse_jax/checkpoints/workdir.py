"""Checks that the workdir of a run is writable and has enough space, before the run starts."""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from data_pipelines import paths
from zse_jax.checkpoints import reading
from zse_jax.runtime import consistency, distributed, locks


def writable(workdir: str | os.PathLike) -> epath.Path:
    """The workdir as an absolute path, created if necessary; the same for all processes.

    Raises:
      OSError: it cannot be created or written, or other processes do not see it.
    """
    path = reading.absolute(paths.located(workdir))
    try:
        path.mkdir(parents=True, exist_ok=True)
        if "://" not in os.fspath(path):
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        raise OSError(
            f"--workdir={path} cannot be written ({error.strerror or error}): choose a folder with "
            "write permission, or change its permissions."
        ) from error
    consistency.check_shared(path)
    return path


@contextlib.contextmanager
def alone(workdir: epath.Path) -> Iterator[None]:
    """Locks the workdir inside the `with` block, so that two runs cannot mix their files.

    Raises:
      BlockingIOError: another run trains in it; says which process on which host.
    """
    if distributed.this_process():  # the first process holds the lock for all
        yield
        return
    with locks.held(workdir, ".lock", "trains in"):
        yield


def check_space(workdir: epath.Path, state: Any, keep_last: int) -> None:
    """Checks that the disk of `workdir` has space for the checkpoints that the run keeps.

    Args:
      workdir: a local folder; buckets are not checked.
      state: the arrays to save, or their shapes.
      keep_last: number of checkpoints kept, in addition to the best one.

    Raises:
      OSError: there is too little space.
    """
    if "://" in os.fspath(workdir):
        return
    leaves = jax.tree.leaves(state)
    size = sum(math.prod(x.shape) * getattr(x.dtype, "itemsize", 4) for x in leaves)
    folder = workdir / reading.FOLDER
    existing = len([p for p in folder.iterdir() if p.name.isdigit()]) if folder.is_dir() else 0
    needed = size * max(1, keep_last + 2 - existing)
    if (free := shutil.disk_usage(workdir).free) < needed:
        raise OSError(
            f"The disk of --workdir={workdir} is nearly full: {free / 1e9:.2f} GB are free, but "
            f"the run needs {needed / 1e9:.2f} GB for its checkpoints ({size / 1e9:.2f} GB each: "
            f"the best, the last {keep_last}, and the one being written). Free some space, choose "
            "another --workdir, or keep fewer (--config.checkpoint.keep_last=1)."
        )
