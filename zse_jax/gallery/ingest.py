"""Adds photos to an index: threads read ahead while this one encodes and commits.

Another engine can read and encode in their place, such as `zse_jax.gallery.cluster`: it makes the
same rows with `encoded_rows`. If the process is killed, the index contains every earlier commit, so
at most the photos of the last seconds are encoded again.
"""

import collections
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.files import is_gone
from data_pipelines.images import UnreadableImageError
from zse_jax.gallery import photos
from zse_jax.gallery.encoder import CompiledEncoder, batch_size
from zse_jax.gallery.photos import Candidate, Found, Photo, identity, name_of
from zse_jax.gallery.tables import REFUSED, Tables
from zse_jax.retrieval.encoding import progress_bar

COMMIT_PHOTOS, COMMIT_SECONDS = 512, 20.0
"""A commit follows after this many photos or seconds, whichever comes first."""

HELD = 2**16
"""Paths of photos to read that are listed first, so that the progress bar knows how many there are.
Of more photos, the further paths are found while the earlier photos are encoded."""

_NO_STATE = -1
"""The recorded size of a refused file that is read again even if it has not changed."""

_COPIED = ("width", "height", "thumbnail", "embedding", "features")


class Changes(NamedTuple):
    """What an addition changed.

    Attributes:
      added: number of new photos.
      updated: number of photos whose files had changed.
      unchanged: number of photos that were already in the index.
      reused: how many of the added and updated photos were not encoded, because the index already
        had a photo with the same content.
      refused: all files that were skipped: name and reason.
      videos: names of videos, which were skipped.
      others: number of files whose names are not those of photos.
      system: number of files and folders of the system that were left out, see `photos.Found`.
      damaged_metadata: number of added and updated photos whose metadata could not be read.
      links: number of links to folders that were already searched.
      gone: number of photos of the index, in the places, whose files no longer exist.
      seconds: how long it took.
    """

    added: int
    updated: int
    unchanged: int
    reused: int
    refused: list[tuple[str, str]]
    videos: list[str]
    others: int
    system: int
    damaged_metadata: int
    links: int
    gone: int
    seconds: float


class Work(NamedTuple):
    """A photo to read: its file, its id, and whether it is in the index."""

    candidate: Candidate
    id: str
    known: bool


class Encoded(NamedTuple):
    """The row of an encoded photo that is not written, and whether its metadata is damaged."""

    row: dict[str, Any]
    damaged_metadata: bool


class Written(NamedTuple):
    """New photos that are encoded and written, but not committed.

    Attributes:
      fragments: as `Tables.commit` takes them.
      ids: the photos.
      damaged_metadata: the number of photos whose metadata could not be read.
    """

    fragments: list[bytes]
    ids: list[str]
    damaged_metadata: int


Result = Written | tuple[Work, Photo | Encoded | Exception]
"""What became of some photos, or of one: a photo that was read, its row, or why it is refused."""

Engine = Callable[[Iterator[Work], Collection[bytes], int], Iterator[Result]]
"""Reads the photos (not decoding those with one of the given digests), and may encode them in
batches of the given size. Yields every photo once, in any order."""


def add(
    table: Tables,
    encoder: CompiledEncoder,
    found: Found,
    *,
    keep_features: bool,
    progress: bool = False,
    engine: Engine | None = None,
) -> Changes:
    """Adds photos to the tables, which must be locked for writing.

    Args:
      table: the tables of the index.
      encoder: the encoder of the index's checkpoint.
      found: the photos; iterated over once.
      keep_features: store the features too, so that pairs can be ranked without encoding again.
      progress: show a progress bar.
      engine: reads and encodes the photos; None: this process.

    Raises:
      ValueError, OSError: the tables cannot be written.
      FloatingPointError: the system computes features that are not finite.
    """
    began = time.monotonic()
    table.upgrade()
    state = _State(table)
    counts: collections.Counter[str] = collections.Counter()
    refused: list[tuple[str, str]] = []
    work = _to_read(found, state, counts, refused)
    held = [*itertools.islice(work, HELD)]
    total = len(held) if len(held) < HELD else 0  # 0: not known
    bar_name = "photos" if progress and held else None
    batch = batch_size(len(held))
    writer = _Writer(table, encoder, state, keep_features, batch)
    every = itertools.chain(held, work)
    del held
    with progress_bar(bar_name, total, unit="photo") as bar:
        for result in (engine or _reader(encoder))(every, state.digests, batch):
            bar.update(writer.add(result))
        writer.commit()
    counts.update(writer.counts)
    refused += [(name_of(file), reason) for file, reason in found.refused] + writer.refused
    return Changes(
        counts["added"], counts["updated"], counts["unchanged"], counts["reused"], refused,
        [name_of(video) for video in found.videos], found.others, found.system,
        counts["damaged_metadata"], found.links, state.gone(found.places),
        time.monotonic() - began,
    )  # fmt: skip


