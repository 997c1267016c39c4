"""The tables of an index in Lance: the photos, and the files that were refused.

Only this file uses Lance. Every write is one atomic commit: after a crash, the tables open at the
last commit. The metadata of the index (such as its checkpoint) is in the schema of the table of
photos, so it exists from the first commit on.
"""

import contextlib
import datetime
import json
import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines import paths
from data_pipelines.files import contents

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

PHOTOS, REFUSED = "photos", "refused"

VERSION = "1"
"""Version of the tables' columns."""

EXACT_UP_TO = 100_000
"""Photos up to which a search compares all embeddings; above, their codes first."""

PARTITION, MOST_PARTITIONS = 2**14, 256
"""Photos in a partition of the approximate index, and partitions at most."""

PROBED = 192
"""Partitions that a search reads: all of them up to 3.1 million photos, above the nearest ones.

It misses photos in the other partitions: see docs/scaling.md.
"""

FINE_UP_TO = 3_000_000
"""Photos up to which each four numbers of an embedding have a code; above, each eight of them.

Codes of eight numbers are less accurate, but a search takes half the time.
"""

CANDIDATES = 1000
"""Photos with the nearest codes whose embeddings a search compares, at least."""

DESCRIPTION = "taken", "format"
"""The columns with which photos are filtered. Indexes of early versions do not have them.

`taken` is the local time of the camera, or null; `format` the type of the file in lower case.
"""

LOCK = "writer.lock"

MOST_FRAGMENTS, MOST_NEW = 64, 0.05
"""Small files of photos, and share of photos that the approximate index lacks, above which an index
that photos were added to is compacted; our choice."""

_KEEP_VERSIONS = datetime.timedelta(hours=1)  # readers may still use them

_AT_ONCE = 1000  # ids in one SQL condition

_SMALL = 100_000  # photos: a file with fewer is small

_RETRIES = {
    "description": "write fragments",
    "match": ["LanceError(IO)"],
    "max_attempts": 10,
    "max_backoff_s": 32,
}
"""How a worker repeats a write that failed; those of `lance_ray.write_lance`."""

Row = Mapping[str, Any]


