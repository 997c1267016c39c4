"""An index of your own photos, which grows with them.

    python -m zse_jax.gallery.index build --photos=album --index=my-index --checkpoint=runs/sketchy
    python -m zse_jax.gallery.index add --photos=album --index=my-index
    python -m zse_jax.gallery.index remove|verify|info --index=my-index

A photo is known by its path; one whose size and date have not changed is not looked at again, and
one whose content is known is not encoded again. Files that are no photos are named, kept out, and
tried again when they change. An index belongs to its checkpoint. INDEX may lie in a bucket
(s3://, gs://, az://). From Python:

    index.build(photos=["album"], index="my-index", checkpoint="runs/sketchy")
    gallery = index.open("my-index")
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from zse_jax.checkpoints import reading
from zse_jax.gallery import ingest, tables
from zse_jax.gallery.encoder import Encoder
from zse_jax.gallery.ingest import Changes
from zse_jax.gallery.photos import Found, Places, absolute, find, listed, within
from zse_jax.gallery.tables import REFUSED, Tables
from zse_jax.gallery.verifying import Verification
from zse_jax.gallery.verifying import verify as verify
from zse_jax.retrieval.encoding import fingerprint
from zse_jax.runtime import cli

COMMANDS = ("build", "add", "remove", "verify", "info")

FEATURES_UP_TO = 2**15
"""Bytes of a photo's features up to which an index keeps them."""


class Index:
    """An index, open for reading; it shows the photos of the commit that it last saw.

    Attributes:
      tables: what it reads.
    """

    def __init__(self, uri: str | os.PathLike):
        """Opens it.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is of another version, or damaged.
        """
        self.tables = Tables(uri)

    @property
    def uri(self) -> str:
        """Where it is."""
        return self.tables.uri

    @property
    def photos(self) -> int:
        """How many photos it holds."""
        return self.tables.count()

    @property
    def checkpoint(self) -> str:
        """The checkpoint whose embeddings it holds."""
        return self.tables.about["checkpoint"]

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return self.tables.about["step"]

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint's weights."""
        return self.tables.about["fingerprint"]

    @property
    def keeps_features(self) -> bool:
        """Whether it holds what the system needs to score its photos."""
        return self.tables.about["features"]

    def refresh(self) -> None:
        """Shows what was written since."""
        self.tables.refresh()

    def info(self) -> dict[str, Any]:
        """What there is to say about it, plain values by name."""
        about = self.tables.about
        approximate = self.tables.is_approximate
        return {
            "index": self.uri,
            "photos": self.photos,
            "refused": self.tables.count(REFUSED),
            "search": "approximate" if approximate else "exact",
            "checkpoint": about["checkpoint"],
            "step": about["step"],
            "system": about["system"],
            "fingerprint": about["fingerprint"],
            "image_size": about["image_size"],
            "embedding_width": self.tables.width,
            "keeps_features": about["features"],
            "version": self.tables.version,
        }

    def refused(self) -> list[tuple[str, str]]:
        """The files that were kept out: name and reason."""
        return self.tables.refused()

    def thumbnail(self, photo: str) -> bytes:
        """A photo's thumbnail, JPEG.

        Raises:
          KeyError: there is no photo of this id.
        """
        return self.tables.by_id(photo, ["thumbnail"])["thumbnail"]

    def file(self, photo: str) -> Path:
        """A photo's file; no file that is not of the index is ever named.

        Raises:
          KeyError: there is no photo of this id.
        """
        return Path(os.fsdecode(self.tables.by_id(photo, ["file"])["file"]))

    def retriever(self, checkpoint: str | os.PathLike | None = None) -> Any:
        """The system of this index, from its checkpoint or from `checkpoint`.

        Raises:
          FileNotFoundError, ValueError: there is no checkpoint, or it is another one.
        """
        return _retriever(self.tables, checkpoint)


def open(index: str | os.PathLike) -> Index:
    """The index at a path, or in a bucket.

    Raises:
      FileNotFoundError, ValueError: as `Index`.
    """
    return Index(index)


