"""Image files of a data set that somebody unpacked on a disk: list, check and fingerprint them.

What the builders of the manual data sets (Sketchy, TU-Berlin, QuickDraw) have in common. Nothing
is dropped silently: a class without images is an error, every unreadable file is reported, files
that are no images are named.
"""

import dataclasses
import hashlib
import logging
import multiprocessing
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm

from data_pipelines import images, splits

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Compared in lower case: TU-Berlin Extended mixes .jpg and .JPEG."""

_PARALLEL_FROM = 2000
"""Below this many files, starting processes takes longer than decoding."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """One image on disk.

    Attributes:
      path: where it lies.
      name: its path relative to the data set's root, with forward slashes.
      class_name: the folder it lies in.
      size: bytes.
      instance: id of the photo that it is, or was drawn from; "" where unknown.
    """

    path: Path
    name: str
    class_name: str
    size: int
    instance: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """Everything that a builder found below a data set's root.

    Attributes:
      root: the folder that names are relative to.
      images: the images of each modality, in the order of their names.
      ignored: names of files that are no images.
    """

    root: Path
    images: Mapping[images.Modality, Sequence[ImageFile]]
    ignored: Sequence[str] = ()

    @property
    def file_count(self) -> int:
        """Images of all modalities."""
        return sum(len(files) for files in self.images.values())

    @property
    def fingerprint(self) -> str:
        """Changes when an image is added, removed, renamed or changes its size."""
        digest = hashlib.sha256()
        for modality, files in sorted(self.images.items()):
            for file in files:
                digest.update(f"{modality}\t{file.name}\t{file.size}\n".encode())
        return digest.hexdigest()


def list_images(
    folder: Path, root: Path, classes: Collection[str]
) -> tuple[list[ImageFile], list[str]]:
    """Lists `folder/<class>/<image>`, sorted, and the names of all files that are no images.

    Raises:
      ValueError: when the class folders are not exactly `classes`, or some hold no image.
    """
    found = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    splits.check_classes(found, classes, str(folder))
    files: list[ImageFile] = []
    ignored: list[str] = []
    empty: list[str] = []
    for class_name in found:
        count = len(files)
        for entry in sorted(os.scandir(folder / class_name), key=lambda entry: entry.name):
            path = Path(entry.path)
            name = path.relative_to(root).as_posix()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                files.append(ImageFile(path, name, class_name, entry.stat().st_size))
            else:
                ignored.append(name)
        if len(files) == count:
            empty.append(class_name)
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(found)} class folders in {folder} hold no image "
            f"({', '.join(IMAGE_SUFFIXES)}): {', '.join(empty)}. The archive seems to be unpacked "
            "in part; unpack it again."
        )
    return files, ignored


def check(source: Source, *, skip_unreadable: bool = False) -> dict[str, str]:
    """Decodes every image completely, on all cores, behind a progress bar with the time left.

    Returns:
      Name -> reason of each image that does not decode; empty unless `skip_unreadable`.

    Raises:
      ValueError: listing all images that do not decode, unless `skip_unreadable`.
    """
    if source.ignored:
        logger.warning(
            "%d files below %s are no images (%s) and are left out: %s",
            len(source.ignored),
            source.root,
            ", ".join(IMAGE_SUFFIXES),
            ", ".join(source.ignored),
        )
    unreadable = _find_unreadable([file for files in source.images.values() for file in files])
    if not unreadable:
        return {}
    listing = "".join(f"\n  {name}: {reason}" for name, reason in unreadable.items())
    count = f"{len(unreadable)} of {source.file_count} images below {source.root}"
    if not skip_unreadable:
        raise ValueError(
            f"{count} cannot be read. Unpack them again, or leave them out with "
            f"skip_unreadable=True (--config.data.skip_unreadable=True):{listing}"
        )
    logger.warning("%s cannot be read and are left out:%s", count, listing)
    return unreadable


def describe(source: Source, unreadable: Mapping[str, str]) -> dict[str, Any]:
    """What the prepared data set remembers of its source, as plain values."""
    return {
        "source": str(source.root.resolve()),
        "file_count": source.file_count,
        "fingerprint": source.fingerprint,
        "unreadable": dict(unreadable),
        "ignored": list(source.ignored),
    }


def records(files: Sequence[ImageFile]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of `features.record_features`, keyed by position."""
    for key, file in enumerate(files):
        yield (
            key,
            {
                "image": file.path.read_bytes(),
                "class_name": file.class_name,
                "instance": file.instance,
                "name": file.name,
            },
        )


def _find_unreadable(files: Sequence[ImageFile]) -> dict[str, str]:
    paths = [file.path for file in files]
    progress = {"total": len(files), "desc": "Checking images", "unit": " images"}
    if len(files) < _PARALLEL_FROM:
        reasons = list(tqdm.tqdm(map(_why_unreadable, paths), **progress))
    else:
        # Not forked: TensorFlow, which TFDS may have loaded by now, does not survive that.
        with multiprocessing.get_context("spawn").Pool() as pool:
            checked = pool.imap(_why_unreadable, paths, chunksize=64)
            reasons = list(tqdm.tqdm(checked, **progress))
    return {file.name: why for file, why in zip(files, reasons, strict=True) if why}


def _why_unreadable(path: Path) -> str | None:
    try:
        images.decode(path.read_bytes())
    except (images.UnreadableImageError, OSError) as error:
        return str(error)
    return None
