"""The prepared versions of a user's folder, and how the folder differs from them.

    DATA_DIR/folder/NAME/1.0.N/     version N of the images called NAME, as TFDS lays it out
    DATA_DIR/folder/1.0.0/          as earlier versions of this project prepared a folder

NAME is the user's (`config.data.name_as`), or the name of the folder and a digest of its path.
Every content of the folder is a version, which stays until it is removed. `files.json` of a version
has the state of every source file: size, times of modification and of change, and a digest of its
bytes. A file with the same size and times counts as unchanged. Of a file of the same size with
other times, the bytes are compared. So a start costs one `stat` for each file (seconds for
100,000), and an edit is missed only if it keeps the size and both times; no program can set the
second. A file that changed less than `RECENT_NS` before it was listed is compared by its bytes the
next time, because the clock of some file systems is coarse.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines import paths
from data_pipelines.builders import folders
from data_pipelines.suggestions import counted

logger = logging.getLogger(__name__)

FILES = "files.json"
"""The states of the source files, in the folder of a version."""

METADATA = "metadata.json"

RECENT_NS = 2_000_000_000
"""Twice the resolution of the times on most file systems, in ns; FAT has 2 s."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NUMBER = re.compile(r"\d+\.\d+\.(\d+)")


class State(NamedTuple):
    """The state of a source file.

    Attributes:
      size: bytes.
      modified, changed: times of its content and of its inode, in ns; 0: not reliable.
      digest: of its bytes; "" if it could not be read.
    """

    size: int
    modified: int
    changed: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Version:
    """A prepared version of a folder.

    Attributes:
      folder: of the prepared data set.
      name: of the images; "" if an earlier version of this project prepared them.
      number: counts the versions of a name from 0.
    """

    folder: Path
    name: str
    number: int

    @functools.cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What the data set stores about its source, see `packing.describe`."""
        return json.loads((self.folder / METADATA).read_text())

    @property
    def source(self) -> Path:
        """The folder that was prepared."""
        return Path(self.metadata["source"])

    @property
    def content(self) -> str:
        """Identifies the images, their names, classes and pairs."""
        return self.metadata.get("content") or self.metadata["fingerprint"][:12]

    @property
    def date(self) -> str:
        """When it was prepared, in local time."""
        seconds = (self.folder / METADATA).stat().st_mtime
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))

    def files(self) -> dict[str, State] | None:
        """The states of the source files by name; None if they were not recorded."""
        stored = paths.read_json(self.folder / FILES)
        return None if stored is None else {name: State(*state) for name, state in stored.items()}


class Changes(NamedTuple):
    """How a folder differs from a version.

    Attributes:
      same: name -> present state of each unchanged file.
      added, changed, removed: names of files.
      relabelled: whether pairs of sketches and photos differ.
      touched: whether unchanged files have other times.
    """

    same: Mapping[str, State]
    added: Sequence[str]
    changed: Sequence[str]
    removed: Sequence[str]
    relabelled: bool
    touched: bool

    def __bool__(self) -> bool:
        """Whether the content differs."""
        return bool(self.added or self.changed or self.removed or self.relabelled)

    def __str__(self) -> str:
        parts = [
            f"{len(names):,} {what}"
            for names, what in (
                (self.added, "added"),
                (self.changed, "changed"),
                (self.removed, "removed"),
            )
            if names
        ]
        parts += ["other pairs of sketches and photos"] if self.relabelled and not parts else []
        return ", ".join(parts) or "unchanged"


def check_name(name: str) -> str:
    """`name`, if a data set can have it.

    Raises:
      ValueError: it has other characters than letters, digits, `_` and `-`, or more than 64.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"config.data.name_as={name!r} is not a valid name: use 1 to 64 letters (a-z, A-Z), "
            "digits, _ and -, such as --config.data.name_as=my-animals."
        )
    return name


def automatic_name(root: Path) -> str:
    """The name of the images in `root`: that of the folder, and a digest of its path."""
    path = root.resolve()
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", path.name).strip("-")[:40]
    digest = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
    return f"{readable or 'folder'}-{digest}"


def find(base: Path) -> list[Version]:
    """The versions in `base`, DATA_DIR/folder: by name, then from the oldest to the newest."""
    found = []
    for file in [*base.glob(f"*/{METADATA}"), *base.glob(f"*/*/{METADATA}")]:
        folder = file.parent
        name = "" if folder.parent == base else folder.parent.name
        number = _NUMBER.fullmatch(folder.name)
        if number and (not name or _NAME.fullmatch(name)):
            found.append(Version(folder, name, int(number[1])))
    return sorted(found, key=lambda version: (version.name, version.number))


def compare(source: folders.Source, version: Version) -> Changes | None:
    """How the images of `source` differ from a version; None if its files are not recorded."""
    if (before := version.files()) is None:
        return None
    now, same = time.time_ns(), dict[str, State]()
    added, changed, touched = [], [], False
    files = [file for images in source.images.values() for file in images]
    for file in files:
        if (known := before.get(file.name)) is None:
            added.append(file.name)
        elif known.size != file.size:
            changed.append(file.name)
        elif (known.modified, known.changed) == file.times:
            same[file.name] = known
        elif known.digest and known.digest == file.digest():
            same[file.name] = state(file, known.digest, now)
            touched = touched or same[file.name] != known
        else:
            changed.append(file.name)
    removed = sorted(before.keys() - {file.name for file in files})
    relabelled = source.fingerprint != version.metadata["fingerprint"]
    return Changes(same, added, changed, removed, relabelled, touched)


def state(file: folders.ImageFile, digest: str, now: int) -> State:
    """The state of a file that was read after the time `now`, in ns."""
    recent = now - max(file.times) < RECENT_NS
    return State(file.size, *((0, 0) if recent else file.times), digest)


def matches(source: folders.Source, version: Version) -> bool:
    """Whether `source` has the content of a version; then records new times of its files."""
    if version.metadata["fingerprint"] != source.fingerprint:
        return False  # another name, size or pair: no byte is read
    changes = compare(source, version)
    if changes is None:
        return True  # earlier versions of this project compared nothing else
    if changes:
        return False
    if changes.touched:
        try:
            write_files(version.folder, changes.same)
        except OSError as error:  # on a read-only disk
            logger.debug("The times of the files are not recorded: %s", error)
    return True


def write_files(folder: Path, files: Mapping[str, State]) -> None:
    """Writes the states of the source files of the version in `folder`."""
    paths.replace(folder / FILES, json.dumps(files))


def content(source: folders.Source, files: Mapping[str, State]) -> str:
    """Identifies the names, classes, pairs and bytes of all images: 12 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=6)
    for modality, images in sorted(source.images.items()):
        for file in images:
            line = (modality, file.name, file.class_name, file.instance, files[file.name].digest)
            digest.update("\0".join((*line, "\n")).encode())
    return digest.hexdigest()


def summary(version: Version) -> str:
    """A version in words, for messages."""
    count = counted(version.metadata["file_count"], "image", "images")
    return f"{count} of {version.source}, prepared on {version.date} in {version.folder}"
