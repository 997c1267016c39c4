"""A page with photos to search from the start: the doodles, and the demo's checkpoint.

    python -m zse_jax.gallery.demo --checkpoint=demo

Writes the photos of the built-in data set to a folder, indexes them with the checkpoint of `make
demo`, and serves the page; `make app` runs both. A second run reuses the photos and the index.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_pipelines import loading, paths, splits
from zse_jax.checkpoints import reading
from zse_jax.gallery import album, app, index
from zse_jax.gallery.loaded import Checkpoint, load
from zse_jax.runtime import cli

DATA = "doodles"


def write_photos(folder: str | os.PathLike, per_class: int | None = None) -> int:
    """Writes photos to FOLDER/CLASS/NAME, unless they exist; returns how many there are.

    Args:
      folder: receives one folder per class, seen and unseen.
      per_class: photos of each class; None: all.

    Raises:
      ValueError, FileNotFoundError: the data set cannot be prepared.
    """
    photos = loading.load_items(DATA, "photo", splits.get(DATA).classes)
    chosen = [int(i) for positions in photos.by_class() for i in positions[:per_class]]
    for position in chosen:
        file = Path(folder) / photos.names[position].removeprefix("photo/")
        if not file.exists():
            paths.replace(file, photos.source[int(photos.rows[position])])
    return len(chosen)


def build(checkpoint: Checkpoint, folder: str | os.PathLike, per_class: int | None = None) -> Path:
    """Writes photos and their index to `folder`; returns the location of the index.

    Replaces an index of another checkpoint.

    Args:
      checkpoint: of a system trained on the doodles.
      folder: receives `photos` and `index`.
      per_class: photos of each class; None: all.

    Raises:
      FileNotFoundError: the checkpoint does not exist.
      BlockingIOError, ValueError: as `index.build`.
    """
    folder = paths.local(folder, "--folder")
    photos, where = folder / "photos", folder / "index"
    write_photos(photos, per_class)
    loaded = load(checkpoint)
    album.discard_other(where, loaded)
    index.build(photos=[photos], index=where, checkpoint=loaded, progress=True)
    return where


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    flags.DEFINE_string("checkpoint", "demo", "The workdir of a run on the doodles.", options)
    help_ = "Folder for the photos and the index. Default: the folder `app` in the workdir."
    flags.DEFINE_string("folder", None, help_, options)
    flags.DEFINE_string("host", "127.0.0.1", "The address to listen on.", options)
    flags.DEFINE_integer("port", None, "Default: the first free port from 7860.", 1, 65535, options)


def main(options: flags.FlagValues) -> None:
    """Builds the index if necessary, and serves the page until Ctrl-C."""
    folder = options.folder or reading.absolute(options.checkpoint) / "app"
    checkpoint = load(options.checkpoint)
    where = build(checkpoint, folder)
    app.launch(
        where, checkpoint, host=options.host, port=options.port, share=False, block=True, quiet=True
    )


if __name__ == "__main__":
    cli.run(main, define_flags)
