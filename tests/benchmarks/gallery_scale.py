"""Measures approximate indexes from 10^5 photos on: `python -m tests.benchmarks.gallery scale`.

    python -m tests.benchmarks.gallery scale --photos=10000000 --output=scale
    python -m tests.benchmarks.gallery scale --output=scale --plot=docs/gallery-scale.png

Sizes are the powers of ten from 10^5 up to --photos, or --sizes. Embeddings are synthetic: clusters
of about 200 photos, like photos of one class; queries are from the same clusters. Recall@200 is
relative to the exact 200 nearest. For each size, `VARIANTS` are built on one table, one after the
other, and each setting of a search is measured in a process for itself, after a warm-up with other
queries. Latency is that of one query at a time. Memory is the peak of that process (without the
files that the system caches). Lance caches at most --cache GB of an index.

`half64` has codes of half a byte for each four numbers, in few partitions, all of which are
searched; `half32` and `half16` have codes for each eight and sixteen numbers, and `half32` is also
measured with some of the partitions. The product's settings are those of `half64` up to 3,000,000
photos, and above those of `half32` with probes=192 refine=5. The other variants have √N partitions
and search the nearest of them.

faiss's indexes have the partitions and bytes per photo of Lance's. Like Lance, the benchmark
then compares its first candidates by their embeddings, which it reads from the table. Codes are
the signs of 64 random projections and are searched exhaustively; their recall is that of the
Hamming distance alone, and is not comparable with that of an index that compares embeddings.

`reindex`: one process searches without a break in the index of the product while another compacts
and rebuilds it. `add`: 1 % more photos, added as the product does (which compacts and indexes them
only if the index is scattered), compared with writing and indexing all others. Both use at most
10^6 photos.

Every measurement is written to results.json in --output at once. The same command resumes: what was
measured is skipped. --plot draws the results that exist, and measures nothing.
"""

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import paths
from tests.benchmarks.ablation import DASH
from tests.benchmarks.gallery import K, clusters, drawn
from tests.benchmarks.gallery_scale_process import COMMIT, PHOTOS, chunks, opened, signs, write
from tests.benchmarks.machine import describe
from zse_jax.gallery.tables import index_settings

ROOT = Path(__file__).resolve().parents[2]

RECALL = 0.95
"""The recall that a setting needs."""

UPKEEP_UP_TO = 10**6
"""Photos of `reindex` and `add`, at most."""

WARM_UP = 20  # queries

_PROBES = (32, 64, 128, 256)
_GOALS = {"p95_ms": 100, "memory_gb": 4}