def _reader(encoder: CompiledEncoder) -> Engine:
    """The engine of this process: threads read photos, which the caller encodes."""

    def read(
        every: Iterator[Work], digests: Collection[bytes], batch: int
    ) -> Iterator[tuple[Work, Photo | Exception]]:
        one, other = itertools.tee(every)  # of which READ_AHEAD are in memory
        files, retriever = (work.candidate.file for work in one), encoder.retriever
        results = photos.read_all(
            files, retriever.image_size, retriever.preprocessing, digests.__contains__
        )
        return zip(other, results, strict=True)

    return read


def _to_read(
    found: Found,
    state: "_State",
    counts: collections.Counter[str],
    refused: list[tuple[str, str]],
) -> Iterator[Work]:
    """The photos to read; the others are counted as unchanged, or listed as refused before."""
    for candidate in found:
        one = identity(candidate.file)
        place = state.places.get(one)
        if place is not None:
            state.seen[place] = True
            if not state.described[place]:
                yield Work(candidate, one, True)
                continue
            if (state.sizes[place], state.times[place]) == candidate[1:]:
                counts["unchanged"] += 1
                continue
        if one in state.refused and state.refused[one][:2] == candidate[1:]:
            refused.append((name_of(candidate.file), state.refused[one][2]))
        else:
            yield Work(candidate, one, place is not None)


class _State:
    """The contents of the index before the addition.

    Attributes:
      places: id -> place of a photo in the arrays below.
      sizes, times: size and modification time of each photo's file when it was encoded.
      described: whether `DESCRIPTION` is recorded; early versions did not.
      seen: whether the file was found by this addition.
      digests: digest -> row number of a photo with this content.
      refused: id -> size, modification time, and reason.
    """

    def __init__(self, table: Tables):
        columns = table.columns("id", "size", "modified", "format", "digest", "_rowid")
        self.places = {one: place for place, one in enumerate(columns["id"].to_pylist())}
        self.sizes, self.times = (
            columns[name].fill_null(_NO_STATE).to_numpy() for name in ("size", "modified")
        )
        self.described = columns["format"].is_valid().to_numpy()
        self.seen = np.zeros(len(self.places), bool)
        digests, rows = (columns[name].to_pylist() for name in ("digest", "_rowid"))
        self.digests: dict[bytes, int] = dict(zip(digests, rows, strict=True))
        refused = table.columns("id", "size", "modified", "reason", table=REFUSED).to_pylist()
        self.refused = {row["id"]: (row["size"], row["modified"], row["reason"]) for row in refused}
        self._table = table

    def gone(self, places: Sequence[photos.File]) -> int:
        """The number of files in these places that were not seen and no longer exist."""
        unseen = {one for one, place in self.places.items() if not self.seen[place]}
        if not unseen:
            return 0
        columns = self._table.columns("id", "file")
        ids, files = columns["id"].to_pylist(), columns["file"].to_pylist()
        left = (photos.path_of(f) for i, f in zip(ids, files, strict=True) if i in unseen)
        return sum(photos.within(file, places) and is_gone(file) for file in left)


