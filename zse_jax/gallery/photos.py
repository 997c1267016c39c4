"""A user's photo files: finding them, and reading each in bounded memory.

Folders hold whatever they hold: pages named .jpg, empty files, panoramas of 200 megapixels, links
that lead in circles, folders that nobody may open. Nothing of it ends an indexing; each is named
with its reason, and kept out.
"""

import hashlib
import io
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from data_pipelines import images

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
"""What names of photos end with, in any case."""

# Their codecs are in Pillow itself: no file starts another program (as EPS would).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

LARGEST_FILE = 2**28
"""Bytes of a file that is read at all."""

LARGEST_IMAGE = 50_000_000
"""Pixels of an image that is decoded in full. Larger JPEGs are scaled down while they decode."""

LARGE_IMAGE = 12_000_000
"""Pixels from which on images are decoded one at a time."""

SMALLEST = 32
"""Shortest side of a photo that there is something to see in, in pixels."""

THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""

Places = Sequence[str | os.PathLike] | str | os.PathLike
"""Folders (searched through, links followed), patterns and files."""

_ONE_LARGE = threading.Lock()


class UnfitError(ValueError):
    """A file that cannot be a photo of the index; the message is the reason, without its name."""


class Candidate(NamedTuple):
    """A file that may be a photo: where, its bytes, and when it was written, in nanoseconds."""

    file: Path
    size: int
    modified: int


class Found(NamedTuple):
    """What there is in the places that were searched.

    Attributes:
      files: in order, each once.
      refused: what could not even be looked at, with the reason.
      others: how many files are no photos by their names.
      links: how many links to folders lead to what was searched already.
      places: where was searched.
    """

    files: list[Candidate]
    refused: list[tuple[Path, str]]
    others: int
    links: int
    places: list[Path]


class Photo(NamedTuple):
    """A photo that was read.

    Attributes:
      digest: SHA-256 of the file.
      image: prepared for the network; None where the digest was known before.
      thumbnail: JPEG.
      width, height: of the whole image, in pixels, as a viewer shows it.
    """

    digest: bytes
    image: UInt8[np.ndarray, "s s 3"] | None = None
    thumbnail: bytes = b""
    width: int = 0
    height: int = 0


def name_of(file: Path) -> str:
    """A path for people; bytes that are no UTF-8 are written as hexadecimal digits."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def identity(file: Path) -> str:
    """What a file is known by in an index: a digest of its absolute path, 24 digits."""
    return hashlib.blake2b(os.fsencode(file), digest_size=12).hexdigest()


def absolute(place: str | os.PathLike) -> Path:
    """A path from the root, without `..`; links stay."""
    return Path(os.path.abspath(Path(place).expanduser()))  # noqa: PTH100 - resolve() follows links


def listed(places: "Places") -> list[str | os.PathLike]:
    """Places, where one may stand by itself."""
    return [places] if isinstance(places, str | os.PathLike) else [*places]


def find(places: "Places") -> Found:
    """The photo files in folders (searched through, links followed), patterns and names.

    Raises:
      ValueError: no place is given.
      FileNotFoundError: a name or pattern stands for nothing.
    """
    places = listed(places)
    if not places:
        raise ValueError("Say which photos, such as --photos=album. See --help.")
    files: dict[Path, Candidate] = {}
    found = Found([], [], 0, 0, [absolute(place) for place in places])
    others = links = 0
    visited: set[tuple[int, int]] = set()
    for place in places:
        for path, reason in _expanded(place, visited):
            if reason == "other":
                others += 1
            elif reason == "link":
                links += 1
            elif reason:
                found.refused.append((path, reason))
            elif path not in files:
                try:
                    status = path.stat()
                except OSError as error:
                    found.refused.append((path, _said(error)))
                    continue
                if not stat.S_ISREG(status.st_mode):
                    found.refused.append((path, "it is no regular file"))
                    continue
                files[path] = Candidate(path, status.st_size, status.st_mtime_ns)
    found.files.extend(files.values())
    return found._replace(others=others, links=links)


def within(file: Path, places: Sequence[Path]) -> bool:
    """Whether a file is one of the places or lies below one."""
    return any(file == place or place in file.parents for place in places)


def _expanded(
    place: str | os.PathLike, visited: set[tuple[int, int]]
) -> Iterator[tuple[Path, str]]:
    """Paths that a place stands for, each with what is wrong with it ("": nothing)."""
    if "://" in os.fspath(place):
        raise ValueError(
            f"--photos={place}: photos are read from a disk; mount or copy them. (An index may lie "
            "in a bucket.)"
        )
    path = absolute(place)
    if path.is_dir():
        yield from _walk(path, visited)
    elif path.is_file():
        yield path, ""
    else:
        matching = _matching(path)
        if not matching:
            raise FileNotFoundError(f"--photos={place} is no file, no folder, and matches nothing.")
        for match in matching:
            yield from _walk(match, visited) if match.is_dir() else iter([(match, "")])


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """What is in a folder and below, each real folder once, so that links make no circles."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in visited:
                yield here, "link"
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield here, f"the folder cannot be opened: {_said(error)}"
            continue
        below = []
        for entry in inside:
            path = here / entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if is_folder:
                below.append(path)
            else:
                yield path, "" if path.suffix.lower() in SUFFIXES else "other"
        waiting.extend(reversed(below))


