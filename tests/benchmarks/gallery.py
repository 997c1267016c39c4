"""Measures the gallery: shortlists compared with faiss, building an index, and searching.

    python -m tests.benchmarks.gallery shortlist [--photos=100000] [--width=512] [--sketches=20]
    python -m tests.benchmarks.gallery build --checkpoint=demo --photos-in=album [--count=3000]
    python -m tests.benchmarks.gallery build --untrained=Ti/16 --photos-in=album [--count=3000]
    python -m tests.benchmarks.gallery start --checkpoint=default --photos-in=album
    python -m tests.benchmarks.gallery driver [--photos=100000]
    python -m tests.benchmarks.gallery scale [--photos=10000000] [--output=scale] [--plot=FILE.png]

`shortlist` writes synthetic embeddings (clusters of 200, like photos of one class) to an index and
finds the 200 nearest to new embeddings from the same clusters, with our index, faiss's flat index
and its IVF index with √N partitions, of which it searches 256. They alternate sketch by sketch, so
that other load on the machine affects them equally. Recall is relative to exact products. Memory is
measured in a separate process that opens the index and searches.

`build` indexes photos with a checkpoint, and compares the time with that of the encoder alone on
decoded photos; adds 1 % more; and searches with drawn sketches, embeddings and pair scores.
Encoding and building alternate over --rounds.

`start` measures one search in a fresh process, with an index that exists and compiled programs on
disk, and a process that only imports the packages that it needs. They alternate over --rounds.

`driver` measures what the process that builds an index keeps in memory for each photo: of those in
the index, and of those that are listed to be sent to the workers of a Ray cluster. Names have 60
characters.

`scale` compares Lance's approximate indexes and faiss on up to ten million embeddings: see
gallery_scale.py.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.benchmarks.machine import describe

K, CLUSTER = 200, 200


def clusters(photos: int, width: int) -> np.ndarray:
    """Centres of the clusters."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((max(1, photos // CLUSTER), width), dtype=np.float32)