@dataclasses.dataclass(frozen=True)
class Variant:
    """An index and the settings of its searches.

    Attributes:
      kind: the name of an index in Lance, "faiss", or "codes".
      settings: of the searches.
      bytes: of the index, per photo of width 512 (an estimate).
      sub_vectors: of a product quantiser.
      half: codes of half a byte for each sub-vector instead of a byte, in the product's partitions.
    """

    kind: str
    settings: tuple[dict[str, int], ...]
    bytes: int
    sub_vectors: int = 0
    half: bool = False

    def arguments(self, photos: int, width: int) -> dict[str, Any]:
        """Arguments of the index."""
        found: dict[str, Any] = {"num_partitions": self.partitions(photos)}
        if self.half:
            found = index_settings(photos, width)
        if self.sub_vectors:
            found["num_sub_vectors"] = min(self.sub_vectors, width // 4)
        return found

    def partitions(self, photos: int) -> int:
        """The number of partitions; of a graph, one for each 2^20 photos."""
        if self.half:
            return index_settings(photos, 4)["num_partitions"]
        most = photos / 2**20 if "HNSW" in self.kind else photos**0.5
        return max(1, round(most))


def _probed(refinements: Sequence[int]) -> tuple[dict[str, int], ...]:
    return tuple({"probes": p, "refine": r} if r else {"probes": p}
                 for p in _PROBES for r in refinements)  # fmt: skip


def _graph(refinements: Sequence[int]) -> tuple[dict[str, int], ...]:
    """All partitions, which are few, are searched."""
    return tuple(
        {"ef": ef, "refine": r} for ef in (200, 400, 800, 2000) for r in refinements if K * r <= ef
    )


_ALL = tuple({"refine": refine} for refine in (1, 2, 5, 10))
_MOST = tuple({"probes": p, "refine": r} for p in (128, 160, 192) for r in (2, 5))

VARIANTS = {
    "half64": Variant("IVF_PQ", _ALL, 72, 128, half=True),
    "half32": Variant("IVF_PQ", (*_ALL, *_MOST), 40, 64, half=True),
    "half16": Variant("IVF_PQ", _ALL, 24, 32, half=True),
    "flat": Variant("IVF_FLAT", _probed([0]), 2048),
    "pq64": Variant("IVF_PQ", _probed([2, 5, 10]), 72, 64),
    "pq128": Variant("IVF_PQ", _probed([2, 5, 10]), 136, 128),
    "rq": Variant("IVF_RQ", _probed([2, 5, 10]), 90),
    "hnsw-sq": Variant("IVF_HNSW_SQ", _graph([1, 2]), 720),
    "hnsw-pq": Variant("IVF_HNSW_PQ", _graph([1, 2, 4, 10]), 270, 64),
    "faiss-half64": Variant("faiss", _ALL, 72, 128, half=True),
    "faiss-half16": Variant("faiss", _ALL, 24, 32, half=True),
    "faiss-pq64": Variant("faiss", _probed([2, 5, 10]), 72, 64),
    "faiss-pq128": Variant("faiss", _probed([2, 5, 10]), 136, 128),
    "codes": Variant("codes", ({},), 8),
}

PARTS = ("reindex", "add")

LABELS = {
    "half64": "Lance PQ, 64 bytes of 4-bit codes",
    "half32": "Lance PQ, 32 bytes of 4-bit codes",
    "half16": "Lance PQ, 16 bytes of 4-bit codes",
    "flat": "Lance IVF-Flat",
    "pq64": "Lance IVF-PQ, 64 bytes",
    "pq128": "Lance IVF-PQ, 128 bytes",
    "rq": "Lance IVF-RaBitQ, 1 bit",
    "hnsw-sq": "Lance HNSW-SQ",
    "hnsw-pq": "Lance HNSW-PQ, 64 bytes",
    "faiss-half64": "faiss PQ, 64 bytes of 4-bit codes",
    "faiss-half16": "faiss PQ, 16 bytes of 4-bit codes",
    "faiss-pq64": "faiss IVF-PQ, 64 bytes",
    "faiss-pq128": "faiss IVF-PQ, 128 bytes",
    "codes": "64-bit codes",
}


class Results:
    """Measurements by name, in a file that every new one is added to."""

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        """Reads the file if it exists.

        Raises:
          ValueError: the file has measurements of other settings.
        """
        self.file = folder / "results.json"
        self.values: dict[str, dict[str, Any]] = {}
        self.about = dict(about)
        if self.file.exists():
            found = json.loads(self.file.read_text())
            other = {k: v for k, v in found["about"].items() if about.get(k, v) != v}
            if other:
                raise ValueError(
                    f"{self.file} has measurements with {other}: use these values, or another "
                    "--output."
                )
            self.values, self.about = found["measurements"], {**found["about"], **about}

    def measured(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement of this name; it is taken if the file does not have it."""
        if name not in self.values:
            self.values[name] = measure()
            print(f"{name}: {shown(self.values[name])}", flush=True)
            self.write()
        return self.values[name]

    def write(self) -> None:
        """Replaces the file in one step."""
        text = json.dumps({"about": self.about, "measurements": self.values}, indent=1)
        paths.replace(self.file, text + "\n")

    def of(self, photos: int, variant: str) -> dict[str, dict[str, Any]]:
        """The searches of a variant, by setting."""
        start = f"{photos}/{variant}/search/"
        return {k.removeprefix(start): v for k, v in self.values.items() if k.startswith(start)}

    def sizes(self) -> list[int]:
        """The sizes that have measurements, smallest first."""
        return sorted({int(key.split("/")[0]) for key in self.values})


def shown(measurement: Mapping[str, Any]) -> str:
    """A measurement as text."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in measurement.items()
    )


def named(setting: Mapping[str, int]) -> str:
    """A setting as text."""
    return " ".join(f"{key}={value}" for key, value in setting.items()) or "all"


def cheapest(searches: Mapping[str, Mapping[str, Any]], recall: float = RECALL) -> str | None:
    """The setting with the lowest p95 among those that reach `recall`; None if none does."""
    good = {name: one for name, one in searches.items() if one["recall"] >= recall}
    return min(good, key=lambda name: good[name]["p95_ms"]) if good else None


def most_accurate(searches: Mapping[str, Mapping[str, Any]]) -> str:
    """The setting with the greatest recall."""
    return max(searches, key=lambda name: searches[name]["recall"])


def truth(queries: np.ndarray, parts: Iterable[tuple[int, np.ndarray]], k: int = K) -> np.ndarray:
    """The places of the `k` embeddings nearest to each query, nearest first.

    Only one part is in memory at a time.
    """
    best = np.full((len(queries), 0), -np.inf, np.float32)
    places = np.zeros((len(queries), 0), np.int64)
    for first, some in parts:
        best = np.concatenate([best, queries @ some.T], axis=1)
        new = np.broadcast_to(np.arange(first, first + len(some)), (len(queries), len(some)))
        places = np.concatenate([places, new], axis=1)
        if best.shape[1] > k:
            top = np.argpartition(-best, k - 1, axis=1)[:, :k]
            best = np.take_along_axis(best, top, axis=1)
            places = np.take_along_axis(places, top, axis=1)
    return np.take_along_axis(places, np.argsort(-best, axis=1, kind="stable"), axis=1)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """The mean share of `wanted` in `found`, both [query, k]."""
    both = [len(np.intersect1d(a, b)) for a, b in zip(found, wanted, strict=True)]
    return sum(both) / wanted.size


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Scale:
    """The measurements of one size."""

    def __init__(self, photos: int, options: argparse.Namespace, results: Results):
        """Names the files; writes nothing."""
        self.photos, self.results, self.options = photos, results, options
        self.scratch = Path(options.scratch or Path(options.output) / "scratch").resolve()
        self.folder, self.index = self.scratch / str(photos), self.scratch / f"index-{photos}"
        self.centres = clusters(photos, options.width)
        self.wanted = np.zeros((0, K), np.int64)

    def needed(self, name: str) -> int:
        """Bytes on disk that a variant or part needs at most besides the table."""
        row = 4 * self.options.width
        if name in PARTS:
            # A compacted copy, the index, the rebuilt index, and temporary files.
            return 5 * row * min(self.photos, UPKEEP_UP_TO)
        # The index and the temporary files of its build, of which some have whole embeddings.
        return int(2.2 * VARIANTS[name].bytes * self.photos * row / 2048) + 10**8

    def prepare(self) -> None:
        """Writes the table and what is searched for, unless they exist."""
        from zse_jax.gallery.tables import Tables

        self.folder.mkdir(parents=True, exist_ok=True)
        width, photos = self.options.width, self.photos
        if not (self.folder / "rows.npy").exists():
            shutil.rmtree(self.index, ignore_errors=True)
            seconds = 0.0
            for first in range(0, photos, COMMIT):  # in processes, which return their memory
                last = min(first + COMMIT, photos)
                written = self.task(
                    "write_part", index=str(self.index), photos=photos, width=width, start=first,
                    end=last,
                )  # fmt: skip
                seconds += written["seconds"]
            rows = Tables(self.index).columns("_rowid").column("_rowid").to_numpy()
            # Row numbers ascend in the order in which the photos were written.
            save(self.folder / "rows.npy", np.sort(rows.astype(np.int64)))
            about = {"seconds": seconds, "bytes": size(self.index)}
            self.results.measured(f"{photos}/table", lambda: about)
        if not (self.folder / "truth.npy").exists():
            queries = drawn(self.centres, self.options.sketches, 10**6)
            save(self.folder / "queries.npy", queries)
            save(self.folder / "warm-up.npy", drawn(self.centres, WARM_UP, 10**6 + 2))
            projection = np.random.default_rng(3).standard_normal((width, 64), dtype=np.float32)
            codes = np.empty((photos, 2), np.uint32)

            def coded() -> Iterator[tuple[int, np.ndarray]]:
                for first, some in chunks(self.centres, 0, photos):
                    codes[first : first + len(some)] = signs(some, projection)
                    yield first, some

            places = truth(queries, coded())
            save(self.folder / "projection.npy", projection)
            save(self.folder / "codes.npy", codes)
            save(self.folder / "truth.npy", places)
        rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        self.wanted = np.asarray(rows[np.load(self.folder / "truth.npy")])

    def run(self, names: Sequence[str]) -> None:
        """Measures what the results do not have yet."""
        todo = [name for name in names if not self.complete(name)]
        if not todo:
            return
        if set(todo) - set(PARTS):
            self._space("the table", 0 if (self.folder / "rows.npy").exists() else
                        4 * self.options.width * self.photos * 21 // 20, needs=True)  # fmt: skip
            self.prepare()
        for name in todo:
            if not self._space(name, self.needed(name)):
                continue
            if name in PARTS:
                self.upkeep()
            else:
                self.variant(name)

    def complete(self, name: str) -> bool:
        """Whether a variant or part is measured; a part is that of the largest possible size."""
        if name in PARTS:
            return self.photos > UPKEEP_UP_TO or f"{self.photos}/{name}" in self.results.values
        wanted = {named(setting) for setting in VARIANTS[name].settings}
        return wanted <= self.results.of(self.photos, name).keys()

    def variant(self, name: str) -> None:
        """Builds an index, measures its searches, and deletes it."""
        variant, start = VARIANTS[name], f"{self.photos}/{name}"
        file = self.folder / f"{name}.faiss"
        if variant.kind == "faiss":
            if not (file.exists() and f"{start}/build" in self.results.values):
                arguments = variant.arguments(self.photos, self.options.width)
                built = self.task(
                    "build_faiss", index=str(self.index), file=str(file), photos=self.photos,
                    partitions=arguments["num_partitions"],
                    sub_vectors=arguments["num_sub_vectors"], half=variant.half,
                )  # fmt: skip
                self.results.measured(f"{start}/build", lambda: built)
        elif variant.kind == "codes":
            codes = self.folder / "codes.npy"
            self.results.measured(f"{start}/build", lambda: {"bytes": codes.stat().st_size})
        elif self._indices() != [name] or f"{start}/build" not in self.results.values:
            self._drop()
            built = self.task(
                "build_lance", index=str(self.index), name=name, kind=variant.kind,
                arguments=variant.arguments(self.photos, self.options.width),
            )  # fmt: skip
            built["bytes"] = size(self.index / f"{PHOTOS}.lance" / "_indices")
            self.results.measured(f"{start}/build", lambda: built)
        for setting in variant.settings:
            measured = f"{start}/search/{named(setting)}"
            self.results.measured(measured, lambda setting=setting: self.search(name, setting))
        if variant.kind == "faiss":
            file.unlink()
        elif variant.kind != "codes":
            self._drop()

    def search(self, name: str, setting: dict[str, int]) -> dict[str, Any]:
        """Measures one setting."""
        variant, output = VARIANTS[name], self.folder / "found.npy"
        where = {"folder": str(self.folder), "output": str(output)}
        if variant.kind == "codes":
            found = self.task("search_codes", **where)
        elif variant.kind == "faiss":
            where |= {"index": str(self.index), "file": str(self.folder / f"{name}.faiss")}
            found = self.task("search_faiss", setting=setting, **where)
        else:
            most = variant.partitions(self.photos)
            setting = {**setting, "probes": min(setting.get("probes", most), most)}
            cache = {"index": str(self.index), "cache": self.options.cache}
            found = self.task("search_lance", setting=setting, **cache, **where)
        return {"recall": recall(np.load(output), self.wanted), **found}

    def upkeep(self) -> None:
        """Measures `add` and `reindex` on an index like the product's."""
        from zse_jax.gallery.tables import Tables

        photos, more = self.photos, self.photos // 100
        place, folder = self.scratch / f"upkeep-{photos}", self.scratch / "searches"
        shutil.rmtree(place, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / "queries.npy", drawn(self.centres, self.options.sketches, 10**6))
        stop, started = folder / "stop", folder / "started"
        for file in (stop, started):
            file.unlink(missing_ok=True)
        written, indexed = self._added(place, 0, photos)
        write_more, index_more = self._added(place, photos, photos + more)
        add = {
            "photos": more,
            "build_write_seconds": written,
            "build_index_seconds": indexed,
            "write_seconds": write_more,
            "index_seconds": index_more,
            "ratio": (write_more + index_more) / (written + indexed),
        }
        self.results.measured(f"{photos}/add", lambda: add)
        process, answer = self.start(
            "search_on", folder=str(folder), index=str(place), stop=str(stop),
            started=str(started),
        )  # fmt: skip
        try:
            while not started.exists() and process.poll() is None:
                time.sleep(0.1)
            time.sleep(self.options.before)
            table, began = Tables(place), time.time()
            with table.writing():
                table.tidy()
                tidied = time.time()
                table.index()
            ended = time.time()
            time.sleep(self.options.before / 4)
        finally:
            stop.touch()
            process.wait()
        # The first search reads the metadata.
        searches = finished(process, answer)["searches"][1:]
        before = [ms for at, ms, _ in searches if at + ms / 1e3 < began]
        during = [ms for at, ms, _ in searches if at < ended and at + ms / 1e3 >= began]
        errors = [error for _, _, error in searches if error]
        reindex = {
            "compact_seconds": tidied - began,
            "index_seconds": ended - tidied,
            "searches_before": len(before),
            "searches_during": len(during),
            "failed": len(errors),
            "errors": sorted(set(errors))[:5],
            "p95_ms_before": float(np.percentile(before, 95)) if before else None,
            "p95_ms_during": float(np.percentile(during, 95)) if during else None,
            "slowest_ms_during": max(during, default=None),
        }
        self.results.measured(f"{photos}/reindex", lambda: reindex)
        shutil.rmtree(place)

    def _added(self, place: Path, start: int, end: int) -> tuple[float, float]:
        """Adds photos in ten commits, and indexes them as the product; seconds of both."""
        from zse_jax.gallery import index
        from zse_jax.gallery.tables import Tables

        began = time.perf_counter()
        step = max(1, (end - start) // 10)
        for first in range(start, end, step):
            write(place, self.centres, first, min(first + step, end))
        middle = time.perf_counter()
        table = Tables(place)
        index.prepare(table)
        if not table.is_approximate:  # too few photos for the product
            table.index()
        return middle - began, time.perf_counter() - middle

    def start(self, name: str, /, **arguments: Any) -> tuple[subprocess.Popen, Path]:
        """Starts a task in another process; returns the process and the file of its answer."""
        temporary = self.scratch / "temporary"
        temporary.mkdir(parents=True, exist_ok=True)
        task, answer = self.scratch / "task.json", self.scratch / "answer.json"
        task.write_text(json.dumps([name, arguments]))
        answer.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.benchmarks.gallery_scale_process"]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        return (
            subprocess.Popen([*command, str(task), str(answer)], cwd=ROOT, env=environment),
            answer,
        )

    def task(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Runs a task in another process; returns its answer."""
        process, answer = self.start(name, **arguments)
        try:
            process.wait()
        finally:
            process.kill()
        return finished(process, answer)

    def _space(self, what: str, needed: int, needs: bool = False) -> bool:
        self.scratch.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.scratch).free
        text = (
            f"{self.photos:,} photos, {what}: needs {needed / 1e9:.1f} GB of disk in "
            f"{self.scratch}; {free / 1e9:.1f} GB are free"
        )
        if free >= needed:
            return True
        if needs:
            raise SystemExit(f"{text}. Choose another --scratch or fewer --photos.")
        print(f"{text}. Skipped: the same command measures it when there is enough.", flush=True)
        return False

    def _indices(self) -> list[str]:
        return [index.name for index in opened(str(self.index)).describe_indices()]

    def _drop(self) -> None:
        """Deletes the approximate index and its files."""
        table = opened(str(self.index))
        for index in table.describe_indices():
            table.drop_index(index.name)
        # No other process reads these versions.
        table.cleanup_old_versions(datetime.timedelta(0), delete_unverified=True)


def save(file: Path, values: np.ndarray) -> None:
    """Writes an array in one step: a file that exists is complete."""
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        np.save(stream, values)
    part.replace(file)


def finished(process: subprocess.Popen, answer: Path) -> dict[str, Any]:
    """The answer of a process that has ended.

    Raises:
      RuntimeError: it failed.
    """
    if process.returncode or not answer.exists():
        raise RuntimeError(f"A measuring process ended with code {process.returncode}.")
    return json.loads(answer.read_text())


def table(results: Results) -> str:
    """The cheapest setting with enough recall of each variant and size, in Markdown."""
    lines = [
        "| photos | index | build, s | build memory, GB | index, GB "
        f"| fastest setting with recall ≥ {RECALL} | recall@200 | p50, ms | p95, ms | memory, GB |",
        "|" + "---|" * 10,
    ]
    for photos in results.sizes():
        for name, label in LABELS.items():
            searches = results.of(photos, name)
            build = results.values.get(f"{photos}/{name}/build")
            if not searches or not build:
                continue
            best, note = cheapest(searches), ""
            if name == "codes":
                best, note = next(iter(searches)), " (not comparable)"
            if best is None:
                best, note = most_accurate(searches), " (best recall)"
            one = searches[best]
            seconds, memory = build.get("seconds"), build.get("memory_gb")
            lines.append(
                f"| {photos:,} | {label} | {_number(seconds, 1)} | {_number(memory, 2)} "
                f"| {build['bytes'] / 1e9:.3f} | {best}{note} | {one['recall']:.3f} "
                f"| {one['p50_ms']:.1f} | {one['p95_ms']:.1f} | {one['memory_gb']:.2f} |"
            )
    for photos in results.sizes():
        for part in PARTS:
            if found := results.values.get(f"{photos}/{part}"):
                lines.append(f"\n{part}, {photos:,} photos: {shown(found)}")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def plot(results: Results, file: str) -> None:
    """Draws build time, memory and p95 of each variant by size.

    Where a variant does not reach the recall, its best is drawn as a white marker with its recall.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"seconds": "build time (s)", "memory_gb": "peak memory of a search (GB)"}
    panels["p95_ms"] = "latency, 95th percentile (ms)"
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    comparable = {
        name: label
        for name, label in LABELS.items()
        if name != "codes" and any(results.of(photos, name) for photos in results.sizes())
    }
    for number, (name, label) in enumerate(comparable.items()):
        points: dict[int, dict[str, float]] = {}
        for photos in results.sizes():
            searches = results.of(photos, name)
            if searches and (build := results.values.get(f"{photos}/{name}/build")):
                best = cheapest(searches) or most_accurate(searches)
                points[photos] = {**build, **searches[best]}
        for axis, quantity in zip(axes, panels, strict=True):
            drawn_at = [photos for photos, one in points.items() if quantity in one]
            if not drawn_at:
                continue
            heights = [points[photos][quantity] for photos in drawn_at]
            color, marker = f"C{number}", "osD^vPX<>*hpd"[number]
            style = "--" if name.startswith("faiss") else "-"
            axis.plot(drawn_at, heights, style, marker=marker, color=color, label=label)
            for photos, height in zip(drawn_at, heights, strict=True):
                if (recall := points[photos]["recall"]) < RECALL:
                    axis.plot(photos, height, marker, color=color, markerfacecolor="white")
                    axis.annotate(
                        f"recall {recall:.2f}", (photos, height), (-9, -3), ha="right",
                        textcoords="offset points", fontsize=9,
                    )  # fmt: skip
    for axis, (quantity, title) in zip(axes, panels.items(), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="photos", title=title)
        axis.grid(True, which="major", alpha=0.3)
        if quantity in _GOALS:
            goal = _GOALS[quantity]
            axis.axhline(goal, color="black", linewidth=1, linestyle=":", label="goal")
    handles = {
        text: handle
        for axis in axes
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.suptitle(
        f"Fastest setting with recall@{K} of at least {RECALL}, or, in white, the one with the "
        f"best recall; embeddings of width {results.about['width']}"
    )
    figure.savefig(file, dpi=120)


def powers(photos: int) -> list[int]:
    """10^5, 10^6, ... up to `photos`, which is always the last."""
    found = [10**power for power in range(5, 12) if 10**power < photos]
    return [*found, photos]


def main(options: argparse.Namespace) -> None:
    """Measures all sizes, or draws what was measured."""
    output = Path(options.output)
    if options.plot:
        results = Results(output, {})
        if not results.values:
            raise SystemExit(f"{results.file} does not exist or has no measurements.")
        plot(results, options.plot)
        print(table(results))
        return
    names = options.only.split(",") if options.only else [*VARIANTS, *PARTS]
    if unknown := set(names) - {*VARIANTS, *PARTS}:
        raise SystemExit(
            f"--only={options.only}: there is no {', '.join(sorted(unknown))}; choose among "
            f"{', '.join([*VARIANTS, *PARTS])}."
        )
    sizes = powers(options.photos)
    if options.sizes:
        sizes = sorted(int(float(one)) for one in options.sizes.split(","))
    if sizes[0] < 2 * K:
        raise SystemExit(f"--photos must be at least {2 * K}.")
    output.mkdir(parents=True, exist_ok=True)
    results = Results(
        output, {name: getattr(options, name) for name in ("width", "sketches", "cache")}
    )
    machine = describe("pylance", "faiss-cpu", "numpy")
    results.about["machine"] = machine
    print(machine, flush=True)
    for photos in sizes:
        Scale(photos, options, results).run(names)
    print(table(results))