class _Writer:
    """Encodes photos in full batches, and commits at intervals."""

    def __init__(
        self,
        table: Tables,
        encoder: CompiledEncoder,
        state: _State,
        keep_features: bool,
        batch: int,
    ):
        self.counts: collections.Counter[str] = collections.Counter()
        self.refused: list[tuple[str, str]] = []
        self._table, self._encoder, self._state = table, encoder, state
        self._keep_features, self._batch = keep_features, batch
        self._waiting: list[tuple[Work, Photo]] = []
        self._rows: list[dict[str, Any]] = []
        self._refused: list[dict[str, Any]] = []
        self._known: list[tuple[Work, Photo]] = []
        self._replaced: list[str] = []
        self._fragments: list[bytes] = []
        self._written: list[str] = []
        self._began = time.monotonic()
        # The row numbers in `_State.digests` are valid in the commit at which it was read.
        self._before = Tables(table.uri)

    def add(self, result: Result) -> int:
        """Adds what became of photos; returns how many they are."""
        count = 1
        if isinstance(result, Written):
            self._fragments += result.fragments
            self._written += result.ids
            count = len(result.ids)
            self.counts.update(added=count, damaged_metadata=result.damaged_metadata)
        else:
            self._add(*result)
        waiting = len(self._rows) + len(self._known) + len(self._refused)
        if waiting >= COMMIT_PHOTOS or time.monotonic() - self._began > COMMIT_SECONDS:
            self.commit()
        return count

    def _add(self, work: Work, result: Photo | Encoded | Exception) -> None:
        if isinstance(result, Exception):
            self._refuse(work, result)
        elif isinstance(result, Encoded):
            self._row(work, result.row)
            self.counts["damaged_metadata"] += result.damaged_metadata
        elif result.image is None:
            self._known.append((work, result))
        else:
            self._waiting.append((work, result))
            self.counts["damaged_metadata"] += result.damaged_metadata
            if len(self._waiting) == self._batch:
                self._encode()

    def commit(self) -> None:
        """Writes everything that was added since the last commit."""
        self._encode()
        self._copy()
        self._table.commit(self._fragments)
        self._table.put(self._rows, bool(self._replaced))
        self._written += [row["id"] for row in self._rows]
        if any(one in self._state.refused for one in self._written):
            self._table.delete(self._written, REFUSED)
        self._table.refuse(self._refused)
        if bad := [row["id"] for row in self._refused if row["id"] in self._state.places]:
            self._table.delete(bad)
        self._rows, self._refused, self._replaced = [], [], []
        self._fragments, self._written = [], []
        self._began = time.monotonic()

    def _refuse(self, work: Work, error: Exception) -> None:
        row = _described(work) | {"reason": photos.reason(error)}
        if not isinstance(error, UnreadableImageError):  # an error of the disk may be temporary
            row["size"] = _NO_STATE
        self.refused.append((row["path"], row["reason"]))
        self._refused.append(row)

    def _encode(self) -> None:
        if not self._waiting:
            return
        rows = encoded_rows(self._encoder, self._waiting, self._keep_features, self._batch)
        for (work, _), row in zip(self._waiting, rows, strict=True):
            self._row(work, row)
        self._waiting = []

    def _copy(self) -> None:
        """Copies the rows of photos whose content is already in the index."""
        numbers = [self._state.digests[photo.digest] for _, photo in self._known]
        found = self._before.rows(numbers, _COPIED)
        for (work, photo), row in zip(self._known, found, strict=True):
            self._row(work, row_of(work, photo, {name: row[name] for name in _COPIED}))
            self.counts["reused"] += 1
        self._known = []

    def _row(self, work: Work, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.counts["updated" if work.known else "added"] += 1
        if work.known:
            self._replaced.append(work.id)


def encoded_rows(
    encoder: CompiledEncoder, read: Sequence[tuple[Work, Photo]], keep_features: bool, batch: int
) -> list[dict[str, Any]]:
    """The rows of photos that were read, for the table of photos.

    Args:
      encoder: the encoder of the index's checkpoint.
      read: at least one photo, each with its image.
      keep_features: store the features too.
      batch: how many images are encoded at once.

    Raises:
      FloatingPointError: the system computes features that are not finite.
    """
    images = [photo.image for _, photo in read if photo.image is not None]
    encoded = encoder(np.stack(images), "photo", batch)
    packed = encoder.packed(encoded.features) if keep_features else [None] * len(read)
    return [
        row_of(
            work, photo,
            {
                "width": photo.width, "height": photo.height, "thumbnail": photo.thumbnail,
                "embedding": embedding, "features": features,
            },
        )
        for (work, photo), embedding, features in zip(read, encoded.embedding, packed, strict=True)
    ]  # fmt: skip


def row_of(work: Work, photo: Photo, values: dict[str, Any]) -> dict[str, Any]:
    """The row of a photo: its file, its type and date, and the columns in `values`."""
    about = {"digest": photo.digest, "format": photo.format, "taken": photo.taken}
    return _described(work) | about | values


def _described(work: Work) -> dict[str, Any]:
    file, size, modified = work.candidate
    return {
        "id": work.id,
        "path": name_of(file),
        "file": os.fsencode(str(file)),
        "size": size,
        "modified": modified,
    }
