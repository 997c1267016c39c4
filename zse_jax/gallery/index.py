"""An index of your own photos, to which photos can be added at any time.

    python -m zse_jax.gallery.index build --photos=album --index=my-index --checkpoint=runs/sketchy
    python -m zse_jax.gallery.index add --photos=album --index=my-index
    python -m zse_jax.gallery.index sync|watch --photos=album --index=my-index
    python -m zse_jax.gallery.index remove|verify|info --index=my-index

`sync` builds an index or brings it up to date, and `watch` keeps it so; COMMAND --help describes a
command.
A photo is identified by its path. A photo whose size and modification time have not changed is not
read again, and one whose content is already in the index is not encoded again. Files that are not
photos are skipped and reported, and read again if they change. An index belongs to one checkpoint.
INDEX can be in a bucket (s3://, gs://, az://). From Python:

    index.build(photos=["album"], index="my-index", checkpoint="runs/sketchy")
    gallery = index.open("my-index")
"""

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from data_pipelines.files import is_gone
from data_pipelines.suggestions import counted, suggest
from zse_jax.checkpoints import reading
from zse_jax.gallery import cluster, ingest, tables, watching
from zse_jax.gallery import photos as photos_
from zse_jax.gallery.ingest import Changes
from zse_jax.gallery.loaded import Checkpoint, Loaded, checkpoint_of, load
from zse_jax.gallery.photos import File, Found, Places, absolute, in_bucket, listed, path_of, within
from zse_jax.gallery.tables import REFUSED, Tables
from zse_jax.gallery.verifying import Verification
from zse_jax.gallery.verifying import verify as verify
from zse_jax.retrievers.base import Encoder
from zse_jax.runtime import cli, consistency
from zse_jax.runtime.console import say

logger = logging.getLogger(__name__)


class Command(NamedTuple):
    """A command of the program: what it does, and the flags besides --index that it uses."""

    summary: str
    flags: tuple[str, ...] = ()


_FLAGS = "photos", "checkpoint", "features", "include_hidden"

_BUILD_FLAGS = *_FLAGS, "engine", "address"

ENGINES = "local", "ray"
"""What reads and encodes photos: this process, or the machines of a Ray cluster."""

COMMANDS = {
    "build": Command("Makes an index of photos, or continues one.", _BUILD_FLAGS),
    "sync": Command("Makes an index, or brings it up to date: adds, updates and removes.", _FLAGS),
    "watch": Command("Keeps an index up to date while photos come and go, until Ctrl-C.", _FLAGS),
    "add": Command(
        "Adds new and changed photos to an index.", ("photos", "checkpoint", "include_hidden")
    ),
    "remove": Command(
        "Removes photos from an index, not from the disk: those in --photos, or else those whose "
        "files no longer exist.",
        ("photos",),
    ),
    "verify": Command("Compares an index with the files; exits with 1 if they differ."),
    "info": Command("Prints facts about an index, and the files that were skipped."),
}
"""The commands of the program."""

FEATURES_UP_TO = 2**15
"""Size in bytes of a photo's features up to which an index stores them by default."""


