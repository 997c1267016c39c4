"""Lists, checks and fingerprints the image files of an unpacked data set.

Shared by the builders of manually downloaded data sets (Sketchy, TU-Berlin, QuickDraw, a user's own
images). No file is dropped silently: a class without images is an error, and unreadable files and
files that are not images are reported.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from data_pipelines import class_names, images, splits
from data_pipelines.files import Entry, contents, walk
from data_pipelines.terminal import printable

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
    """One image on disk.

    Attributes:
      root: root folder of the data set.
      name: path relative to the root, with forward slashes.
      class_name: name of its class folder, as `class_names.normal` writes it.
      size: bytes.
      instance: id of the photo that it is or was drawn from; "" if unknown.
      times: of the last modification and of the last change of the inode, in ns.
    """

    root: Path
    name: str
    class_name: str
    size: int
    instance: str = ""
    times: tuple[int, int] = dataclasses.field(default=(0, 0), kw_only=True)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.root / self.name

    def read(self) -> bytes:
        """The encoded image.

        Raises:
          UnreadableImageError, OSError: as `images.read_file`.
        """
        return images.read_file(self.path)

    def digest(self) -> str:
        """A digest of the bytes of the file, as `content_digest`; "" if it cannot be read."""
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, _hash).hexdigest()
        except OSError:
            return ""


_hash = functools.partial(hashlib.blake2b, digest_size=16)


def content_digest(encoded: bytes) -> str:
    """A digest of the bytes of a file."""
    return _hash(encoded).hexdigest()


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
    names = contents(manual_dir) if manual_dir.is_dir() else []
    roots = [manual_dir / name for name in names if fits(manual_dir / name)]
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


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its folders in `folder`, sorted; without those of the system.

    A class has several folders if their names differ only in their encoding, see
    `class_names.normal`.
    """
    found: dict[str, list[Path]] = {}
    for name in contents(folder):
        if (folder / name).is_dir():
            found.setdefault(class_names.normal(name), []).append(folder / name)
    return dict(sorted(found.items()))


def list_images(
    folder: Path,
    root: Path,
    classes: Collection[str],
    *,
    nested: bool = False,
    elsewhere: Collection[str] = (),
) -> tuple[list[ImageFile], list[str]]:
    """Lists the images `folder/<class>/<image>`, sorted, and the names of all other files.

    Files and folders of the system (hidden files, thumbnails, trash) are not images: see
    `data_pipelines.files.is_system`.

    Args:
      folder: folder to list.
      root: the folder that names are relative to.
      classes: known names of the class folders. Some may be missing, with a warning: evaluation
        needs only the unseen classes.
      nested: whether to list subfolders too: `folder/<class>/**/<image>`.
      elsewhere: classes with such images in another folder, which may be missing without a warning.

    Raises:
      ValueError: if a class folder is not one of `classes`, if one contains no image, if a name is
        not UTF-8, if a link points to a parent folder, or if a subfolder cannot be opened.
    """
    found = class_folders(folder)
    splits.check_classes(found, classes, str(folder), allow_missing=True)
    if missing := sorted(set(classes) - set(found) - set(elsewhere)):
        logger.warning(
            "%d of %d classes have no folder in %s; without sketches or photos in another folder, "
            "they can neither be trained on nor evaluated: %s.",
            len(missing),
            len(classes),
            folder,
            ", ".join(missing),
        )
    listed: list[ImageFile] = []
    empty: list[str] = []
    inside = {path.name for paths in found.values() for path in paths}
    strays = sorted({path.name for path in folder.iterdir()} - inside)
    ignored = [_shown(folder / name, root) for name in strays]
    for class_name, paths in found.items():
        count = len(listed)
        for entry in (entry for path in paths for entry in walk(path, nested=nested)):
            if not _is_image(entry, root):
                ignored.append(_shown(entry.path, root))
                continue
            name, status = entry.path.relative_to(root).as_posix(), entry.status
            size = status.st_size if status else 0  # a broken link is unreadable
            times = (status.st_mtime_ns, status.st_ctime_ns) if status else (0, 0)
            listed.append(ImageFile(root, name, class_name, size, times=times))
        if len(listed) == count:
            empty.append(class_name)
    if empty:
        splits.raise_or_collect(
            ValueError(
                f"{len(empty)} of {len(found)} class folders in {folder} contain no image "
                f"({', '.join(images.SUFFIXES)}): {', '.join(empty)}. The archive may be unpacked "
                "incompletely: unpack it again, or add images."
            )
        )
    return sorted(listed, key=lambda file: file.name), ignored


def _is_image(entry: Entry, root: Path) -> bool:
    """Whether an entry is an image by its name and can be stored.

    Raises:
      ValueError: it is a link to one of its parent folders, a folder that cannot be opened, or an
        image whose name is not UTF-8 (and errors are not collected).
    """
    path = entry.path
    if entry.kind == "closed":
        problem = f"{path}: {entry.reason}. Change its permissions, or remove it."
    elif entry.kind == "again" and path.parent.resolve().is_relative_to(path.resolve()):
        problem = f"The link {path} points to one of its parent folders. Remove it."
    elif entry.kind not in ("file", "failed") or not path.name.lower().endswith(images.SUFFIXES):
        return False
    elif not _is_utf8(path.relative_to(root)):
        problem = (
            f"The name {path.name!r} in {path.parent} is not UTF-8 and cannot be stored in the "
            "prepared data set. Rename the file."
        )
    else:
        return True
    splits.raise_or_collect(ValueError(problem))
    return False


def _is_utf8(path: Path) -> bool:
    name = str(path)
    return name.encode(errors="ignore").decode() == name


def _shown(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())
