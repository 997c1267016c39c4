"""Processes of `gallery_scale`: each builds one index or measures one setting of a search.

    python -m tests.benchmarks.gallery_scale_process TASK.json ANSWER.json

The task is a function of `TASKS` and its arguments. The answer also has the peak memory of the
process: every task has a process for itself, so no other task contributes to it.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.gallery import K, clusters, drawn, peak

PHOTOS = "photos"  # the name of the table

CHUNK = 2**16
"""Embeddings that are drawn at once."""

COMMIT = 16 * CHUNK
"""Embeddings of one commit. Files of this size are not compacted, which would copy them all."""


def opened(index: str, cache: float = 0.1) -> Any:
    """The photos of an index in Lance; `cache`: GB of its partitions that are cached at most."""
    import lance

    os.environ.setdefault("LANCE_LOG", "error")
    session = lance.Session(index_cache_size_bytes=int(cache * 2**30))
    return lance.dataset(f"{index}/{PHOTOS}.lance", session=session)


def vectors(index: str) -> Iterator[np.ndarray]:
    """The embeddings of an index in batches, in the order of their row numbers."""
    from zse_jax.gallery.tables import Tables

    last = -1
    for some, rows in Tables(index).embedding_batches():
        if rows[0] <= last or (np.diff(rows) <= 0).any():
            raise RuntimeError(f"{index} was not read in the order of its row numbers.")
        last = rows[-1]
        yield some


def chunks(centres: np.ndarray, start: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
    """The embeddings from `start` to `end`, and the place of the first, in chunks.

    Each chunk has another seed, so it does not depend on the chunks that were drawn before.
    """
    for first in range(start, end, CHUNK):
        yield first, drawn(centres, min(CHUNK, end - first), first + 1)


def write(index: Path, centres: np.ndarray, start: int, end: int) -> None:
    """Adds these embeddings to an index, which is created if it does not exist."""
    import pyarrow as pa

    from zse_jax.gallery.tables import Tables

    width = centres.shape[1]
    about = {"checkpoint": "", "step": 0, "fingerprint": "", "features": False}
    table = Tables.create(index, about, width)
    for first in range(start, end, COMMIT):
        last = min(first + COMMIT, end)
        ids = pa.array([f"{i:024}" for i in range(first, last)])
        values = [
            pa.FixedSizeListArray.from_arrays(pa.array(some.ravel()), width)
            for _, some in chunks(centres, first, last)
        ]
        table.append({"id": ids, "path": ids, "embedding": pa.chunked_array(values)})


def write_part(index: str, photos: int, width: int, start: int, end: int) -> dict[str, Any]:
    """Adds a part of the embeddings of a table of this size; returns the seconds of writing."""
    centres = clusters(photos, width)
    began = time.perf_counter()
    write(Path(index), centres, start, end)
    return {"seconds": time.perf_counter() - began}


def build_lance(index: str, name: str, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Builds an approximate index of this kind."""
    table = opened(index)
    began = time.perf_counter()
    settings = {"metric": "dot", **arguments}
    table.create_index("embedding", kind, replace=True, name=name, **settings)
    return {"seconds": time.perf_counter() - began}


def build_faiss(
    index: str, file: str, photos: int, partitions: int, sub_vectors: int, half: bool
) -> dict[str, Any]:
    """Builds faiss's IVF-PQ index from the table: trains on the first photos, adds in batches.

    `half`: the form with half a byte for each sub-vector.
    """
    import faiss

    began = time.perf_counter()
    sample: list[np.ndarray] = []
    wanted = min(photos, max(64 * partitions, 65_536))
    for some in vectors(index):
        sample.append(some[: wanted - sum(map(len, sample))].copy())
        if sum(map(len, sample)) >= wanted:
            break
    training = np.concatenate(sample)
    width = training.shape[1]
    bits = 4 if half or wanted < 256 else 8
    form = faiss.IndexIVFPQFastScan if half else faiss.IndexIVFPQ
    ivf = form(
        faiss.IndexFlatIP(width), width, partitions, sub_vectors, bits, faiss.METRIC_INNER_PRODUCT
    )
    ivf.train(training)
    del training, sample
    for some in vectors(index):
        ivf.add(np.ascontiguousarray(some))
    faiss.write_index(ivf, file)
    return {"seconds": time.perf_counter() - began, "bytes": Path(file).stat().st_size}


def timed(search: Callable[[np.ndarray], np.ndarray], folder: str, output: str) -> dict[str, Any]:
    """Searches with the warm-up's queries, then with the others, whose times count.

    The rows that were found are written to `output`.
    """
    before = peak()
    for one in np.load(Path(folder) / "warm-up.npy"):
        search(one)
    queries, times = np.load(Path(folder) / "queries.npy"), []
    rows = np.full((len(queries), K), -1, np.int64)
    for number, one in enumerate(queries):
        began = time.perf_counter()
        found = search(one)
        times.append(1e3 * (time.perf_counter() - began))
        rows[number, : len(found)] = found
    np.save(output, rows)
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50_ms": p50, "p95_ms": p95, "memory_before_gb": before}


def search_lance(
    folder: str, index: str, output: str, cache: float, setting: dict[str, int]
) -> dict[str, Any]:
    """Searches with the approximate index of Lance."""
    table = opened(index, cache)
    names = {"probes": "nprobes", "refine": "refine_factor", "ef": "ef"}
    settings = {names[name]: value for name, value in setting.items()}

    def search(one: np.ndarray) -> np.ndarray:
        query = {"column": "embedding", "q": one, "k": K, "metric": "dot", **settings}
        found = table.to_table(["_distance"], nearest=query, with_row_id=True)
        return found.column("_rowid").to_numpy().astype(np.int64)

    return timed(search, folder, output)


def search_faiss(
    folder: str, index: str, file: str, output: str, setting: dict[str, int]
) -> dict[str, Any]:
    """Searches with faiss, and compares the first candidates by the embeddings in the table."""
    import faiss

    from zse_jax.gallery.tables import Tables

    ivf = faiss.read_index(file)
    ivf.nprobe = setting.get("probes", ivf.nlist)
    table, rows = Tables(index), np.load(Path(folder) / "rows.npy", mmap_mode="r")

    def search(one: np.ndarray) -> np.ndarray:
        places = ivf.search(one[None], K * setting["refine"])[1][0]
        candidates = np.asarray(rows[places[places >= 0]])
        similarity = table.embeddings_of(candidates) @ one
        return candidates[np.argsort(-similarity)[:K]]

    return timed(search, folder, output)


def search_codes(folder: str, output: str) -> dict[str, Any]:
    """Compares all codes by Hamming distance, as `zse_jax.retrieval` does."""
    from zse_jax.retrieval import codes

    gallery = np.load(Path(folder) / "codes.npy")
    rows = np.load(Path(folder) / "rows.npy", mmap_mode="r")
    projection = np.load(Path(folder) / "projection.npy")

    def search(one: np.ndarray) -> np.ndarray:
        return rows[codes.search(signs(one[None], projection), gallery, K)[1][0]]

    return timed(search, folder, output)


def signs(embeddings: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """The signs of random projections, packed into words of 32 bits."""
    return np.packbits(embeddings @ projection >= 0, axis=1).view(np.uint32)


def search_on(folder: str, index: str, stop: str, started: str) -> dict[str, Any]:
    """Searches until the file `stop` exists, each time in the newest commit.

    Returns the start (seconds since the epoch), milliseconds and error of every search.
    """
    from zse_jax.gallery.tables import Tables

    table, searches = Tables(index), []
    queries = np.load(Path(folder) / "queries.npy")
    while not Path(stop).exists():
        error, at, began = "", time.time(), time.perf_counter()
        try:
            table.refresh()
            found, _ = table.nearest(queries[len(searches) % len(queries)], K)
            if len(found) < K:
                error = f"{len(found)} photos instead of {K}"
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        searches.append([at, 1e3 * (time.perf_counter() - began), error])
        Path(started).touch()
    return {"searches": searches}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (
        write_part,
        build_lance,
        build_faiss,
        search_lance,
        search_faiss,
        search_codes,
        search_on,
    )
}


def main(task: str, answer: str) -> None:
    """Runs one task."""
    name, arguments = json.loads(Path(task).read_text())
    importlib.import_module("pyarrow")  # its memory is in every process
    found = TASKS[name](**arguments)
    Path(answer).write_text(json.dumps({**found, "memory_gb": peak()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