def build(
    photos: Places,
    index: str | os.PathLike,
    checkpoint: str | os.PathLike,
    *,
    features: bool | None = None,
    progress: bool = False,
) -> Changes:
    """Makes an index of photos; one that is there, of the same checkpoint, is gone on with.

    Args:
      photos: folders (searched through), patterns and files.
      index: a new or an empty folder, or a place in a bucket.
      checkpoint: a workdir, or one step's folder.
      features: keep in the index what the system needs to rank pairs. None: if it is at most
        `FEATURES_UP_TO` bytes a photo.
      progress: show how far it is.

    Raises:
      FileNotFoundError: no photos, or no checkpoint.
      FileExistsError: `index` holds something else.
      BlockingIOError: another process writes to it.
      ValueError: it is of another checkpoint.
    """
    uri, found = tables.located(index), find(photos)
    step, retriever = reading.load_step(checkpoint)
    encoder = Encoder(retriever)
    config = reading.read_config(checkpoint)
    about = {
        "checkpoint": os.fspath(reading.absolute(checkpoint)),
        "step": step,
        "fingerprint": fingerprint(retriever),
        "system": config.model.system,
        "image_size": retriever.image_size,
        "features": encoder.item_bytes <= FEATURES_UP_TO if features is None else features,
    }
    with tables.locked(uri):
        table = Tables.create(uri, about, encoder.width)
        _check(table, about["fingerprint"], checkpoint)
        return _added(table, encoder, found, progress)


def add(
    index: str | os.PathLike,
    photos: Places,
    checkpoint: str | os.PathLike | None = None,
    *,
    progress: bool = False,
) -> Changes:
    """Brings new and changed photos into an index.

    Args:
      index: where it is.
      photos: folders (searched through), patterns and files.
      checkpoint: where the index's checkpoint is now; None: where it was.
      progress: show how far it is.

    Raises:
      FileNotFoundError, BlockingIOError, ValueError: as `build`.
    """
    table, found = Tables(index), find(photos)
    encoder = Encoder(_retriever(table, checkpoint))
    with table.writing():
        return _added(table, encoder, found, progress)


def remove(index: str | os.PathLike, photos: Places = ()) -> int:
    """Takes photos out of an index; their files stay. How many.

    Args:
      index: where it is.
      photos: files, and folders with all below them, which need not exist any more. None: the
        photos whose files are gone.

    Raises:
      ValueError: no photo is in these places, or all are gone (a disk is missing, most likely).
      FileNotFoundError, BlockingIOError: as `build`.
    """
    table = Tables(index)
    with table.writing():
        out = _to_remove(table, photos, tables.PHOTOS)
        refused = _to_remove(table, photos, REFUSED)
        if photos and not (out or refused):
            raise ValueError(
                f"The index {table.uri} has no photo in {', '.join(map(str, listed(photos)))}."
            )
        table.delete(out)
        table.delete(refused, REFUSED)
        if out:
            table.tidy()
    return len(out)


def _added(table: Tables, encoder: Encoder, found: Found, progress: bool) -> Changes:
    changes = ingest.add(
        table, encoder, found, keep_features=table.about["features"], progress=progress
    )
    if changes.added or changes.updated:
        prepare(table)
    return changes


def prepare(table: Tables) -> None:
    """Readies what was written for searching; makes the approximate index, if it is worth it."""
    table.tidy()
    if (count := table.count()) > tables.EXACT_UP_TO and not table.is_approximate:
        table.index(partitions=round(count**0.5))


def _to_remove(table: Tables, places: Places, name: str) -> list[str]:
    rows = table.columns("id", "file", table=name).to_pylist()
    files = {row["id"]: Path(os.fsdecode(row["file"])) for row in rows}
    if places:
        wanted = [absolute(place) for place in listed(places)]
        return [one for one, file in files.items() if within(file, wanted)]
    gone = [one for one, file in files.items() if not file.exists()]
    if gone and len(gone) == len(files) and name == tables.PHOTOS:
        raise ValueError(
            f"None of the {len(files):,} photos of the index {table.uri} is there: is a disk not "
            "mounted? To take them out all the same, name their folder with --photos."
        )
    return gone


def _retriever(table: Tables, checkpoint: str | os.PathLike | None) -> Any:
    """The system of the index, if `checkpoint`, or the recorded place, holds it."""
    about = table.about
    place = checkpoint
    if place is None:
        place = reading.place_of(about["checkpoint"], about["step"])
    try:
        retriever = reading.load(place)
    except FileNotFoundError as error:
        if checkpoint is not None:
            raise
        raise FileNotFoundError(
            f"The checkpoint of the index {table.uri} is no longer at {place}: say where it is "
            "now, such as --checkpoint=runs/sketchy."
        ) from error
    _check(table, fingerprint(retriever), place)
    return retriever