def drawn(centres: np.ndarray, count: int, seed: int) -> np.ndarray:
    """L2-normalised embeddings around the centres."""
    rng = np.random.default_rng(seed)
    found = centres[rng.integers(0, len(centres), count)]
    found += rng.standard_normal(found.shape, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write(place: Path, centres: np.ndarray, photos: int) -> np.ndarray:
    """Writes an index of synthetic embeddings; returns them."""
    import pyarrow as pa

    from zse_jax.gallery import index
    from zse_jax.gallery.tables import Tables

    about = {"checkpoint": "", "step": 0, "fingerprint": "", "features": False}
    table = Tables.create(place, about, centres.shape[1])
    every = np.empty((photos, centres.shape[1]), np.float32)
    for start in range(0, photos, 50_000):
        some = drawn(centres, min(50_000, photos - start), start + 1)
        every[start : start + len(some)] = some
        values = pa.FixedSizeListArray.from_arrays(pa.array(some.ravel()), centres.shape[1])
        ids = pa.array([f"{i:024}" for i in range(start, start + len(some))])
        table.append({"id": ids, "path": ids, "embedding": values})
    began = time.perf_counter()
    index.prepare(table)
    print(f"prepared for search in {time.perf_counter() - began:.1f} s", flush=True)
    return every


def memory(place: Path, width: int) -> None:
    """Opens the index, searches, and prints the peak memory and the median time."""
    from zse_jax.gallery.shortlist import Shortlister
    from zse_jax.gallery.tables import Tables

    shortlister = Shortlister(Tables(place))
    before = peak()
    times = []
    for one in drawn(clusters(20_000, width), 20, 5):
        began = time.perf_counter()
        shortlister(one, K)
        times.append(time.perf_counter() - began)
    print(
        f"a process that only searches: peak memory {peak():.2f} GB ({before:.2f} "
        f"before the first search), median {1e3 * statistics.median(times):.1f} ms"
    )


def peak() -> float:
    """Peak memory of this process in GB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def shortlist(options: argparse.Namespace) -> None:
    """Compares our shortlists with faiss."""
    import faiss

    from zse_jax.gallery.shortlist import Shortlister
    from zse_jax.gallery.tables import Tables

    print(describe("pylance", "faiss-cpu", "numpy"))
    photos, width = options.photos, options.width
    centres = clusters(photos, width)
    sketches = drawn(centres, options.sketches, 10**6)
    folder = Path(tempfile.mkdtemp(dir=options.scratch))
    try:
        every = write(folder / "index", centres, photos)
        command = [sys.executable, "-m", __spec__.name, "memory", f"--index={folder / 'index'}"]
        subprocess.run([*command, f"--width={width}"], check=True)
        exact = np.argpartition(-(sketches @ every.T), K, axis=1)[:, :K]
        table = Tables(folder / "index")
        shortlister = Shortlister(table)
        flat = faiss.IndexFlatIP(width)
        flat.add(every)
        partitions = round(photos**0.5)
        ivf = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, partitions, faiss.METRIC_INNER_PRODUCT
        )
        began = time.perf_counter()
        ivf.train(every[: 64 * partitions])
        ivf.add(every)
        print(f"faiss IVF of {partitions} partitions: built in {time.perf_counter() - began:.1f} s")
        ivf.nprobe = probes = 256
        # Row numbers ascend in the order in which the photos were written.
        numbers = np.sort(table.columns("_rowid").column("_rowid").to_numpy().astype(np.int64))
        sides: dict[str, Any] = {
            "ours": lambda one: np.searchsorted(numbers, shortlister(one, K)[0]),
            "faiss flat": lambda one: flat.search(one[None], K)[1][0],
            f"faiss IVF, {probes} probes": lambda one: ivf.search(one[None], K)[1][0],
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        recall: dict[str, list[float]] = {name: [] for name in sides}
        for wanted, one in [*zip(exact[:5], sketches[:5], strict=True)] + [
            *zip(exact, sketches, strict=True)
        ]:
            for name, side in sides.items():
                began = time.perf_counter()
                found = side(one)
                times[name].append(1e3 * (time.perf_counter() - began))
                recall[name].append(len(np.intersect1d(found, wanted)) / K)
        print(f"{K} of {photos:,} embeddings of width {width}, {options.sketches} sketches")
        ours = statistics.median(times["ours"][5:])
        for name in sides:
            median = statistics.median(times[name][5:])
            worst = max(times[name][5:])
            print(
                f"  {name:24} median {median:7.1f} ms, slowest {worst:7.1f} ms, recall@{K} "
                f"{np.mean(recall[name]):.3f}, x ours {median / ours:.2f}"
            )
    finally:
        shutil.rmtree(folder)


def written(variant: str, folder: Path) -> Path:
    """Writes a checkpoint of ZSE with random weights; returns its folder."""
    from flax import nnx

    from configs import sketchy
    from zse_jax.checkpoints import writing
    from zse_jax.retrievers import create

    config = sketchy.get_config(variant)
    config.init_from = "random"
    settings = config.model.to_dict()
    retriever = nnx.jit(lambda: create(settings, rngs=nnx.Rngs(params=0, dropout=1)))()
    writing.write(folder, 0, retriever, config)
    return folder


def build(options: argparse.Namespace) -> None:
    """Measures building, adding and searching."""
    from zse_jax.checkpoints import reading
    from zse_jax.gallery import index, photos, search
    from zse_jax.gallery.encoder import BATCH, CompiledEncoder

    print(describe("jax", "pylance", "pillow"))
    folder = Path(tempfile.mkdtemp(dir=options.scratch))
    if options.untrained:
        options.checkpoint = written(options.untrained, folder / "run")
    found = photos.find([options.photos_in]).files[: options.count]
    count = len(found)
    encoder = CompiledEncoder(reading.load(options.checkpoint))
    size = encoder.retriever.image_size
    some = np.stack([photos.prepared(one.file, size) for one in found[:BATCH]])
    encoder(some, "photo")  # compiles
    more = count // 100
    files = [one.file for one in found]
    own, whole, adding = [], [], []
    try:
        for number in range(options.rounds):
            began = time.perf_counter()
            for _ in range(0, count - more, BATCH):
                encoder(some, "photo")
            own.append(time.perf_counter() - began)
            place = folder / str(number)
            whole.append(index.build(files[more:], place, options.checkpoint).seconds)
            adding.append(index.add(place, files).seconds)
        a, b, c = (statistics.median(x) for x in (own, whole, adding))
        print(
            f"{type(encoder.retriever).__name__}, {size} pixels, {count - more:,} photos, medians "
            f"of {options.rounds}: encoder alone {a:.2f} s, building {b:.2f} s, ratio {b / a:.2f}"
        )
        print(f"adding {more} photos to them (1 %): {c:.2f} s, {100 * c / b:.1f} % of building")
        searcher = search.Searcher(index.open(place))
        rerank = options.rerank if searcher.reranks else 0
        times = []
        rng = np.random.default_rng(0)
        for _ in range(options.sketches + 2):
            drawing = np.full((300, 300, 3), 255, np.uint8)
            for row, column in rng.integers(20, 260, (30, 2)):
                drawing[row : row + 4, column : column + 40] = 0
            results = searcher(drawing, k=20, rerank=rerank)
            times.append(results)
        ms = sorted(1e3 * one.seconds for one in times[2:])
        parts = {
            name: statistics.median(1e3 * one.timings[name] for one in times[2:])
            for name in times[-1].timings
        }
        print(
            f"a search, the first {rerank} scored, after warm-up: median "
            f"{statistics.median(ms):.0f} ms, slowest {ms[-1]:.0f} ms ("
            + ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
            + ")"
        )
    finally:
        shutil.rmtree(folder)


def start(options: argparse.Namespace) -> None:
    """Compares a search in a fresh process with its imports."""
    from data_pipelines.builders.doodles import generation

    print(describe("jax", "pylance"))
    folder = Path(tempfile.mkdtemp(dir=options.scratch))
    try:
        Image.fromarray(generation.render("house", 0, "sketch")).save(folder / "house.png")
        search = (
            *("-m", "zse_jax.commands", "search", f"--photos={options.photos_in}"),
            *(f"--index={folder / 'index'}", f"--sketch={folder / 'house.png'}"),
            f"--checkpoint={options.checkpoint}",
        )
        programs = {
            "search": search,
            "imports": ("-c", "import jax, flax.nnx, optax, orbax.checkpoint, lance"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for number in range(options.rounds + 1):  # the first builds the index and compiles
            for name, words in programs.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                if number:
                    seconds[name].append(time.perf_counter() - began)
        a, b = (statistics.median(seconds[name]) for name in programs)
        print(
            f"medians of {options.rounds}: a search in a fresh process {a:.2f} s; imports of jax, "
            f"flax, optax, orbax and Lance alone {b:.2f} s, ratio {a / b:.2f}"
        )
    finally:
        shutil.rmtree(folder)


def driver(options: argparse.Namespace) -> None:
    """Memory of a process that builds an index, per photo."""
    import os
    import tracemalloc

    import pyarrow as pa

    from zse_jax.gallery import ingest, photos
    from zse_jax.gallery.tables import Tables

    print(describe("pylance", "pyarrow"))
    count = options.photos
    files = [Path(f"/photos/{number // 1000:026}/{number:020}.jpg") for number in range(count)]
    about = {"checkpoint": "", "step": 0, "fingerprint": "", "features": False}
    folder = Path(tempfile.mkdtemp(dir=options.scratch))
    try:
        table = Tables.create(folder / "index", about, 8)
        numbers = pa.array(range(count), pa.int64())
        columns = {"id": pa.array(map(photos.identity, files)), "size": numbers}
        digests = pa.array([os.urandom(32) for _ in files], pa.binary())
        table.append(columns | {"modified": numbers, "format": columns["id"], "digest": digests})
        tracemalloc.start()
        state = ingest._State(table)
        known = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        work = [
            ingest.Work(photos.Candidate(Path(os.fspath(file)), n, n), photos.identity(file), False)
            for n, file in enumerate(files)
        ]
        listed = (tracemalloc.get_traced_memory()[0] - before) / count
        print(f"{len(state.places):,} photos in the index: {known:.0f} bytes each")
        print(f"{len(work):,} photos listed: {listed:.0f} bytes each")
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "what", choices=["shortlist", "build", "start", "driver", "scale", "memory"]
    )
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--sketches", type=int, help="default: 20; for `scale`, 100")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument(
        "--untrained", help="use ZSE of this size with random weights, such as Ti/16"
    )
    parser.add_argument("--photos-in", default="album")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rerank", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", help="folder for temporary files")
    parser.add_argument("--index", help="the index of `memory`")
    scale = parser.add_argument_group("options of `scale`")
    scale.add_argument("--sizes", help="numbers of photos, separated by commas")
    scale.add_argument("--output", default="scale", help="folder of results.json")
    scale.add_argument("--only", help="indexes or parts to measure, separated by commas")
    scale.add_argument("--cache", type=float, default=2.0, help="GB of an index that are cached")
    scale.add_argument(
        "--before", type=float, default=60.0, help="seconds of searches before re-indexing"
    )
    scale.add_argument("--plot", help="draw the results to this file; measures nothing")
    options = parser.parse_args()
    options.sketches = options.sketches or (100 if options.what == "scale" else 20)
    if options.what == "memory":
        memory(Path(options.index), options.width)
    elif options.what == "scale":
        from tests.benchmarks import gallery_scale

        gallery_scale.main(options)
    else:
        {"shortlist": shortlist, "build": build, "start": start, "driver": driver}[options.what](
            options
        )


if __name__ == "__main__":
    main()