class Index:
    """An index, open for reading. Shows the photos of the commit at which it was last refreshed.

    Attributes:
      tables: its tables.
    """

    def __init__(self, uri: str | os.PathLike):
        """Opens the index.

        Raises:
          FileNotFoundError: there is no index at `uri`.
          ValueError: it has another version, or is damaged.
        """
        self.tables = Tables(uri)

    @property
    def uri(self) -> str:
        """The location of the index."""
        return self.tables.uri

    @property
    def photos(self) -> int:
        """The number of photos."""
        return self.tables.count()

    @property
    def checkpoint(self) -> str:
        """The checkpoint that computed the embeddings."""
        return self.tables.about["checkpoint"]

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return self.tables.about["step"]

    @property
    def keeps_features(self) -> bool:
        """Whether the index stores the features with which the system scores pairs."""
        return self.tables.about["features"]

    def refresh(self) -> None:
        """Shows the newest commit."""
        self.tables.refresh()

    def info(self) -> dict[str, Any]:
        """Facts about the index, plain values by name."""
        about = self.tables.about
        return {
            "index": self.uri,
            "photos": self.photos,
            "refused": self.tables.count(REFUSED),
            "search": "approximate" if self.tables.is_approximate else "exact",
            **{n: about[n] for n in ("checkpoint", "step", "system", "fingerprint", "image_size")},
            "embedding_width": self.tables.width,
            "keeps_features": about["features"],
            "version": self.tables.version,
        }

    def refused(self) -> list[tuple[str, str]]:
        """The files that were skipped: name and reason."""
        return self.tables.refused()

    def thumbnail(self, photo: str) -> bytes:
        """The thumbnail of the photo with this id, JPEG.

        Raises:
          KeyError: there is no photo with this id.
        """
        return self.tables.by_id(photo, ["thumbnail"])["thumbnail"]

    def file(self, photo: str) -> File:
        """The file of the photo with this id.

        Raises:
          KeyError: there is no photo with this id.
        """
        return path_of(self.tables.by_id(photo, ["file"])["file"])

    def retriever(self, checkpoint: Checkpoint | None = None) -> Encoder:
        """Loads the system of this index; arguments and errors as `load`."""
        return self.load(checkpoint).retriever

    def load(self, checkpoint: Checkpoint | None = None) -> Loaded:
        """Reads the checkpoint of this index.

        Args:
          checkpoint: its current location, or the loaded checkpoint; None: the recorded location.

        Raises:
          FileNotFoundError, ValueError: the checkpoint does not exist, or is another one.
        """
        about = self.tables.about
        place = checkpoint or reading.place_of(about["checkpoint"], about["step"])
        try:
            loaded = load(place)
        except FileNotFoundError as error:
            if checkpoint is not None:
                raise
            raise FileNotFoundError(
                f"The checkpoint of the index {self.uri} no longer exists at {place}: give its new "
                "location, for example --checkpoint=runs/sketchy."
            ) from error
        _check(self.tables, loaded)
        return loaded


def open(index: str | os.PathLike) -> Index:
    """Opens the index at a path or in a bucket.

    Raises:
      FileNotFoundError, ValueError: as `Index`.
    """
    return Index(index)


def build(
    photos: Places,
    index: str | os.PathLike,
    checkpoint: Checkpoint | None = None,
    *,
    features: bool | None = None,
    include_hidden: bool = False,
    progress: bool = False,
    engine: str = "local",
    address: str | None = None,
) -> Changes:
    """Builds an index of photos, or continues an existing one of the same checkpoint.

    Args:
      photos: folders (searched recursively), patterns and files.
      index: a new or an empty folder, or a location in a bucket.
      checkpoint: anything that `zse_jax.load` reads. None: the recorded one of an existing index,
        else the model of this package.
      features: store the features with which the system scores pairs. None: if they take at most
        `FEATURES_UP_TO` bytes per photo.
      include_hidden: leave no file or folder out because it is hidden or the system's.
      progress: show a progress bar.
      engine: one of `ENGINES`. With "ray", all machines need this package, and the photos, the
        checkpoint and the index at the same paths or URLs.
      address: of the Ray cluster, see `cluster.start`.

    Raises:
      FileNotFoundError: the photos or the checkpoint do not exist.
      FileExistsError: `index` contains other files.
      BlockingIOError: another process is writing to the index.
      ValueError: the index belongs to another checkpoint; or there is no such engine.
      ModuleNotFoundError, ConnectionError, RuntimeError: of the engine "ray", see `cluster`.
    """
    if engine not in ENGINES:
        raise ValueError(f"There is no engine {engine!r}: choose one of {', '.join(ENGINES)}.")
    if address is not None and engine != "ray":
        raise ValueError("--address is that of a Ray cluster: give --engine=ray as well.")
    if engine == "ray":
        cluster.start(address)
    uri, found = tables.located(index), Found(photos, include_hidden)
    table, loaded = _prepared(uri, checkpoint, features)
    with table.writing():
        return _added(table, loaded, found, progress, _ray(table, loaded, engine))


