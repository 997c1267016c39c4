"""Finds a user's photo files, and reads each in bounded memory.

Folders of photos also contain web pages named .jpg, empty files, panoramas of 200 megapixels,
cyclic links, and folders without read permission. None of them ends a run: each is skipped and
reported with the reason.
"""

import collections
import hashlib
import io
import itertools
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from data_pipelines import images, paths
from data_pipelines.images import UnreadableImageError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
"""File name extensions of photos, in any case."""

# Pillow decodes these itself. EPS, for example, would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

LARGEST_FILE = 2**28
"""Size limit of a file, in bytes."""

LARGEST_IMAGE = 50_000_000
"""Pixels up to which an image is decoded in full. Larger JPEGs are scaled down while decoding."""

LARGE_IMAGE = 12_000_000
"""Pixels above which images are decoded one at a time."""

READ_AHEAD = 64
"""Photos that are read ahead of the caller."""

SMALLEST = 32
"""Minimum side of a photo, in pixels."""

THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""

Places = Sequence[str | os.PathLike] | str | os.PathLike
"""Folders (searched recursively, links followed), glob patterns and files."""

_LARGE_IMAGE_LOCK = threading.Lock()


class Candidate(NamedTuple):
    """A file that may be a photo: path, size in bytes, modification time in nanoseconds."""

    file: Path
    size: int
    modified: int


class Found(NamedTuple):
    """The result of `find`.

    Attributes:
      files: in order, without duplicates.
      refused: paths that could not be inspected, each with the reason.
      others: number of files whose names are not those of photos.
      links: number of links to folders that were already searched.
      places: absolute paths of the places that were searched.
    """

    files: list[Candidate]
    refused: list[tuple[Path, str]]
    others: int
    links: int
    places: list[Path]


class Photo(NamedTuple):
    """A photo file that was read.

    Attributes:
      digest: SHA-256 of the file.
      image: prepared for the network; None if the digest was already known.
      thumbnail: JPEG.
      width, height: of the full image in pixels, after EXIF rotation.
    """

    digest: bytes
    image: UInt8[np.ndarray, "s s 3"] | None = None
    thumbnail: bytes = b""
    width: int = 0
    height: int = 0


def name_of(file: Path) -> str:
    """A path as text for display; bytes that are not UTF-8 are written as hexadecimal digits."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def identity(file: Path) -> str:
    """The id of a file in an index: a digest of its absolute path, 24 hexadecimal digits."""
    return hashlib.blake2b(os.fsencode(file), digest_size=12).hexdigest()


def absolute(place: str | os.PathLike) -> Path:
    """An absolute path without `..`; symbolic links are not resolved. See `paths.local`."""
    return Path(os.path.abspath(paths.local(place, "--photos")))  # noqa: PTH100 - resolve() follows links


def listed(places: "Places") -> list[str | os.PathLike]:
    """Places as a list; a single place becomes a list of one."""
    return [places] if isinstance(places, str | os.PathLike) else [*places]


def find(places: "Places") -> Found:
    """Finds the photo files in folders (searched recursively, links followed), patterns and names.

    Raises:
      ValueError: no place is given.
      FileNotFoundError: a name does not exist, or a pattern matches nothing.
    """
    places = listed(places)
    if not places:
        raise ValueError("--photos is missing: give, for example, --photos=album.")
    files: dict[Path, Candidate] = {}
    refused: list[tuple[Path, str]] = []
    visited: set[tuple[int, int]] = set()
    others = links = 0

    def add(path: Path) -> None:
        try:
            status = path.stat()
        except OSError as error:
            refused.append((path, _message(error)))
            return
        if stat.S_ISREG(status.st_mode):
            files[path] = Candidate(path, status.st_size, status.st_mtime_ns)
        else:
            refused.append((path, "it is not a regular file"))

    def failed(error: OSError) -> None:
        refused.append((Path(error.filename), f"the folder cannot be opened: {_message(error)}"))

    def walk(folder: Path) -> None:
        nonlocal others, links
        for here, folders, names in os.walk(folder, followlinks=True, onerror=failed):
            try:
                status = os.stat(here)  # noqa: PTH116 - `here` is a str of os.walk
            except OSError as error:
                failed(error)
                continue
            if (status.st_dev, status.st_ino) in visited:  # so that cyclic links end
                links += 1
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders.sort()
            for path in (Path(here, name) for name in sorted(names)):
                if path.suffix.lower() in SUFFIXES:
                    add(path)
                else:
                    others += 1

    for place in places:
        path = absolute(place)
        matches = [path] if path.exists() else _matching(path)
        if not matches:
            raise FileNotFoundError(f"--photos={place}: no file, folder or match with this name.")
        for match in matches:
            if match.is_dir():
                walk(match)
            else:
                add(match)
    return Found([*files.values()], refused, others, links, [absolute(place) for place in places])


def within(file: Path, places: Sequence[Path]) -> bool:
    """Whether a file is one of the places or is below one of them."""
    return any(file == place or place in file.parents for place in places)


def _matching(pattern: Path) -> list[Path]:
    """The paths that match a pattern such as album/**/*.jpg."""
    plain = [*itertools.takewhile(lambda part: not set(part) & {*"*?["}, pattern.parts)]
    if len(plain) == len(pattern.parts):
        return []
    return sorted(Path(*plain).glob(str(Path(*pattern.parts[len(plain) :]))))


def read(file: Path, size: int, known: Callable[[bytes], bool] = lambda digest: False) -> Photo:
    """Reads a photo and prepares it for a network.

    Args:
      file: the file.
      size: side of the prepared image in pixels.
      known: returns whether a file with this SHA-256 does not have to be decoded.

    Raises:
      UnreadableImageError: the file cannot be used as a photo; the message is the reason.
      OSError: the file cannot be read.
    """
    encoded = _contents(file)
    digest = hashlib.sha256(encoded).digest()
    if known(digest):
        return Photo(digest)
    image, (width, height) = _decoded(encoded)
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return Photo(digest, images.prepare_photo(image, size), buffer.getvalue(), width, height)


def read_all(
    files: Sequence[Path], size: int, known: Callable[[bytes], bool] = lambda digest: False
) -> Iterator[Photo | Exception]:
    """Reads photos in threads, ahead of the caller; yields them, or their errors, in order.

    Arguments as for `read`.
    """

    def one(file: Path) -> Photo | Exception:
        try:
            return read(file, size, known)
        except Exception as error:  # an unusable file must not end the run
            return error

    threads = max(2, os.cpu_count() or 1)
    pending: collections.deque[Future[Photo | Exception]] = collections.deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads, "photos") as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            for file in files:
                pending.append(pool.submit(one, file))
                if len(pending) > READ_AHEAD + threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def reason(error: Exception) -> str:
    """Why a photo could not be read, for the user."""
    if isinstance(error, UnreadableImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it was deleted before it was read"
    if isinstance(error, OSError):
        return f"it cannot be read: {_message(error)}"
    return f"it cannot be read ({type(error).__name__}: {error})"


def prepared(file: Path, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Only the image of a photo, as `read` returns it.

    Raises:
      UnreadableImageError, OSError: as `read`.
    """
    return images.prepare_photo(decoded(file), size)


