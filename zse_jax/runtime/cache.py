"""The user's cache folder, for what can be made again: compiled programs and indexes of albums."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `name` in $XDG_CACHE_HOME/zse_jax, or in ~/.cache/zse_jax; it is created.

    Raises:
      OSError: it cannot be created or written.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # the home folder is unknown
        raise OSError("there is no home folder, and XDG_CACHE_HOME is not set") from error
    folder = Path(home) / "zse_jax" / name
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder
