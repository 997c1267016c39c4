"""The engine `ray`: photos are read, encoded and written on the machines of a Ray cluster.

Ray Data runs three steps: `_read` reads and decodes, `_Encoder` encodes (one for each GPU, or for
each machine if there are no GPUs), and `_write` writes rows as Lance fragments next to the index.
It repeats what a lost worker or machine had begun. Nothing that they write is in the index before
the program that started them, the driver, commits it; that happens every few seconds, so that a
killed driver loses what these seconds encoded, and the same command resumes. The driver also lists
the photos, and writes all other rows: of changed files, refused files, and known content.
"""

import functools
import itertools
import logging
import os
import pickle
import warnings
from collections.abc import Collection, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.images import Preprocessing
from zse_jax.checkpoints import reading
from zse_jax.gallery import photos
from zse_jax.gallery.encoder import BATCH, CompiledEncoder
from zse_jax.gallery.ingest import Encoded, Result, Work, Written, encoded_rows
from zse_jax.gallery.photos import Photo
from zse_jax.retrieval.encoding import fingerprint
from zse_jax.runtime.console import first_line

LISTED = 2**20
"""Photos that are listed and then encoded: their paths take half a GB of the driver's memory."""

READ = 8 * BATCH
"""Photos that are read, or encoded, by one call. On a GPU, calls overlap with reading."""

SMALLEST_FRAGMENT, LARGEST_FRAGMENT = 2**9, 2**14
"""Photos in a fragment. Large ones are fast to search, and small ones are committed sooner."""

Batch = dict[str, Any]


class Job(NamedTuple):
    """What workers need to encode photos of an index.

    Attributes:
      checkpoint: its location, the same on all machines.
      fingerprint: of its weights, which each worker compares.
      image_size, preprocessing: those of its system.
      keep_features: store the features too.
      write: of `Tables.fragment_writer`: rows to fragments.
    """

    checkpoint: str
    fingerprint: str
    image_size: int
    preprocessing: Preprocessing
    keep_features: bool
    write: Any


