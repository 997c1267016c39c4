"""Adding photos to an index: read in threads, encode, commit, while all three go on at once.

What a kill leaves is every commit before it, so at most the photos of the last seconds are encoded
again.
"""

import collections
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zse_jax.gallery import photos
from zse_jax.gallery.encoder import BATCH, Encoder
from zse_jax.gallery.photos import Candidate, Found, Photo, identity, name_of
from zse_jax.gallery.tables import REFUSED, Tables
from zse_jax.retrieval.encoding import progress_bar

COMMIT_PHOTOS, COMMIT_SECONDS = 512, 20.0
"""A commit is made after so many photos, or so long, whichever comes first."""

_NO_STATE = -1
"""Size of a refused file that is to be tried again, whatever its state."""

_COPIED = ("width", "height", "thumbnail", "embedding", "features")


class Changes(NamedTuple):
    """What an addition did.

    Attributes:
      added: photos that are new.
      updated: photos whose file had changed.
      unchanged: photos that were there.
      reused: of the added and updated, those whose content was known, so were not encoded.
      refused: files that were kept out, in all: name and reason.
      others: files that are no photos by their names.
      links: links to folders that lead to what was searched already.
      gone: photos of the index, in the places, whose files are no longer there.
      seconds: how long it took.
    """

    added: int
    updated: int
    unchanged: int
    reused: int
    refused: list[tuple[str, str]]
    others: int
    links: int
    gone: int
    seconds: float


class _Work(NamedTuple):
    """A photo on its way: where it is, what it is known by, and whether it is in the index."""

    candidate: Candidate
    id: str
    known: bool


