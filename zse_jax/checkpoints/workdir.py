"""Checks that the folder of a run can be written and has enough space, before the run starts."""

import math
import os
import shutil
import tempfile
from typing import Any

import jax
from etils import epath

from zse_jax.checkpoints import reading
from zse_jax.runtime import consistency


def writable(workdir: str | os.PathLike) -> epath.Path:
    """The workdir as an absolute path, created if need be; the same for all processes.

    Raises:
      OSError: it cannot be created or written, or other processes do not see it.
    """
    path = reading.absolute(workdir)
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
    consistency.check_shared(path)
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
    folder = workdir / reading.FOLDER
    there = len([p for p in folder.iterdir() if p.name.isdigit()]) if folder.is_dir() else 0
    wanted = size * max(1, keep_last + 2 - there)
    if (free := shutil.disk_usage(workdir).free) < wanted:
        raise OSError(
            f"The disk of --workdir={workdir} is nearly full: {free / 1e9:.2f} GB are free, and "
            f"the checkpoints to come ({size / 1e9:.2f} GB each, the best, the last {keep_last} "
            f"and one that is being written) need {wanted / 1e9:.2f} GB. Free some space, choose "
            "another --workdir, or keep fewer (--config.checkpoint.keep_last=1)."
        )