def start(address: str | None = None) -> None:
    """Connects to a Ray cluster, unless this process already is.

    Args:
      address: of the cluster; "auto": the one that runs on this machine; None: the one in the
        environment variable RAY_ADDRESS, or else a new one of this machine, which ends with the
        process.

    Raises:
      ModuleNotFoundError: Ray or lance-ray is not installed.
      ConnectionError: there is no cluster at this address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The encoder of a GPU is a worker: this process must not reserve the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        ray = import_module("ray")
        import_module("ray.data")
        import_module("lance_ray")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--engine=ray needs Ray and lance-ray, but {error.name} is not installed. Install "
            "them (pip install 'ray[data]' lance-ray) on all machines, or use --engine=local."
        ) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        return
    new = address is None and "RAY_ADDRESS" not in os.environ
    local = {"num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False} if new else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lance warns of every started process
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConnectionError(
                f"There is no Ray cluster at --address={address} ({first_line(error)}). Start one "
                "(ray start --head), give the address of another, or leave --address out to use "
                "this machine alone."
            ) from error


def encode(
    every: Iterator[Work], digests: Collection[bytes], batch: int, *, job: Job
) -> Iterator[Result]:
    """Reads, encodes and writes photos on the cluster: an `Engine`. `start` comes first.

    Raises:
      ValueError, OSError, FloatingPointError: a worker cannot load the checkpoint, or encode or
        write photos.
      RuntimeError: Ray cannot run the work.
    """
    ray = import_module("ray")
    known = ray.put(np.sort(np.array([*digests], "S32")))  # each machine gets one copy
    while part := [*itertools.islice(every, LISTED)]:
        try:
            yield from _results(part, known, batch, job)
        except ray.exceptions.RayError as error:
            raise RuntimeError(
                f"Ray stopped ({first_line(error)}). The photos that were committed are in the "
                "index: run the same command again to resume."
            ) from error


def _results(part: list[Work], known: Any, batch: int, job: Job) -> Iterator[Result]:
    """What became of the photos of one part."""
    ray = import_module("ray")
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    machines = sum(node["Alive"] for node in ray.nodes())
    blocks = min(len(part), max(-(-len(part) // READ), int(resources.get("CPU", 1))))
    rows = min(max(len(part) // 64, SMALLEST_FRAGMENT), LARGEST_FRAGMENT)
    results = (
        ray.data.from_items([_packed(work) for work in part], override_num_blocks=blocks)
        .map_batches(_read, batch_size=READ, fn_kwargs={"known": known, "job": job})
        .map_batches(
            _Encoder,
            batch_size=READ,
            fn_constructor_kwargs={"job": job, "batch": batch},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus or machines),
            num_gpus=1 if gpus else 0,
        )
        .map_batches(_write, batch_size=rows, fn_kwargs={"job": job})
    )
    for found in results.iter_batches(batch_size=None):
        for result in _unpacked(found):
            if isinstance(result, Exception):
                raise result
            yield result


def _read(batch: Batch, known: Any, job: Job) -> Batch:
    """Reads photos: each becomes `(Work, Photo | Exception)`."""
    if not isinstance(known, np.ndarray):
        known = import_module("ray").get(known)
    works = _unpacked(batch)
    files = (work.candidate.file for work in works)
    found = photos.read_all(
        files, job.image_size, job.preprocessing, functools.partial(_contains, known)
    )
    return _batch(list(zip(works, found, strict=True)))


def _contains(digests: np.ndarray, digest: bytes) -> bool:
    """Whether sorted digests contain one."""
    place = np.searchsorted(digests, np.bytes_(digest))
    return bool(place < len(digests) and digests[place] == np.bytes_(digest))


class _Encoder:
    """Encodes photos that were read: each becomes `(Work, Encoded)`, and others remain."""

    def __init__(self, job: Job, batch: int):
        self._job, self._batch = job, batch

    @functools.cached_property
    def _encoder(self) -> CompiledEncoder:
        retriever = reading.load(self._job.checkpoint)
        if fingerprint(retriever) != self._job.fingerprint:
            raise ValueError(
                f"The checkpoint {self._job.checkpoint} has other weights on the worker "
                f"{os.uname().nodename} than here: copy the same checkpoint to all machines, or "
                "give one that they share."
            )
        return CompiledEncoder(retriever)

    def __call__(self, batch: Batch) -> Batch:
        read: list[tuple[Work, Photo]] = []
        rest: list[Any] = []
        for work, photo in _unpacked(batch):
            decoded = isinstance(photo, Photo) and photo.image is not None
            (read if decoded else rest).append((work, photo))
        if not read:
            return _batch(rest)
        try:
            rows = encoded_rows(self._encoder, read, self._job.keep_features, self._batch)
        except (OSError, ValueError, FloatingPointError) as error:
            return _batch([error])  # Ray's traceback would hide one that is raised here
        for (work, photo), row in zip(read, rows, strict=True):
            rest.append((work, Encoded(row, photo.damaged_metadata)))
        return _batch(rest)


def _write(batch: Batch, job: Job) -> Batch:
    """Writes the rows of new photos: they become one `Written`, and others remain."""
    import pyarrow as pa  # type: ignore[import-untyped]  # it has no types

    new: list[tuple[Work, Encoded]] = []
    rest: list[Any] = []
    for result in _unpacked(batch):
        is_new = (
            isinstance(result, tuple) and isinstance(result[1], Encoded) and not result[0].known
        )
        (new if is_new else rest).append(result)
    if new:
        table = pa.Table.from_pylist([done.row for _, done in new], schema=job.write.schema)
        try:
            fragments = job.write(table)["fragment"].to_pylist()
        except (OSError, ValueError) as error:
            return _batch([error])
        damaged = sum(done.damaged_metadata for _, done in new)
        rest.append(Written(fragments, [work.id for work, _ in new], damaged))
    return _batch(rest)


# Ray Data carries rows of Arrow types: ours are one column of pickled results.


def _packed(result: Any) -> dict[str, bytes]:
    return {"item": pickle.dumps(result, pickle.HIGHEST_PROTOCOL)}


def _batch(results: list[Any]) -> Batch:
    packed = np.empty(len(results), object)
    packed[:] = [_packed(result)["item"] for result in results]
    return {"item": packed}


def _unpacked(batch: Batch) -> list[Any]:
    return [pickle.loads(item) for item in batch["item"]]