def _ray(table: Tables, loaded: Loaded, engine: str) -> ingest.Engine | None:
    """The engine "ray" for an index; None for the other one."""
    if engine != "ray":
        return None
    about, retriever = table.about, loaded.retriever
    place = reading.absolute(loaded.place)
    job = cluster.Job(
        reading.place_of(place, about["step"]), about["fingerprint"], retriever.image_size,
        retriever.preprocessing, about["features"], table.fragment_writer(),
    )  # fmt: skip
    return functools.partial(cluster.encode, job=job)


def _prepared(
    uri: str, checkpoint: Checkpoint | None, features: bool | None
) -> tuple[Tables, Loaded]:
    """The tables of a new or an existing index, and its checkpoint; arguments as for `build`."""
    loaded = checkpoint_of(uri, checkpoint)
    config, encoder = reading.config_of(loaded.retriever), loaded.encoder
    assert config is not None, "it was read"
    about = {
        "checkpoint": os.fspath(reading.absolute(loaded.place)),
        "step": loaded.step,
        "fingerprint": loaded.fingerprint,
        "code": consistency.code_digest(*consistency.FEATURE_CODE),
        "system": config.model.system,
        "image_size": loaded.retriever.image_size,
        "features": encoder.item_bytes <= FEATURES_UP_TO if features is None else features,
    }
    with tables.locked(uri):
        table = Tables.create(uri, about, encoder.width)
    _check(table, loaded)
    return table, loaded


def sync(
    photos: Places | Found,
    index: str | os.PathLike,
    checkpoint: Checkpoint | None = None,
    *,
    features: bool | None = None,
    include_hidden: bool = False,
    progress: bool = False,
) -> tuple[Changes, int]:
    """Builds an index, or updates it: adds new and changed photos, removes those that are gone.

    Photos of other places, whose files exist, stay in the index.

    Args:
      photos: as for `build`, or already found.
      index, checkpoint, features, include_hidden, progress: as for `build`.

    Returns:
      What the addition changed, and the number of photos that were removed.

    Raises:
      FileNotFoundError, FileExistsError, BlockingIOError, ValueError: as `build`; or none of the
        photos in one of the places exists any more (then its disk is probably not mounted).
    """
    uri = tables.located(index)
    found = photos if isinstance(photos, Found) else Found(photos, include_hidden)
    table, loaded = _prepared(uri, checkpoint, features)
    return _synced(table, loaded, found, progress)


def _synced(table: Tables, loaded: Loaded, found: Found, progress: bool) -> tuple[Changes, int]:
    """Adds and removes photos, as `sync`."""
    with table.writing():
        changes = _added(table, loaded, found, progress)
        places = [str(place) for place in found.places]
        removed = _removed(table, *_gone(table, places)) if changes.gone else 0
    return changes._replace(gone=0), removed


