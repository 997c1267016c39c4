"""An album and its index: photos that are searched without a thought of where the index is.

`--photos` of the search programs builds or updates the index of these photos, in the user's cache
folder unless `--index` names another place.
"""

import hashlib
import os
import shutil
from pathlib import Path

from absl import flags

from zse_jax.checkpoints import reading
from zse_jax.gallery import index as index_
from zse_jax.gallery.loaded import Checkpoint, Loaded, checkpoint_of, load
from zse_jax.gallery.photos import INCLUDE_HIDDEN, Found, Places, absolute, listed
from zse_jax.runtime.cache import cache_folder


def place(photos: Places, checkpoint: str | os.PathLike | None = None) -> Path:
    """Where the index of these photos is kept: the same folder for the same places.

    Raises:
      OSError: there is no cache folder that can be written; says what to do.
    """
    places = sorted(str(absolute(one)) for one in listed(photos))
    words = "\0".join([os.fspath(checkpoint or reading.DEFAULT), *places]).encode(
        "utf-8", "surrogateescape"
    )
    try:
        return cache_folder("albums") / hashlib.sha256(words).hexdigest()[:16]
    except OSError as error:
        raise OSError(
            f"There is no place for the index of these photos: {error}. Name one, such as "
            "--index=my-index."
        ) from error


def discard_other(index: Path, checkpoint: Loaded) -> None:
    """Deletes an index that this project keeps for a user, if it is of other weights."""
    if index.exists():
        try:
            index_.open(index).load(checkpoint)
        except (ValueError, FileNotFoundError):
            shutil.rmtree(index)


def opened(
    photos: Places,
    checkpoint: str | os.PathLike | None = None,
    index: str | os.PathLike | None = None,
    *,
    include_hidden: bool = False,
) -> tuple[str | os.PathLike, Loaded]:
    """The index of these photos, made or updated with a progress bar; prints what changed.

    An index in the cache folder that was made by another version of the checkpoint is made again.

    Returns:
      The location of the index, and its checkpoint.

    Raises:
      OSError, ValueError: as `place` and `index.sync`.
    """
    found = Found(photos, include_hidden)  # a wrong name is an error before a checkpoint is read
    if index is None:
        index = place(photos, checkpoint)
        loaded = load(checkpoint or reading.DEFAULT)
        discard_other(index, loaded)
    else:
        loaded = checkpoint_of(index, checkpoint)
    changes, removed = index_.sync(found, index, loaded, progress=True)
    index_.show(changes, removed, place=os.fspath(index))
    return index, loaded


def define_flags(options: flags.FlagValues) -> None:
    """The flags of a program that searches an album or an index, for `from_flags`."""
    help_ = "The index: a folder, or a location in a bucket. Default with --photos: a cache folder."
    flags.DEFINE_string("index", None, help_, options)
    help_ = "A folder of photos, a pattern or a file, which the index gets first; can be repeated."
    flags.DEFINE_multi_string("photos", [], help_, options)
    flags.DEFINE_bool("include_hidden", False, INCLUDE_HIDDEN, options)
    help_ = (
        "With --photos, the checkpoint of a new index (default: the model of this package); else "
        "the current location of the index's checkpoint, if it was moved."
    )
    flags.DEFINE_string("checkpoint", None, help_, options)


def from_flags(options: flags.FlagValues) -> tuple[str | os.PathLike, Checkpoint | None]:
    """The index and its checkpoint that the flags of `define_flags` name.

    Raises:
      OSError, ValueError: as `opened`; or neither photos nor an index are named.
    """
    if options.photos:
        return opened(
            options.photos,
            options.checkpoint,
            options.index,
            include_hidden=options.include_hidden,
        )
    if options.include_hidden:
        raise ValueError("--include_hidden has an effect only with --photos: leave it out.")
    if not options.index:
        raise ValueError(
            "--photos is missing: name a folder of photos, such as --photos=~/Pictures, or an "
            "index of them, such as --index=my-index. See --help."
        )
    return options.index, options.checkpoint