def decoded(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file; a very large JPEG is scaled down.

    Raises:
      UnreadableImageError, OSError: as `read`.
    """
    image, _ = _decoded(_contents(file))
    return image


def _contents(file: Path) -> bytes:
    with file.open("rb") as stream:
        encoded = stream.read(LARGEST_FILE + 1)
    if not encoded:
        raise UnreadableImageError("the file is empty (0 bytes)")
    if len(encoded) > LARGEST_FILE:
        raise UnreadableImageError(f"the file is larger than {LARGEST_FILE / 2**20:.0f} MiB")
    return encoded


def _decoded(encoded: bytes) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """An image, scaled down if it is a large JPEG, and the width and height of the original."""
    jpeg, (width, height) = _size(encoded)
    if min(width, height) < SMALLEST:
        raise UnreadableImageError(
            f"its {width} x {height} pixels are too small (the minimum is {SMALLEST} on each side)"
        )
    if width * height <= LARGE_IMAGE:
        image = images.decode(encoded)
        return image, image.shape[1::-1]
    with _LARGE_IMAGE_LOCK:
        if width * height <= LARGEST_IMAGE:
            image = images.decode(encoded)
            return image, image.shape[1::-1]
        if jpeg:
            image = _reduced(encoded)
            turned = (image.shape[1] > image.shape[0]) != (width > height)
            return image, (height, width) if turned else (width, height)
    raise UnreadableImageError(
        f"its {width} x {height} pixels are more than {LARGEST_IMAGE / 1e6:.0f} million: save it "
        "smaller, or as a baseline (not progressive) JPEG, which is scaled down while decoding"
    )


def _size(encoded: bytes) -> tuple[bool, tuple[int, int]]:
    """Whether an image can be scaled down while decoding, and its width and height.

    Reads only the header.
    """
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            head = JpegImagePlugin.JpegImageFile(io.BytesIO(encoded))
            # Progressive JPEGs are decoded in full before they are scaled.
            return "progressive" not in head.info, head.size
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            return False, image.size
    except UnidentifiedImageError as error:
        start = encoded[:64].lstrip().lower()
        page = " (it is a web page)" if start.startswith((b"<!doctype", b"<html")) else ""
        raise UnreadableImageError(f"it is not an image of a known format{page}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"it has too many pixels: {error}") from error
    except Exception as error:  # Pillow's parsers raise many types of errors
        raise UnreadableImageError(
            f"its header cannot be read ({type(error).__name__}: {error})"
        ) from error


def _reduced(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """A JPEG decoded at about an eighth of its width and height."""
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(encoded))
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # Pillow's codecs raise OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(
            f"its {len(encoded)} bytes do not decode ({type(error).__name__}: {error})"
        ) from error


def _message(error: OSError) -> str:
    return error.strerror or str(error)