def watch(
    photos: Places,
    index: str | os.PathLike,
    checkpoint: Checkpoint | None = None,
    *,
    features: bool | None = None,
    include_hidden: bool = False,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> None:
    """Calls `sync`, and again whenever photos have come, gone or changed, until `stop` is set.

    Prints what changed. While a folder cannot be reached, its photos stay in the index.

    Args:
      photos, index, checkpoint, features, include_hidden, progress: as for `build`.
      stop: None: until Ctrl-C.

    Raises:
      FileNotFoundError, FileExistsError, BlockingIOError, ValueError: as `sync`, at the start.
        Later, such an error is a warning, and the index stays as it is.
    """
    uri, found = tables.located(index), Found(photos, include_hidden)
    if any(map(in_bucket, found.places)):
        raise ValueError(
            "Photos in a bucket cannot be watched, because a bucket does not report changes: run "
            "`sync` at intervals instead."
        )
    table, loaded = _prepared(uri, checkpoint, features)
    show(*_synced(table, loaded, found, progress), place=uri)
    changed = watching.ChangeTimes()

    def update() -> None:
        try:
            found = Found(photos, include_hidden)
            changes, removed = _synced(table, loaded, found, False)
        except BlockingIOError:  # another process is writing
            changed.add(time.monotonic())
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
        else:
            if changes.added or changes.updated or removed:
                show(changes, removed, place=uri)

    folders = [
        next(folder for folder in (place, *place.parents) if folder.is_dir())
        for place in found.places
    ]
    say(f"watching {', '.join(map(str, folders))}  (press Ctrl-C to stop)")
    ignored = [] if "://" in uri else [Path(uri)]
    watching.watch(folders, update, stop or threading.Event(), ignored=ignored, changes=changed)


def add(
    index: str | os.PathLike,
    photos: Places,
    checkpoint: Checkpoint | None = None,
    *,
    include_hidden: bool = False,
    progress: bool = False,
) -> Changes:
    """Adds new and changed photos to an index.

    Args:
      index: its location.
      photos: folders (searched recursively), patterns and files.
      checkpoint: current location of the index's checkpoint; None: the recorded location.
      include_hidden: as for `build`.
      progress: show a progress bar.

    Raises:
      FileNotFoundError, BlockingIOError, ValueError: as `build`.
    """
    gallery, found = Index(index), Found(photos, include_hidden)
    loaded = gallery.load(checkpoint)
    with gallery.tables.writing():
        return _added(gallery.tables, loaded, found, progress)


def remove(index: str | os.PathLike, photos: Places = ()) -> int:
    """Removes photos from an index, not from the disk; returns how many.

    Args:
      index: its location.
      photos: files, and folders with everything below them; they do not have to exist. Empty: the
        photos whose files no longer exist.

    Raises:
      ValueError: the index has no photo in these places, or none of its files exists (then a disk
        is probably not mounted).
      FileNotFoundError, BlockingIOError: as `build`.
    """
    table = Tables(index)
    with table.writing():
        if not photos:
            return _removed(table, *_gone(table))
        inside = [_inside(table, name, photos) for name in (tables.PHOTOS, REFUSED)]
        if not any(inside):
            raise ValueError(
                f"The index {table.uri} has no photo in {', '.join(map(str, listed(photos)))}."
            )
        return _removed(table, *map(list, inside))


def _removed(table: Tables, ids: list[str], refused: list[str]) -> int:
    """Removes photos and refused files from a locked index; returns the number of photos."""
    table.delete(ids)
    table.delete(refused, REFUSED)
    if ids:
        table.tidy()
    return len(ids)


def _added(
    table: Tables,
    loaded: Loaded,
    found: Found,
    progress: bool,
    engine: ingest.Engine | None = None,
) -> Changes:
    keep = table.about["features"]
    changes = ingest.add(
        table, loaded.encoder, found, keep_features=keep, progress=progress, engine=engine
    )
    if changes.added or changes.updated:
        prepare(table)
    return changes


def prepare(table: Tables) -> None:
    """Compacts scattered tables; builds the approximate index once there are enough photos."""
    if table.is_scattered:
        table.tidy()
    if table.count() > tables.EXACT_UP_TO and not table.is_approximate:
        table.index()


def _inside(table: Tables, name: str, places: Places | None = None) -> dict[str, File]:
    """The files of the photos, or the refused files, in these places (None: all), by id."""
    wanted = [absolute(place) for place in listed(places or [])]
    rows = table.columns("id", "file", table=name).to_pylist()
    files = {row["id"]: path_of(row["file"]) for row in rows}
    return {one: file for one, file in files.items() if not wanted or within(file, wanted)}


def _gone(table: Tables, places: Places | None = None) -> tuple[list[str], list[str]]:
    """The ids of the photos and of the refused files in these places that no longer exist.

    Raises:
      ValueError: none of the photos in one of the places exists.
    """
    out: dict[str, None] = {}
    for place in listed(places) if places else [None]:
        inside = _inside(table, tables.PHOTOS, place)
        gone = [one for one, file in inside.items() if is_gone(file)]
        if gone and len(gone) == len(inside):
            raise ValueError(
                f"Of {counted(len(gone), 'photo', 'photos')} in the index {table.uri}, no file "
                f"exists in {absolute(place or '/')}: is their disk mounted? To remove the photos "
                "anyway, use `remove` with their folder: --photos=FOLDER."
            )
        out |= dict.fromkeys(gone)
    refused = _inside(table, REFUSED, places)
    return [*out], [one for one, file in refused.items() if is_gone(file)]


def _check(table: Tables, loaded: Loaded) -> None:
    about, found = table.about, loaded.fingerprint
    if found != about["fingerprint"]:
        raise ValueError(
            f"The index {table.uri} belongs to another checkpoint: {about['checkpoint']}, step "
            f"{about['step']} (weights {about['fingerprint'][:8]}); {loaded.place} has the weights "
            f"{found[:8]}. Embeddings of different weights cannot be compared: give the index's "
            "checkpoint, or build another index."
        )
    code = consistency.code_digest(*consistency.FEATURE_CODE)
    if about.get("code", code) != code:  # not recorded by early versions
        _warn_of_other_code(table.uri)


@functools.cache
def _warn_of_other_code(uri: str) -> None:
    """Warns once: an index is checked when it is opened, and again for an addition."""
    logger.warning(
        "The index %s was built by another version of the code, which may encode images in another "
        "way. To be sure that its photos and new ones compare, delete it, and build it again: "
        "`python -m zse_jax.gallery.index build --index=%s --photos=...`.",
        uri,
        uri,
    )


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line. `COMMAND --help` lists only what this command takes."""
    command = next((word for word in argv[1:] if not word.startswith("-")), "")
    wanted = set(_BUILD_FLAGS)
    if {"--help", "-h"} & set(argv) and command in COMMANDS:
        sys.modules["__main__"].__doc__ = COMMANDS[command].summary
        wanted = set(COMMANDS[command].flags)
    flags.DEFINE_string("index", None, "The index: a folder, or a location in a bucket.", options)
    if "photos" in wanted:
        help_ = "A folder of photos, a glob pattern, or a file; can be repeated."
        flags.DEFINE_multi_string("photos", [], help_, options)
    if "checkpoint" in wanted:
        help_ = "A workdir, or a published model. Default for a new index: the model of this "
        flags.DEFINE_string("checkpoint", None, help_ + "package.", options)
    if "features" in wanted:
        help_ = "Store the features for scoring pairs in the index. Default: if they are small."
        flags.DEFINE_bool("features", None, help_, options)
    if "include_hidden" in wanted:
        flags.DEFINE_bool("include_hidden", False, photos_.INCLUDE_HIDDEN, options)
    if "engine" in wanted:
        help_ = "What reads and encodes photos: this process, or the machines of a Ray cluster."
        flags.DEFINE_enum("engine", "local", ENGINES, help_, options)
        help_ = (
            "With --engine=ray, the address of the cluster; auto: the one that this machine is in. "
            "Default: RAY_ADDRESS if it is set, else a cluster of this machine alone."
        )
        flags.DEFINE_string("address", None, help_, options)


def main(options: flags.FlagValues, command: str) -> None:
    """Runs one command."""
    if command not in COMMANDS:
        raise ValueError(
            f"There is no command {command!r}{suggest(command, COMMANDS)}: choose one of "
            f"{', '.join(COMMANDS)}."
        )
    cli.require(options, index="my-index")
    for name in _BUILD_FLAGS:
        if options[name].present and name not in COMMANDS[command].flags:
            raise ValueError(f"--{name} has no effect on {command}: leave it out.")
    if "photos" in COMMANDS[command].flags and command != "remove":
        cli.require(options, photos="album")
    place, photos = options.index, options.photos
    given: dict[str, Any] = {name: options[name].value for name in COMMANDS[command].flags}
    given.pop("photos", None)
    if command == "sync":
        show(*sync(photos, place, progress=True, **given), place=place)
    elif command == "watch":
        watch(photos, place, progress=True, **given)
    elif command == "build":
        show(build(photos, place, progress=True, **given), place=place)
    elif command == "add":
        show(add(place, photos, progress=True, **given), place=place)
    elif command == "remove":
        why = "" if photos else " whose files no longer exist"
        removed = counted(remove(place, photos), "photo", "photos")
        say(f"removed {removed}{why} from {place}")
    elif command == "verify":
        show_verification(verify(place), place)
    else:
        gallery = Index(place)
        for name, value in gallery.info().items():
            say(f"{name:16} {value}")
        _list("skipped", [f"{name}: {reason}" for name, reason in gallery.refused()])


def show(changes: Changes, removed: int | None = None, *, place: str) -> None:
    """Prints what an addition changed, and how many photos were removed."""
    gone = "" if removed is None else f"{removed:,} removed, "
    say(
        f"{place}: {counted(changes.added, 'photo', 'photos')} added, {changes.updated:,} updated, "
        f"{gone}{changes.unchanged:,} unchanged, in {changes.seconds:.1f} s"
    )
    notes = {
        "photos not encoded again (the index already had their content)": changes.reused,
        "files skipped (their names are not those of photos)": changes.others,
        "hidden, trash and thumbnail files and folders skipped": changes.system,
        "photos with damaged metadata, which was ignored (they may lie on their side)": (
            changes.damaged_metadata
        ),
        "links to folders skipped (the folders were already searched)": changes.links,
        "photos of the index that no longer exist (`sync` and `remove` remove them)": changes.gone,
    }
    for text, count in notes.items():
        if count:
            say(f"  {text}: {count:,}")
    _list("skipped as video", changes.videos, 5)
    _list("skipped", [f"{name}: {reason}" for name, reason in changes.refused])


def show_verification(found: Verification, place: str) -> None:
    """Prints the result of `verify`.

    Raises:
      ValueError: the index is damaged, or differs from the files on disk.
    """
    say(f"{place}: {counted(found.photos, 'photo', 'photos')}")
    _list("skipped", [f"{name}: {reason}" for name, reason in found.refused])
    _list("no longer on disk", found.gone)
    _list("changed on disk", found.changed)
    _list("in a place that cannot be opened", [f"{path}: {why}" for path, why in found.closed])
    if found.twice or found.damaged:
        some = ", ".join([*found.twice, *found.damaged][:5])
        raise ValueError(
            f"The index {place} is damaged. Duplicate photos: {len(found.twice)}; photos with an "
            f"invalid embedding or thumbnail: {len(found.damaged)} ({some}). Remove them and add "
            "them again, or build the index again."
        )
    if found.gone or found.changed or found.closed:
        raise ValueError(
            f"The index {place} differs from the files on disk. Photos that no longer exist: "
            f"{len(found.gone):,} (`remove` removes them); that have changed: "
            f"{len(found.changed):,} (`add` updates them); that cannot be opened: "
            f"{len(found.closed):,} (check their permissions)."
        )
    say("no problems found")


def _list(title: str, lines: Sequence[str], most: int = 20) -> None:
    if not lines:
        return
    say(f"  {len(lines):,} {title}:")
    for line in lines[:most]:
        say(f"    {line}")
    if len(lines) > most:
        say(f"    ... and {len(lines) - most:,} more")


if __name__ == "__main__":
    cli.run(main, define_flags, arguments=(f"COMMAND ({', '.join(COMMANDS)})",))
