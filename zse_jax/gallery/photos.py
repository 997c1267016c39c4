"""Finds a user's photo files, and reads each in bounded memory.

Folders of photos also contain web pages named .jpg, empty files, panoramas of 200 megapixels,
cyclic links, and folders without read permission. None of them ends a run: each is skipped and
reported with the reason.
"""

import collections
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines import images, paths
from data_pipelines.files import is_system, message
from data_pipelines.files import walk as walked
from data_pipelines.images import Preprocessing, UnreadableImageError
from data_pipelines.terminal import printable

READ_AHEAD = 64
"""Photos that are read ahead of the caller."""

SMALLEST = 32
"""Minimum side of a photo, in pixels."""

THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""

Places = Sequence[str | os.PathLike] | str | os.PathLike
"""Folders (searched recursively, links followed), glob patterns and files."""


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
      system: number of files and folders that were left out because they are not the user's:
        hidden, trash, thumbnails (`data_pipelines.files.is_system`).
      links: number of links to folders that were already searched.
      places: absolute paths of the places that were searched.
    """

    files: list[Candidate]
    refused: list[tuple[Path, str]]
    others: int
    system: int
    links: int
    places: list[Path]


class Photo(NamedTuple):
    """A photo file that was read.

    Attributes:
      digest: SHA-256 of the file.
      image: prepared for the network; None if the digest was already known.
      thumbnail: JPEG.
      width, height: of the full image in pixels, after EXIF rotation.
      damaged_metadata: whether its metadata could not be read, so that it may lie on its side.
    """

    digest: bytes
    image: UInt8[np.ndarray, "s s 3"] | None = None
    thumbnail: bytes = b""
    width: int = 0
    height: int = 0
    damaged_metadata: bool = False


def name_of(file: Path) -> str:
    """A path as text for display, see `data_pipelines.terminal.printable`."""
    return printable(file)


def state_of(status: os.stat_result) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds, which change when a file changes.

    Times are limited to 64 bits, the years 1677 to 2262, because tables store them so.
    """
    return status.st_size, min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1)


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
    counts: collections.Counter[str] = collections.Counter()

    def add(path: Path, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            files[path] = Candidate(path, *state_of(status))
        else:
            refused.append((path, "it is not a regular file"))

    def walk(folder: Path) -> None:
        for entry in walked(folder, visited):
            named = entry.path.name.lower().endswith(images.SUFFIXES)
            if entry.kind == "closed" or (entry.kind == "failed" and named):
                refused.append((entry.path, entry.reason))
            elif entry.status is not None and named:
                add(entry.path, entry.status)
            else:
                counts[entry.kind] += 1

    for place in places:
        path = absolute(place)
        matches, system = ([path], 0) if path.exists() else _matching(path)
        counts["system"] += system
        if not matches:
            raise FileNotFoundError(f"--photos={place}: no file, folder or match with this name.")
        for match in matches:
            try:
                status = match.stat()
            except OSError as error:
                refused.append((match, message(error)))
                continue
            if stat.S_ISDIR(status.st_mode):
                walk(match)
            else:
                add(match, status)
    return Found(
        [*files.values()],
        refused,
        others=counts["file"] + counts["other"] + counts["failed"],
        system=counts["system"],
        links=counts["again"],
        places=[absolute(place) for place in places],
    )


def within(file: Path, places: Sequence[Path]) -> bool:
    """Whether a file is one of the places or is below one of them."""
    return any(file == place or place in file.parents for place in places)


def _matching(pattern: Path) -> tuple[list[Path], int]:
    """The paths that match a pattern such as album/**/*.jpg, and how many others are the system's.

    Brackets in the name of an existing folder are part of the name: "album [2020]/*.jpg".
    """
    folder, rest = Path(pattern.anchor), [*pattern.parts[1:]]
    while rest and (folder / rest[0]).exists():
        folder /= rest.pop(0)
    if not any(set(part) & {*"*?["} for part in rest):
        return [], 0
    for form in ("/".join(rest), "/".join(rest).replace("[", "[[]")):
        found = sorted(folder.glob(form))
        kept = [path for path in found if not any(map(is_system, path.relative_to(folder).parts))]
        if found:
            return kept, len(found) - len(kept)
    return [], 0


def read(
    file: Path,
    size: int,
    preprocessing: Preprocessing = "crop",
    known: Callable[[bytes], bool] = lambda digest: False,
) -> Photo:
    """Reads a photo and prepares it for a network.

    Args:
      file: the file.
      size: side of the prepared image in pixels.
      preprocessing: that of the network's system.
      known: returns whether a file with this SHA-256 does not have to be decoded.

    Raises:
      UnreadableImageError: the file cannot be used as a photo; the message is the reason.
      OSError: the file cannot be read.
    """
    encoded = images.read_file(file)
    digest = hashlib.sha256(encoded).digest()
    if known(digest):
        return Photo(digest)
    found = images.decode_file(encoded, smallest=SMALLEST)
    small = Image.fromarray(found.rgb)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return Photo(
        digest,
        images.prepare_photo(found.rgb, size, preprocessing),
        buffer.getvalue(),
        found.width,
        found.height,
        found.damaged_metadata,
    )


def read_all(
    files: Sequence[Path],
    size: int,
    preprocessing: Preprocessing = "crop",
    known: Callable[[bytes], bool] = lambda digest: False,
) -> Iterator[Photo | Exception]:
    """Reads photos in threads, ahead of the caller; yields them, or their errors, in order.

    Arguments as for `read`.
    """

    def one(file: Path) -> Photo | Exception:
        try:
            return read(file, size, preprocessing, known)
        except Exception as error:  # an unusable file must not end the run
            return error

    threads = max(2, os.cpu_count() or 1)
    pending: collections.deque[Future[Photo | Exception]] = collections.deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads, "photos") as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata; `Photo` reports it
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
        return f"it cannot be read: {message(error)}"
    return f"it cannot be read ({type(error).__name__}: {error})"


def prepared(
    file: Path, size: int, preprocessing: Preprocessing = "crop"
) -> UInt8[np.ndarray, "s s 3"]:
    """Only the image of a photo, as `read` returns it.

    Raises:
      UnreadableImageError, OSError: as `read`.
    """
    return images.prepare_photo(decoded(file), size, preprocessing)


def decoded(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file; a very large JPEG is scaled down.

    Raises:
      UnreadableImageError, OSError: as `read`.
    """
    return images.decode_file(images.read_file(file), smallest=SMALLEST).rgb