def add(
    table: Tables,
    encoder: Encoder,
    found: Found,
    *,
    keep_features: bool,
    progress: bool = False,
) -> Changes:
    """Brings the photos in `places` into the tables, which must be locked for writing.

    Args:
      table: of the index.
      encoder: of its checkpoint.
      found: the photos, as `photos.find` gives them.
      keep_features: in the index, so that the photos need not be encoded to rank pairs.
      progress: show how far it is.

    Raises:
      ValueError, OSError: the tables cannot be written.
      FloatingPointError: the system gives features that are not finite.
    """
    began = time.monotonic()
    state = _State(table)
    counts: collections.Counter[str] = collections.Counter()
    todo = []
    refused = [(name_of(file), reason) for file, reason in found.refused]
    for candidate in found.files:
        one = identity(candidate.file)
        known = state.photo(one)
        if known == candidate[1:]:
            counts["unchanged"] += 1
        elif one in state.refused and state.refused[one][:2] == candidate[1:]:
            refused.append((name_of(candidate.file), state.refused[one][2]))
        else:
            todo.append(_Work(candidate, one, known is not None))
    writer = _Writer(table, encoder, state, keep_features, _batch_of(len(todo)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with progress_bar("photos" if progress and todo else None, len(todo), unit="photo") as bar:
            for work, result in _read(todo, encoder.retriever.image_size, state):
                writer.take(work, result)
                bar.update()
            writer.commit()
    counts.update(writer.counts)
    seen = {identity(candidate.file) for candidate in found.files}
    gone = sum(
        one not in seen and photos.within(file, found.places) and not file.exists()
        for one, file in state.files()
    )
    return Changes(
        counts["added"], counts["updated"], counts["unchanged"], counts["reused"],
        refused + writer.refused, found.others, found.links, gone, time.monotonic() - began,
    )  # fmt: skip


def _batch_of(photos: int) -> int:
    """How many are encoded at once: few, for few, as a batch is filled up."""
    return min(BATCH, 1 << max(0, photos - 1).bit_length())


class _State:
    """What the index knew before."""

    def __init__(self, table: Tables):
        self._columns = table.columns("id", "size", "modified", "digest", "file", "_rowid")
        ids = self._columns.column("id").to_pylist()
        self._places = {one: place for place, one in enumerate(ids)}
        self._size = self._columns.column("size").to_numpy()
        self._modified = self._columns.column("modified").to_numpy()
        digests = self._columns.column("digest").to_pylist()
        rows = self._columns.column("_rowid").to_pylist()
        self.digests: dict[bytes, int] = dict(zip(digests, rows, strict=True))
        found = table.columns("id", "size", "modified", "reason", table=REFUSED).to_pylist()
        self.refused = {row["id"]: (row["size"], row["modified"], row["reason"]) for row in found}

    def photo(self, one: str) -> tuple[int, int] | None:
        """Size and time of change of a photo when it was encoded."""
        place = self._places.get(one)
        return None if place is None else (int(self._size[place]), int(self._modified[place]))

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every photo's id and file."""
        files = self._columns.column("file").to_pylist()
        return ((one, Path(os.fsdecode(files[place]))) for one, place in self._places.items())


class _Writer:
    """Encodes what is read in whole batches, and commits now and then."""

    def __init__(
        self, table: Tables, encoder: Encoder, state: _State, keep_features: bool, batch: int
    ):
        self.counts: collections.Counter[str] = collections.Counter()
        self.refused: list[tuple[str, str]] = []
        self._table, self._encoder, self._state = table, encoder, state
        self._keep_features, self._batch = keep_features, batch
        self._waiting: list[tuple[_Work, Photo]] = []
        self._rows: list[dict[str, Any]] = []
        self._refused: list[dict[str, Any]] = []
        self._known: list[tuple[_Work, Photo]] = []
        self._replaced: list[str] = []
        self._began = time.monotonic()
        # Row numbers of known content are those of the commit in which the state was read.
        self._before = Tables(table.uri)

    def take(self, work: _Work, result: Photo | Exception) -> None:
        """Takes a photo that was read, or the reason why it was not."""
        if isinstance(result, Exception):
            self._refuse(work, result)
        elif result.image is None:
            self._known.append((work, result))
        else:
            self._waiting.append((work, result))
            if len(self._waiting) == self._batch:
                self._encode()
        waiting = len(self._rows) + len(self._known) + len(self._refused)
        if waiting >= COMMIT_PHOTOS or time.monotonic() - self._began > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes everything that was taken."""
        self._encode()
        self._copy()
        self._table.put(self._rows, bool(self._replaced))
        if self._table_has_refused():
            self._table.delete([row["id"] for row in self._rows], REFUSED)
        self._table.refuse(self._refused)
        if bad := [row["id"] for row in self._refused if self._state.photo(row["id"])]:
            self._table.delete(bad)
        self._rows, self._refused, self._replaced = [], [], []
        self._began = time.monotonic()

    def _table_has_refused(self) -> bool:
        return any(row["id"] in self._state.refused for row in self._rows)

    def _refuse(self, work: _Work, error: Exception) -> None:
        reason = str(error) if isinstance(error, photos.UnfitError) else _reason(error)
        name = name_of(work.candidate.file)
        again = not isinstance(error, photos.UnfitError)
        self.refused.append((name, reason))
        self._refused.append(
            _described(work, name) | {"reason": reason} | ({"size": _NO_STATE} if again else {})
        )

    def _encode(self) -> None:
        if not self._waiting:
            return
        images = [photo.image for _, photo in self._waiting if photo.image is not None]
        encoded = self._encoder(np.stack(images), "photo", self._batch)
        packed = self._encoder.packed(encoded.features) if self._keep_features else None
        for place, (work, photo) in enumerate(self._waiting):
            self._row(
                work, photo, width=photo.width, height=photo.height, thumbnail=photo.thumbnail,
                embedding=encoded.embedding[place], features=packed[place] if packed else None,
            )  # fmt: skip
        self._waiting = []

    def _copy(self) -> None:
        """Rows of content that the index knows, under another name or with another date."""
        numbers = [self._state.digests[photo.digest] for _, photo in self._known]
        found = self._before.rows(numbers, _COPIED)
        for (work, photo), row in zip(self._known, found, strict=True):
            self._row(work, photo, **{name: row[name] for name in _COPIED})
            self.counts["reused"] += 1
        self._known = []

    def _row(self, work: _Work, photo: Photo, **values: Any) -> None:
        name = name_of(work.candidate.file)
        self._rows.append(_described(work, name) | {"digest": photo.digest} | values)
        self.counts["updated" if work.known else "added"] += 1
        if work.known:
            self._replaced.append(work.id)


def _described(work: _Work, name: str) -> dict[str, Any]:
    file, size, modified = work.candidate
    return {
        "id": work.id, "path": name, "file": os.fsencode(file), "size": size, "modified": modified,
    }  # fmt: skip


def _read(
    todo: Sequence[_Work], size: int, state: _State
) -> Iterator[tuple[_Work, Photo | Exception]]:
    """Each photo, in order, read by threads that are a few batches ahead."""

    def one(work: _Work) -> Photo | Exception:
        try:
            return photos.read(work.candidate.file, size, state.digests.__contains__)
        except Exception as error:  # whatever a file does, the others go on
            return error

    threads = max(2, os.cpu_count() or 1)
    pending: collections.deque[tuple[_Work, Future[Photo | Exception]]] = collections.deque()
    with ThreadPoolExecutor(threads, "photos") as pool:
        try:
            for work in todo:
                pending.append((work, pool.submit(one, work)))
                if len(pending) > 2 * BATCH + threads:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it vanished while it was to be read"
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    return f"it cannot be read ({type(error).__name__}: {error})"
