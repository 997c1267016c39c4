"""Finds a user's photo files, and reads each in bounded memory.

Folders of photos also contain web pages named .jpg, empty files, panoramas of 200 megapixels,
cyclic links, and folders without read permission. None of them ends a run: each is skipped and
reported with the reason.
"""

import collections
import contextlib
import datetime
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from data_pipelines import images, paths
from data_pipelines.files import Entry, is_system, message
from data_pipelines.files import walk as walked
from data_pipelines.images import Preprocessing, UnreadableImageError
from data_pipelines.terminal import printable
from zse_jax.gallery import raw
from zse_jax.gallery.tables import BUCKETS

VIDEOS = (
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".3gp", ".mts", ".m2ts", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".ogv"),
)
"""File name extensions of videos, in lower case."""

READ_AHEAD = 64
"""Photos that are read ahead of the caller."""

SMALLEST = 32
"""Minimum side of a photo, in pixels."""

THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""

File = Any
"""A `pathlib.Path`; or, of an object in a bucket, a `upath.UPath`, which has the same methods."""

Places = Sequence[str | os.PathLike] | str | os.PathLike
"""Folders (searched recursively, links followed), glob patterns and files; folders and objects in
a bucket by URL: s3://bucket/album."""


INCLUDE_HIDDEN = "Also index hidden files, and folders of trash, thumbnails and version control."
"""The help of the flag --include_hidden."""


class Candidate(NamedTuple):
    """A file that may be a photo: path, size in bytes, modification time in nanoseconds."""

    file: File
    size: int
    modified: int


class Found:
    """The photo files in folders (searched recursively, links followed), patterns and names.

    Iterating searches, so that any number of files takes little memory; do it once. The other
    attributes are complete after that.

    Attributes:
      files: all of them, if `find` has searched.
      refused: paths that could not be inspected, each with the reason.
      videos: paths of videos.
      others: number of files whose names are not those of photos.
      system: number of files and folders that were left out because they are not the user's:
        hidden, trash, thumbnails, version control (`data_pipelines.files.is_system`).
      links: number of links to folders that were already searched.
      places: absolute paths of the places that are searched.
    """

    def __init__(self, places: "Places", include_hidden: bool = False):
        """Finds the places, and searches nothing yet.

        Args:
          places: of the user.
          include_hidden: leave nothing out, so that `system` is 0.

        Raises:
          ValueError: no place is given.
          FileNotFoundError: a name does not exist, or a pattern matches nothing.
          ModuleNotFoundError, OSError: a bucket cannot be read, as `path_of` and `_in_bucket`.
        """
        self.files: list[Candidate] = []
        self.refused: list[tuple[Path, str]] = []
        self.videos: list[Path] = []
        self.others = self.system = self.links = 0
        self.places = [absolute(place) for place in listed(places)]
        if not self.places:
            raise ValueError("--photos is missing: give, for example, --photos=album.")
        self._include_hidden = include_hidden
        self._matches: list[Path] = []
        for place, path in zip(listed(places), self.places, strict=True):
            if in_bucket(path):
                matches, system = ([path] if _in_bucket(path) else []), 0
            else:
                matches, system = ([path], 0) if path.exists() else _matching(path, include_hidden)
            self.system += system
            if not matches:
                raise FileNotFoundError(
                    f"--photos={place}: no file, folder or match with this name."
                )
            self._matches += matches

    def __iter__(self) -> Iterator[Candidate]:
        """The files, in order and without duplicates."""
        seen: set[Path] = set()
        for found in self._found():
            if found.file in seen:
                continue
            if len(self._matches) > 1:  # a folder is walked once, so it has no file twice
                seen.add(found.file)
            yield found

    def _found(self) -> Iterator[Candidate]:
        visited: set[tuple[int, int]] = set()
        for match in self._matches:
            if in_bucket(match):
                for entry in _objects(match, self._include_hidden):
                    yield from self._entry(entry)
                continue
            try:
                status = match.stat()
            except OSError as error:
                self.refused.append((match, message(error)))
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield from self._file(match, status)
                continue
            for entry in walked(match, visited, system=self._include_hidden):
                yield from self._entry(entry)

    def _file(self, path: File, status: Any) -> Iterator[Candidate]:
        if stat.S_ISREG(status.st_mode):
            yield Candidate(path, *state_of(status))
        else:
            self.refused.append((path, "it is not a regular file"))

    def _entry(self, entry: Entry) -> Iterator[Candidate]:
        """The photo of an entry of a folder, or none: then it is counted."""
        name = entry.path.name.lower()
        named = name.endswith((*images.SUFFIXES, *raw.SUFFIXES))
        if entry.kind == "closed" or (entry.kind == "failed" and named):
            self.refused.append((entry.path, entry.reason))
        elif entry.status is not None and named:
            yield from self._file(entry.path, entry.status)
        elif entry.kind == "file" and name.endswith(VIDEOS):
            self.videos.append(entry.path)
        elif entry.kind == "system":
            self.system += 1
        elif entry.kind == "again":
            self.links += 1
        else:
            self.others += 1