def _matching(pattern: Path) -> list[Path]:
    """What a pattern such as album/**/*.jpg matches."""
    plain = [*itertools.takewhile(lambda part: not set(part) & {*"*?["}, pattern.parts)]
    if len(plain) == len(pattern.parts):
        return []
    return sorted(Path(*plain).glob(str(Path(*pattern.parts[len(plain) :]))))


def read(file: Path, size: int, known: Callable[[bytes], bool] = lambda digest: False) -> Photo:
    """A photo, prepared for a network that takes images of `size` pixels.

    Args:
      file: the file.
      size: side of the prepared image.
      known: whether a file of this SHA-256 need not be decoded.

    Raises:
      UnfitError: it is no photo that can be used; says why.
      OSError: it cannot be read.
    """
    encoded = _contents(file)
    digest = hashlib.sha256(encoded).digest()
    if known(digest):
        return Photo(digest)
    return Photo(digest, *_prepared(encoded, size))


def prepared(file: Path, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """The image of a photo as `read` gives it, and nothing else of it.

    Raises:
      UnfitError, OSError: as `read`.
    """
    return images.prepare_photo(decoded(file), size)


def decoded(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file, of which a very large one may be reduced.

    Raises:
      UnfitError, OSError: as `read`.
    """
    image, _ = _decoded(_contents(file))
    return image


def _contents(file: Path) -> bytes:
    with file.open("rb") as stream:
        encoded = stream.read(LARGEST_FILE + 1)
    if not encoded:
        raise UnfitError("the file is empty (0 bytes)")
    if len(encoded) > LARGEST_FILE:
        raise UnfitError(f"it is larger than {LARGEST_FILE / 2**20:.0f} MiB")
    return encoded


def _prepared(encoded: bytes, size: int) -> tuple[UInt8[np.ndarray, "s s 3"], bytes, int, int]:
    image, (width, height) = _decoded(encoded)
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return images.prepare_photo(image, size), buffer.getvalue(), width, height


def _decoded(encoded: bytes) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """An image, of which a large one may be reduced, and the size of the whole."""
    jpeg, (width, height) = _size(encoded)
    if min(width, height) < SMALLEST:
        raise UnfitError(
            f"its {width} x {height} pixels are too small to show anything (at least {SMALLEST} on "
            "each side)"
        )
    if width * height <= LARGE_IMAGE:
        return _by_reader(encoded, images.decode)
    with _ONE_LARGE:
        if width * height <= LARGEST_IMAGE:
            return _by_reader(encoded, images.decode)
        if jpeg:
            image, _ = _by_reader(encoded, _reduced)
            turned = (image.shape[1] > image.shape[0]) != (width > height)
            return image, (height, width) if turned else (width, height)
    raise UnfitError(
        f"its {width} x {height} pixels are more than the {LARGEST_IMAGE / 1e6:.0f} million that "
        "are decoded in full: save it smaller, or as a plain (not progressive) JPEG"
    )


def _size(encoded: bytes) -> tuple[bool, tuple[int, int]]:
    """Whether an image can be reduced while it is decoded, and its width and height.

    Only the head of the file is looked at.
    """
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            head = JpegImagePlugin.JpegImageFile(io.BytesIO(encoded))
            # A progressive one is decoded in full before it is scaled.
            return "progressive" not in head.info, head.size
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            return False, image.size
    except UnidentifiedImageError as error:
        start = encoded[:64].lstrip().lower()
        page = " (it is a web page)" if start.startswith((b"<!doctype", b"<html")) else ""
        raise UnfitError(f"it is no image of a known format{page}") from error
    except Image.DecompressionBombError as error:
        raise UnfitError(f"it has too many pixels: {error}") from error
    except Exception as error:  # Pillow's parsers raise whatever a damaged head leads to
        raise UnfitError(f"its head cannot be read ({type(error).__name__}: {error})") from error


def _by_reader(
    encoded: bytes, reader: Callable[[bytes], UInt8[np.ndarray, "h w 3"]]
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    try:
        image = reader(encoded)
    except images.UnreadableImageError as error:
        raise UnfitError(str(error)) from error
    return image, (image.shape[1], image.shape[0])


def _reduced(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """A JPEG at an eighth of its sides or more, decoded at that size."""
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(encoded))
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # Pillow's codecs raise OSError, SyntaxError, struct.error, ...
        raise images.UnreadableImageError(
            f"its {len(encoded)} bytes do not decode ({type(error).__name__}: {error})"
        ) from error


def _said(error: OSError) -> str:
    return error.strerror or str(error)
