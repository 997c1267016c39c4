"""Image files of a data set that somebody unpacked on a disk: list, check and fingerprint them.

What the builders of the manual data sets (Sketchy, TU-Berlin, QuickDraw, a user's own) have in
common. Nothing is dropped silently: a class without images is an error, every unreadable file is
reported, files that are no images are named.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from data_pipelines import images, splits

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".avif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Compared in lower case: TU-Berlin Extended mixes .jpg and .JPEG."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
    """One image on disk; small, because a data set has hundreds of thousands.

    Attributes:
      root: the data set's root.
      name: its path relative to the root, with forward slashes.
      class_name: the class folder it lies in.
      size: bytes.
      instance: id of the photo that it is, or was drawn from; "" where unknown.
    """

    root: Path
    name: str
    class_name: str
    size: int
    instance: str = ""

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / self.name

    def read(self) -> bytes:
        """The encoded image.

        Raises:
          OSError: when the file cannot be read.
        """
        return self.path.read_bytes()


@dataclasses.dataclass(frozen=True)
class Source:
    """Everything that a builder found below a data set's root.

    Attributes:
      root: the folder that names are relative to.
      images: the images of each modality, in the order of their names.
      ignored: names of files that are no images, or lie outside of every class.
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
        """Changes when an image is added, removed, renamed, or changes its size or its pair."""
        digest = hashlib.sha256()
        for modality, files in sorted(self.images.items()):
            for file in files:
                line = f"{modality}\t{file.name}\t{file.size}\t{file.instance}\n"
                digest.update(line.encode())
        return digest.hexdigest()


def find_root(manual_dir: Path, *parts: str) -> Path:
    """The folder that holds one of the folders `parts`: `manual_dir`, or the one folder in it.

    Raises:
      FileNotFoundError: when there is no such folder, or several below `manual_dir`.
    """

    def fits(folder: Path) -> bool:
        return any((folder / part).is_dir() for part in parts)

    if fits(manual_dir):
        return manual_dir
    names = class_folders(manual_dir) if manual_dir.is_dir() else []
    roots = [manual_dir / name for name in names if name != "__MACOSX" and fits(manual_dir / name)]
    if len(roots) != 1:
        wanted = " or ".join(f"{part}/" for part in parts)
        found = f"several: {', '.join(map(str, roots))}" if roots else "none"
        raise FileNotFoundError(
            f"Looked for a folder that holds {wanted}, in {manual_dir} and one below it, and found "
            f"{found}. Give the one folder that holds {wanted} as manual_dir."
        )
    return roots[0]


def find_folder(*candidates: Path) -> Path:
    """The first of `candidates` that is a folder.

    Raises:
      FileNotFoundError: when none is.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"The data set is not complete: there is no folder {' nor '.join(map(str, candidates))}. "
        "Sketches and photos both are needed; unpack what is missing."
    )


def spellings(folder: Path) -> tuple[Path, Path]:
    """`<folder>_ready`, which the published file lists name, then `<folder>`."""
    return folder.with_name(f"{folder.name}_ready"), folder


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_images(
    folder: Path, root: Path, classes: Collection[str], *, nested: bool = False
) -> tuple[list[ImageFile], list[str]]:
    """Lists `folder/<class>/<image>`, sorted, and the names of all files that are none of those.

    Hidden files count as no images: on a Mac, every copied image has a hidden companion.

    Args:
      folder: what to list.
      root: the folder that names are relative to.
      classes: what the class folders must be called.
      nested: whether images may also lie deeper: `folder/<class>/**/<image>`.

    Raises:
      ValueError: when the class folders are not exactly `classes`, some hold no image, or names
        are no UTF-8 or go in circles.
    """
    found = class_folders(folder)
    splits.check_classes(found, classes, str(folder))
    files: list[ImageFile] = []
    empty: list[str] = []
    prefix = folder.relative_to(root).as_posix()
    strays = {path.name for path in folder.iterdir()} - set(found)
    ignored = [f"{prefix}/{name}" for name in sorted(strays)]
    for class_name in found:
        count = len(files)
        for name, entry in _walk(folder / class_name, f"{prefix}/{class_name}", nested):
            is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
            if is_image and not entry.name.startswith(".") and not entry.is_dir():
                files.append(ImageFile(root, name, class_name, _size(entry)))
            else:
                ignored.append(name)
        if len(files) == count:
            empty.append(class_name)
    if empty:
        splits.raise_or_collect(
            ValueError(
                f"{len(empty)} of {len(found)} class folders in {folder} hold no image "
                f"({', '.join(IMAGE_SUFFIXES)}): {', '.join(empty)}. The archive may be unpacked "
                "only in part: unpack it again, or fill the folders."
            )
        )
    return sorted(files, key=lambda file: file.name), ignored


def _walk(folder: Path, name: str, nested: bool) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Everything in `folder`, sorted, with its name relative to the root of the data set."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        below = f"{name}/{entry.name}"
        try:
            below.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The name {entry.name!r} in {folder} is not UTF-8, which the prepared data set "
                "cannot store. Rename it."
            ) from error
        if not (nested and entry.is_dir()) or entry.name.startswith("."):
            yield below, entry
        elif entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
            raise ValueError(
                f"The link {entry.path} leads back to a folder above it, and so around forever. "
                "Remove it."
            )
        else:
            yield from _walk(Path(entry.path), below, nested)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:  # A broken link: reading it fails by name, beside all other unreadable files.
        return 0