class Photo(NamedTuple):
    """A photo file that was read.

    Attributes:
      digest: SHA-256 of the file.
      image: prepared for the network; None if the digest was already known.
      thumbnail: JPEG.
      width, height: of the full image in pixels, after EXIF rotation.
      damaged_metadata: whether its metadata could not be read, so that it may lie on its side.
      format: the type of the file in lower case, such as "jpeg".
      taken: when it was taken, in the local time of the camera; None if it is not recorded.
    """

    digest: bytes
    image: UInt8[np.ndarray, "s s 3"] | None = None
    thumbnail: bytes = b""
    width: int = 0
    height: int = 0
    damaged_metadata: bool = False
    format: str = ""
    taken: datetime.datetime | None = None


def name_of(file: File) -> str:
    """A path as text for display, see `data_pipelines.terminal.printable`."""
    return printable(str(file))


def path_of(name: str | bytes) -> File:
    """The path of a photo by its name in an index: a local file, or an object in a bucket.

    Raises:
      ModuleNotFoundError: it is in a bucket, and a package that reads it is not installed.
    """
    text = os.fsdecode(name)
    if not paths.in_bucket(text):
        return Path(text)
    try:
        import_module("fsspec").get_filesystem_class(text.partition(":")[0])
        return import_module("upath").UPath(text)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{text}: photos in a bucket need the packages universal-pathlib and s3fs (s3://) or "
            f"gcsfs (gs://) ({error}). Install them, or mount the bucket and give the path."
        ) from error


def in_bucket(file: File) -> bool:
    """Whether a photo or a folder is in a bucket. Its name starts with a scheme then."""
    return paths.in_bucket(str(file))


def state_of(status: Any) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds, which change when a file changes.

    Times are limited to 64 bits, the years 1677 to 2262, because tables store them so.

    Args:
      status: of `stat()` of a `File`.
    """
    return status.st_size, min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1)


def identity(file: File) -> str:
    """The id of a file in an index: a digest of its absolute path, 24 hexadecimal digits."""
    return hashlib.blake2b(os.fsencode(str(file)), digest_size=12).hexdigest()


def absolute(place: str | os.PathLike) -> File:
    """An absolute path without `..`, or one in a bucket; links are not resolved.

    Raises:
      ValueError: as `paths.located`.
      ModuleNotFoundError: as `path_of`.
    """
    found = os.fspath(paths.located(str(place), BUCKETS))
    if paths.in_bucket(found):
        return path_of(found.rstrip("/"))
    return Path(os.path.abspath(found))  # noqa: PTH100 - resolve() follows links


def listed(places: "Places") -> list[str | os.PathLike]:
    """Places as a list; a single place becomes a list of one."""
    return [places] if isinstance(places, str | os.PathLike) else [*places]


def find(places: "Places") -> Found:
    """Searches places completely, as `Found` describes.

    Raises:
      ValueError, FileNotFoundError: as `Found`.
    """
    found = Found(places)
    found.files = [*found]
    return found


def within(file: File, places: Sequence[File]) -> bool:
    """Whether a file is one of the places or is below one of them."""
    return any(file == place or place in file.parents for place in places)


def _in_bucket(place: File) -> bool:
    """Whether a place in a bucket exists.

    Raises:
      OSError: the bucket cannot be read.
    """
    try:
        place.fs.invalidate_cache()
        return place.fs.exists(place.path)
    except Exception as error:  # each service has its own
        raise OSError(
            f"--photos={place} cannot be read ({type(error).__name__}: {error}). Check the name, "
            "and the credentials and the address of the service in the environment."
        ) from error


def _objects(place: File, system: bool) -> Iterator[Entry]:
    """Everything below a place in a bucket, as `data_pipelines.files.walk`; one request a folder.

    Args:
      place: a path of `path_of`.
      system: whether to treat what belongs to the system as the user's.
    """
    if place.fs.isfile(place.path):
        yield Entry(place, "file", place.stat())
        return
    for name, folders, files in place.fs.walk(place.path, detail=True, on_error="raise"):
        here = path_of(f"{place.protocol}://{name}")
        for inside in (files, folders):
            for one in [] if system else [*filter(is_system, inside)]:
                del inside[one]
                yield Entry(here / one, "system")
        for one in sorted(filter(None, files)):  # some tools write an empty object for a folder
            status = import_module("upath._stat").UPathStatResult.from_info(files[one])
            yield Entry(here / one, "file", status)


def _contents(file: File) -> bytes:
    """The contents of a photo file; of an object in a bucket, in two requests.

    Raises:
      UnreadableImageError, OSError: as `images.read_file`.
    """
    if in_bucket(file):
        too_large = file.fs.size(file.path) > images.LARGEST_FILE  # `images.opened` refuses it
        return file.fs.cat_file(file.path, 0, images.LARGEST_FILE + 1 if too_large else None)
    return images.read_file(file)


def _matching(pattern: Path, include_hidden: bool) -> tuple[list[Path], int]:
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
        kept = [
            path
            for path in found
            if include_hidden or not any(map(is_system, path.relative_to(folder).parts))
        ]
        if found:
            return kept, len(found) - len(kept)
    return [], 0


def read(
    file: File,
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
      MissingDecoderError: it is a RAW file, see `zse_jax.gallery.raw`.
      OSError: the file cannot be read.
    """
    encoded = _contents(file)
    digest = hashlib.sha256(encoded).digest()
    encoded, kind = _picture(file, encoded)
    kind, taken = described(encoded, kind)
    if known(digest):
        return Photo(digest, format=kind, taken=taken)
    found = images.decode_file(encoded, smallest=SMALLEST, at_least=_enough(size))
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
        kind,
        taken,
    )