def _check(table: Tables, found: str, checkpoint: str | os.PathLike) -> None:
    about = table.about
    if found != about["fingerprint"]:
        raise ValueError(
            f"The index {table.uri} is of another checkpoint: {about['checkpoint']}, step "
            f"{about['step']} (weights {about['fingerprint'][:8]}), and {checkpoint} has the "
            f"weights {found[:8]}. Embeddings of different weights cannot be compared: give that "
            "checkpoint, or build another index."
        )


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    if any(cli.config_arguments(argv)):
        raise ValueError("An index takes no --config: that of the checkpoint holds. See --help.")
    flags.DEFINE_string("index", None, "A folder, or a place in a bucket.", options)
    help_ = "A folder of photos, a pattern, or a file; may be repeated."
    flags.DEFINE_multi_string("photos", [], help_, options)
    help_ = "A workdir, or one step's folder; needed to build."
    flags.DEFINE_string("checkpoint", None, help_, options)
    help_ = "Keep what ranking pairs needs in the index; by default if it is small."
    flags.DEFINE_bool("features", None, help_, options)


def main(options: flags.FlagValues, command: str) -> None:
    """Does what the command line says."""
    if command not in COMMANDS:
        raise ValueError(f"There is no command {command!r}: choose one of {', '.join(COMMANDS)}.")
    if not options.index:
        raise ValueError("--index is missing: say, for example, --index=my-index.")
    if command in ("build", "add") and not options.photos:
        raise ValueError("--photos is missing: say, for example, --photos=album.")
    if command == "build" and not options.checkpoint:
        raise ValueError("--checkpoint is missing: say, for example, --checkpoint=runs/sketchy.")
    place = options.index
    if command == "build":
        show(
            build(
                options.photos, place, options.checkpoint, features=options.features, progress=True
            ),
            place,
        )
    elif command == "add":
        show(add(place, options.photos, options.checkpoint, progress=True), place)
    elif command == "remove":
        why = "their files stay" if options.photos else "their files were gone"
        print(f"removed {remove(place, options.photos):,} photos from {place}; {why}")
    elif command == "verify":
        show_verification(verify(place), place)
    else:
        gallery = Index(place)
        for name, value in gallery.info().items():
            print(f"{name:16} {value}")
        _list("refused", [f"{name}: {reason}" for name, reason in gallery.refused()])


def show(changes: Changes, place: str) -> None:
    """Prints what an addition did."""
    print(
        f"{place}: {changes.added:,} photos added, {changes.updated:,} updated, "
        f"{changes.unchanged:,} unchanged, in {changes.seconds:.1f} s"
    )
    notes = {
        "files whose content was known were not encoded again": changes.reused,
        "files are no photos by their names, and were left aside": changes.others,
        "links to folders lead to what was searched already": changes.links,
        "photos of the index are gone from disk; `remove` takes them out": changes.gone,
    }
    for text, count in notes.items():
        if count:
            print(f"  {count:,} {text}")
    _list("refused", [f"{name}: {reason}" for name, reason in changes.refused])


def show_verification(found: Verification, place: str) -> None:
    """Prints what was found.

    Raises:
      ValueError: the index itself is not right.
    """
    print(f"{place}: {found.photos:,} photos")
    _list("refused", [f"{name}: {reason}" for name, reason in found.refused])
    _list("gone from disk (`remove` takes them out)", found.gone)
    _list("changed since (`add` them again)", found.changed)
    if found.twice or found.damaged:
        some = ", ".join([*found.twice, *found.damaged][:5])
        raise ValueError(
            f"The index {place} is damaged: {len(found.twice)} photos are in it twice, and "
            f"{len(found.damaged)} have no right embedding or thumbnail ({some}). Remove them and "
            "add them again, or build it anew."
        )
    print("everything is in order")


def _list(title: str, lines: Sequence[str], most: int = 20) -> None:
    if not lines:
        return
    print(f"  {len(lines):,} {title}:")
    for line in lines[:most]:
        print(f"    {line}")
    if len(lines) > most:
        print(f"    ... and {len(lines) - most:,} more")


if __name__ == "__main__":
    cli.run(main, define_flags, arguments=(f"COMMAND ({', '.join(COMMANDS)})",))