class Tables:
    """The open tables of one index.

    Attributes:
      uri: its location: a folder, or a location in a bucket.
      about: its metadata: `checkpoint`, `step`, `fingerprint`, ...
    """

    def __init__(self, uri: str | os.PathLike):
        """Opens the tables.

        Raises:
          FileNotFoundError: there is no index at `uri`.
          ValueError: the index has another version, or cannot be opened.
        """
        self.uri = located(uri)
        with opening(self.uri):
            photos = _opened(self.uri, PHOTOS)
        if photos is None:
            raise FileNotFoundError(
                f"There is no index at {self.uri}: build one with `python -m "
                f"zse_jax.gallery.index build --index={self.uri} --photos=... --checkpoint=...`."
            )
        with opening(self.uri):
            metadata = photos.schema.metadata or {}
            self.about: dict[str, Any] = json.loads(metadata.get(b"zse_jax", b"{}"))
        if self.about.get("version") != VERSION:
            raise ValueError(
                f"The index {self.uri} has version {self.about.get('version')}, but this zse_jax "
                f"reads version {VERSION}: build another index."
            )
        with opening(self.uri):
            refused = _created(self.uri, REFUSED, _refused_schema())
        self._tables = {PHOTOS: photos, REFUSED: refused}

    @classmethod
    def create(cls, uri: str | os.PathLike, about: Mapping[str, Any], width: int) -> "Tables":
        """Creates the tables for embeddings of size `width`, unless they exist.

        Raises:
          FileExistsError: the folder contains other files.
        """
        place = located(uri)
        if "://" not in place and Path(place).is_file():
            raise FileExistsError(f"--index={place} is a file: give a new or an empty folder.")
        if "://" not in place and Path(place).is_dir():
            inside = contents(Path(place))
            others = [n for n in inside if n != LOCK and not n.endswith(".lance")]
            if others:
                raise FileExistsError(
                    f"--index={place} contains other files ({', '.join(others[:3])}): give a new "
                    "or an empty folder."
                )
        with opening(place):
            _created(place, REFUSED, _refused_schema())
            _created(place, PHOTOS, _photos_schema({**about, "version": VERSION}, width))
        return cls(place)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Locks the index for writing and reads its newest commit.

        Raises:
          BlockingIOError: another process on this machine is writing to it.
        """
        with locked(self.uri):
            self.refresh()
            yield

    @property
    def version(self) -> int:
        """The number of the current commit."""
        return self._photos.version

    @property
    def width(self) -> int:
        """The size of the embeddings."""
        return self._photos.schema.field("embedding").type.list_size

    def refresh(self) -> None:
        """Switches to the newest commit."""
        with opening(self.uri):
            self._tables = {name: _newest(table) for name, table in self._tables.items()}

    @property
    def _photos(self) -> Any:
        return self._tables[PHOTOS]

    @contextlib.contextmanager
    def _updating(self, name: str) -> Iterator[Any]:
        """The newest commit of a table, for writing; the result becomes the current commit.

        A write changes the object of the table, so other threads keep reading the former object.
        """
        with opening(self.uri):
            table = _newest(self._tables[name])
            yield table
            self._tables[name] = table

    @property
    def is_described(self) -> bool:
        """Whether the table of photos has the columns of `DESCRIPTION`."""
        return {*DESCRIPTION} <= {*self._photos.schema.names}

    def upgrade(self) -> None:
        """Adds the columns of `DESCRIPTION`, empty, to an index of an early version."""
        if not self.is_described:
            with self._updating(PHOTOS) as table:
                table.add_columns(_description())

    def count(self, table: str = PHOTOS, *, where: str = "") -> int:
        """The number of photos, or of refused files, that pass the condition `where` in SQL."""
        with opening(self.uri):
            return self._tables[table].count_rows(where or None)

    def columns(self, *names: str, table: str = PHOTOS) -> "pa.Table":
        """Entire columns; "_rowid" gives the row numbers that `rows` takes."""
        with opening(self.uri):
            wanted = [name for name in names if name != "_rowid"]
            return self._tables[table].to_table(wanted, with_row_id="_rowid" in names)

    def refused(self) -> list[tuple[str, str]]:
        """The refused files: name and reason, sorted."""
        rows = self.columns("path", "reason", table=REFUSED).to_pylist()
        return sorted((row["path"], row["reason"]) for row in rows)

    def embeddings(self) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
        """All embeddings and their row numbers."""
        count, start = self.count(), 0
        values, rows = np.empty((count, self.width), np.float32), np.empty(count, np.int64)
        for some, numbers in self.embedding_batches():
            values[start : start + len(some)] = some
            rows[start : start + len(some)] = numbers
            start += len(some)
        return values, rows

    def embedding_batches(
        self,
    ) -> Iterator[tuple[Float[np.ndarray, "b d"], Int[np.ndarray, " b"]]]:
        """The embeddings and row numbers in batches, in the order of `columns`."""
        with opening(self.uri):
            for batch in self._photos.to_batches(["embedding"], with_row_id=True):
                flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
                rows = batch.column("_rowid").to_numpy().astype(np.int64)
                yield flat.reshape(-1, self.width), rows

    def nearest(
        self, embedding: Float[np.ndarray, " d"], count: int, where: str = ""
    ) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Row numbers and similarities of the nearest photos, by the approximate index if any.

        Args:
          embedding: of the query.
          count: how many photos.
          where: a condition in SQL: only photos that pass it are searched.
        """
        query = {
            "column": "embedding",
            "q": embedding,
            "k": count,
            "metric": "dot",
            # A filtered search reads more partitions until it has enough photos.
            "minimum_nprobes" if where else "nprobes": PROBED,
            "refine_factor": -(-CANDIDATES // count),
        }
        with opening(self.uri):
            found = self._photos.to_table(
                ["_distance"], where or None, nearest=query, prefilter=True, with_row_id=True
            )
        rows = found.column("_rowid").to_numpy().astype(np.int64)
        return rows, (1 - found.column("_distance").to_numpy()).astype(np.float32)

    def embeddings_of(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        """The embeddings of the photos with these row numbers, in the same order."""
        with opening(self.uri):
            found = self._taken(rows.tolist(), ["embedding"])
        numbers = found.column("_rowid").to_numpy().astype(np.int64)
        flat = found.column("embedding").combine_chunks().flatten().to_numpy()
        order = np.argsort(numbers)
        return flat.reshape(-1, self.width)[order[np.searchsorted(numbers[order], rows)]]

    def rows(self, numbers: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """The photos with these row numbers, in the same order."""
        if not len(numbers):
            return []
        with opening(self.uri):
            wanted = [int(number) for number in numbers]
            found = {row["_rowid"]: row for row in self._taken(wanted, names).to_pylist()}
        return [found[number] for number in wanted if number in found]

    def _taken(self, rows: list[int], names: Sequence[str]) -> "pa.Table":
        """The photos with these row numbers, which Lance finds without a scan, in any order."""
        numbers = ", ".join(map(str, rows))
        return self._photos.to_table([*names], f"_rowid IN ({numbers})", with_row_id=True)

    def by_id(self, identity: str, names: Sequence[str]) -> dict[str, Any]:
        """The photo with this id.

        Raises:
          KeyError: there is no such photo.
        """
        if not identity.isalnum():
            raise KeyError(f"{identity!r} is not the id of a photo.")
        with opening(self.uri):
            found = self._photos.to_table([*names], f"id = '{identity}'", limit=1).to_pylist()
        if not found:
            raise KeyError(f"The index {self.uri} has no photo {identity}.")
        return found[0]

    def put(self, rows: Sequence[Row], replaced: bool) -> None:
        """Adds photos in one commit; `replaced`: some of them may exist and are replaced.

        In a bucket they are always replaced: a writer on another machine may have added them.
        """
        self._put(PHOTOS, rows, replaced or "://" in self.uri)

    def append(self, columns: Mapping[str, Any]) -> None:
        """Adds photos in one commit, given as entire columns; missing columns are null."""
        with self._updating(PHOTOS) as table:
            import pyarrow as pa

            schema, rows = table.schema, len(next(iter(columns.values())))
            arrays = [columns.get(f.name, pa.nulls(rows, f.type)) for f in schema]
            table.insert(pa.Table.from_arrays(arrays, schema=schema))

    def fragment_writer(self) -> Any:
        """Writes photos for `commit`, on any machine: a function that can be pickled.

        Its argument is a table with the schema in its attribute `schema`; its result has a column
        `fragment`.
        """
        lance_ray = import_module("lance_ray")
        with opening(self.uri):
            return lance_ray.LanceFragmentWriter(
                _place(self.uri, PHOTOS),
                schema=self._photos.schema,
                use_legacy_format=None,
                data_storage_version=self._photos.data_storage_version,
                enable_stable_row_ids=self._photos.has_stable_row_ids,
                retry_params=_RETRIES,
            )

    def commit(self, fragments: Sequence[bytes]) -> None:
        """Adds the photos of fragments that `fragment_writer` wrote, in one commit.

        The photos must not be in the index.
        """
        if not fragments:
            return
        lance = _lance()
        with opening(self.uri):
            added = lance.LanceOperation.Append([pickle.loads(one) for one in fragments])
            place = _place(self.uri, PHOTOS)
            lance.LanceDataset.commit(place, added, read_version=self._photos.version)
        self.refresh()

    def refuse(self, rows: Sequence[Row]) -> None:
        """Adds or replaces refused files in one commit."""
        self._put(REFUSED, rows, True)

    def delete(self, identities: Sequence[str], table: str = PHOTOS) -> None:
        """Deletes photos, or refused files."""
        for start in range(0, len(identities), _AT_ONCE):
            some = ", ".join(f"'{one}'" for one in identities[start : start + _AT_ONCE])
            with self._updating(table) as changed:
                changed.delete(f"id IN ({some})")

    def tidy(self) -> None:
        """Compacts the fragments of many commits and updates the approximate index."""
        for name in self._tables:
            with self._updating(name) as table:
                table.optimize.compact_files()
                table.optimize.optimize_indices()
                table.cleanup_old_versions(_KEEP_VERSIONS)

    @property
    def is_scattered(self) -> bool:
        """Whether `tidy` is worth its time, which grows with all photos.

        It is if more than `MOST_FRAGMENTS` files are small, or more than `MOST_NEW` of the photos
        were added after the approximate index was built; searches compare each of these.
        """
        with opening(self.uri):
            stats = self._photos.stats
            if stats.dataset_stats(_SMALL)["num_small_files"] > MOST_FRAGMENTS:
                return True
            new = [
                stats.index_stats(index.name)["num_unindexed_rows"]
                for index in self._photos.describe_indices()
            ]
        return max(new, default=0) > MOST_NEW * self.count()

    @property
    def is_approximate(self) -> bool:
        """Whether there is an approximate index."""
        with opening(self.uri):
            indices = self._photos.describe_indices()
            return any(index.field_names == ["embedding"] for index in indices)

    def index(self) -> None:
        """Builds the approximate index of the embeddings; replaces an existing one."""
        settings = index_settings(self.count(), self.width)
        with self._updating(PHOTOS) as table:
            table.create_index("embedding", "IVF_PQ", replace=True, **settings)

    def _put(self, name: str, rows: Sequence[Row], replaced: bool) -> None:
        if not rows:
            return
        with self._updating(name) as table:
            import pyarrow as pa

            made = pa.Table.from_pylist([*rows], schema=table.schema)
            if replaced:
                merge = table.merge_insert("id").when_matched_update_all()
                merge.when_not_matched_insert_all().execute(made)
            else:
                table.insert(made)


BUCKETS = ("gs", "s3", "az")
"""The schemes of the buckets that Lance reads and writes."""


def index_settings(photos: int, width: int) -> dict[str, Any]:
    """The arguments of Lance's index "IVF_PQ" for the approximate index.

    Each four numbers of an embedding, or each eight (`FINE_UP_TO`), become half a byte, the number
    of the nearest of 16 centres (product quantisation, Jegou et al., PAMI 2011). Lance compares
    several such codes in one instruction, so that most of them can be compared, which finds more
    than searching some of many partitions: see docs/scaling.md. It needs an even number of codes
    that divides the width; without one, a photo has one code of a byte.
    """
    together = 4 if photos <= FINE_UP_TO else 8
    numbers = [n for n in range(2, width // together + 1, 2) if width % n == 0]
    return {
        "metric": "dot",
        "num_partitions": min(max(1, photos // PARTITION), MOST_PARTITIONS),
        "num_sub_vectors": max(numbers, default=1),
        "num_bits": 4 if numbers else 8,
    }


def located(uri: str | os.PathLike) -> str:
    """The location of an index: an absolute path, or an unchanged location in a bucket."""
    text = os.fspath(uri)
    if not text:
        raise ValueError("--index is missing: give, for example, --index=my-index.")
    return os.fspath(paths.located(text.rstrip("/") or "/", BUCKETS))


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Locks an index for writing; the operating system releases the lock when the process ends.

    Raises:
      BlockingIOError: another process on this machine is writing to it.
    """
    filelock = import_module("filelock")
    if "://" in uri:
        import hashlib

        name = f"zse_jax-{hashlib.blake2b(uri.encode(), digest_size=12).hexdigest()}.lock"
        file = Path(tempfile.gettempdir()) / name
    else:
        file = Path(uri) / LOCK
        file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BlockingIOError(
            f"Another process is writing to the index {uri}: wait until it ends. (You can search "
            "the index at the same time.)"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def opening(uri: str) -> Iterator[None]:
    """Converts errors of Lance to a ValueError with one short message."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        first = re.sub(r", \S+\.rs:\d+:\d+", "", first)[:300]  # places in Lance's own code
        raise ValueError(
            f"The index {uri} cannot be read or written ({first}). If the disk is full, free some "
            "space and run the same command again; if files in it are missing, build it again."
        ) from error


def _lance() -> Any:
    os.environ.setdefault("LANCE_LOG", "error")
    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")  # else a warning
    return import_module("lance")


def _place(uri: str, name: str) -> str:
    return f"{uri}/{name}.lance"


def _opened(uri: str, name: str) -> Any:
    """The newest commit of a table; None if there is no such table."""
    place = _place(uri, name)
    if "://" not in uri and not Path(place).is_dir():
        return None
    try:
        return _lance().dataset(place)
    except ValueError as error:
        if "://" in uri and "was not found" in str(error):
            return None
        raise


def _newest(table: Any) -> Any:
    """Another object with the newest commit of a table."""
    return table.checkout_version((None, None))


def _created(uri: str, name: str, schema: "pa.Schema") -> Any:
    """The newest commit of a table, which is created unless it exists."""
    table = _opened(uri, name)
    if table is None:
        try:
            return _lance().write_dataset(schema.empty_table(), _place(uri, name), schema=schema)
        except OSError:
            table = _opened(uri, name)
            if table is None:
                raise
    return table  # perhaps of another process that created it meanwhile


def _description() -> "pa.Schema":
    import pyarrow as pa

    types = pa.timestamp("s"), pa.string()
    return pa.schema(map(pa.field, DESCRIPTION, types))


def _photos_schema(about: Mapping[str, Any], width: int) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string()),  # for display
            pa.field("file", pa.binary()),  # the real name, which may not be UTF-8
            pa.field("digest", pa.binary()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("thumbnail", pa.binary()),
            pa.field("embedding", pa.list_(pa.float32(), width)),
            pa.field("features", pa.binary()),
            *_description(),
        ],
        metadata={"zse_jax": json.dumps(about)},
    )


def _refused_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("file", pa.binary()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),
            pa.field("reason", pa.string()),
        ]
    )