def _picture(file: File, encoded: bytes) -> tuple[bytes, str]:
    """The image in the contents of a file, and the type of a RAW file; of others, they are it."""
    suffix = file.suffix.lower()
    if suffix not in raw.SUFFIXES or encoded[:3] == b"\xff\xd8\xff":
        return encoded, ""
    return raw.preview(encoded), suffix[1:]


def described(encoded: bytes, kind: str = "") -> tuple[str, datetime.datetime | None]:
    """The type of an image in lower case (`kind`, if given), and when it was taken (EXIF).

    Raises:
      UnreadableImageError: as `read`.
    """
    try:
        head = images.opened(encoded)
    except UnreadableImageError:
        head = images.opened(images.without_metadata(encoded))
    with head:
        kind = kind or (head.format or "").lower()
        times: list[str] = []
        with contextlib.suppress(Exception):  # damaged metadata must not hide the image
            exif = head.getexif()
            inner = exif.get_ifd(ExifTags.IFD.Exif)
            times = [
                str(inner.get(ExifTags.Base.DateTimeOriginal, "")),
                str(inner.get(ExifTags.Base.DateTimeDigitized, "")),
                str(exif.get(ExifTags.Base.DateTime, "")),
            ]
    for time in times:
        with contextlib.suppress(ValueError):  # also of cameras whose clock was not set
            return kind, datetime.datetime.strptime(time[:19], "%Y:%m:%d %H:%M:%S")
    return kind, None


def read_all(
    files: Iterable[File],
    size: int,
    preprocessing: Preprocessing = "crop",
    known: Callable[[bytes], bool] = lambda digest: False,
) -> Iterator[Photo | Exception]:
    """Reads photos in threads, ahead of the caller; yields them, or their errors, in order.

    Arguments as for `read`.
    """

    def one(file: File) -> Photo | Exception:
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
    if isinstance(error, UnreadableImageError | raw.MissingDecoderError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it was deleted before it was read"
    if isinstance(error, OSError):
        return f"it cannot be read: {message(error)}"
    return f"it cannot be read ({type(error).__name__}: {error})"


def prepared(
    file: File, size: int, preprocessing: Preprocessing = "crop"
) -> UInt8[np.ndarray, "s s 3"]:
    """Only the image of a photo, as `read` returns it.

    Raises:
      UnreadableImageError, OSError: as `read`.
    """
    encoded, _ = _picture(file, _contents(file))
    found = images.decode_file(encoded, smallest=SMALLEST, at_least=_enough(size))
    return images.prepare_photo(found.rgb, size, preprocessing)


def _enough(size: int) -> int:
    """The pixels that each side of a JPEG keeps at least when it is scaled down in decoding."""
    return max(THUMBNAIL, size)


def decoded(file: File, *, sketch: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file; a very large JPEG is scaled down. For `sketch`, see `decode_file`.

    Raises:
      UnreadableImageError, OSError: as `read`.
    """
    encoded, _ = _picture(file, _contents(file))
    return images.decode_file(encoded, smallest=SMALLEST, sketch=sketch).rgb
