"""Lists, checks and fingerprints the image files of an unpacked data set.

Shared by the builders of manually downloaded data sets (Sketchy, TU-Berlin, QuickDraw, a user's own
images). No file is dropped silently: a class without images is an error, and unreadable files and
files that are not images are reported.
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
"""In lower case; comparisons ignore case, because TU-Berlin Extended mixes .jpg and .JPEG."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
    """One image on disk.

    Attributes:
      root: root folder of the data set.
      name: path relative to the root, with forward slashes.
      class_name: name of its class folder.
      size: bytes.
      instance: id of the photo that it is or was drawn from; "" if unknown.
    """

    root: Path
    name: str
    class_name: str
    size: int
    instance: str = ""

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.root / self.name

    def read(self) -> bytes:
        """The encoded image.

        Raises:
          OSError: if the file cannot be read.
        """
        return self.path.read_bytes()


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes:
      root: the folder that names are relative to.
      images: the images of each modality, sorted by name.
      ignored: names of files that are not images or not in a class folder.
    """

    root: Path
    images: Mapping[images.Modality, Sequence[ImageFile]]
    ignored: Sequence[str] = ()

    @property
    def file_count(self) -> int:
        """Number of images of all modalities."""
        return sum(len(files) for files in self.images.values())

    @property
    def fingerprint(self) -> str:
        """Digest of the name, size and instance of every image."""
        digest = hashlib.sha256()
        for modality, files in sorted(self.images.items()):
            for file in files:
                line = f"{modality}\t{file.name}\t{file.size}\t{file.instance}\n"
                digest.update(line.encode())
        return digest.hexdigest()


def find_root(manual_dir: Path, *parts: str) -> Path:
    """The folder that contains one of `parts`: `manual_dir` or one of its subfolders.

    Raises:
      FileNotFoundError: if there is no such folder, or more than one.
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
            f"Expected one folder that contains {wanted}, in {manual_dir} or its subfolders, but "
            f"found {found}. Set manual_dir to the folder that contains {wanted}."
        )
    return roots[0]


def find_folder(*candidates: Path) -> Path:
    """The first of `candidates` that is a folder.

    Raises:
      FileNotFoundError: if none is.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"The data set is not complete: there is no folder {' or '.join(map(str, candidates))}. "
        "Both sketches and photos are required. Unpack the missing archive."
    )


def spellings(folder: Path) -> tuple[Path, Path]:
    """`<folder>_ready`, the name in the published file lists, and `<folder>`."""
    return folder.with_name(f"{folder.name}_ready"), folder


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the folders in `folder`, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_images(
    folder: Path, root: Path, classes: Collection[str], *, nested: bool = False
) -> tuple[list[ImageFile], list[str]]:
    """Lists the images `folder/<class>/<image>`, sorted, and the names of all other files.

    Hidden files are not images: macOS writes a hidden file for every copied image.

    Args:
      folder: folder to list.
      root: the folder that names are relative to.
      classes: known names of the class folders. Some may be missing, with a warning: evaluation
        needs only the unseen classes.
      nested: whether to list subfolders too: `folder/<class>/**/<image>`.

    Raises:
      ValueError: if a class folder is not one of `classes`, if one contains no image, if a name is
        not UTF-8, or if a link points to a parent folder.
    """
    found = class_folders(folder)
    splits.check_classes(found, classes, str(folder), allow_missing=True)
    if missing := sorted(set(classes) - set(found)):
        logger.warning(
            "%d of %d classes have no folder in %s, so they can neither be trained on nor "
            "evaluated: %s.",
            len(missing),
            len(classes),
            folder,
            ", ".join(missing),
        )
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
                f"{len(empty)} of {len(found)} class folders in {folder} contain no image "
                f"({', '.join(IMAGE_SUFFIXES)}): {', '.join(empty)}. The archive may be unpacked "
                "incompletely: unpack it again, or add images."
            )
        )
    return sorted(files, key=lambda file: file.name), ignored


def _walk(folder: Path, name: str, nested: bool) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """All entries in `folder`, sorted, with their names relative to the root of the data set."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        below = f"{name}/{entry.name}"
        try:
            below.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The name {entry.name!r} in {folder} is not UTF-8 and cannot be stored in the "
                "prepared data set. Rename the file."
            ) from error
        if not (nested and entry.is_dir()) or entry.name.startswith("."):
            yield below, entry
        elif entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
            raise ValueError(
                f"The link {entry.path} points to one of its parent folders. Remove it."
            )
        else:
            yield from _walk(Path(entry.path), below, nested)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:  # A broken link; it is reported later as unreadable.
        return 0
