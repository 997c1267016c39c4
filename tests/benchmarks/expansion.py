"""Query expansion: its cost on 100,000 photos, and its accuracy beside ICFRR's.

    python -m tests.benchmarks.expansion cost [--photos=100000] [--width=512] [--k=30]
    python -m tests.benchmarks.expansion compare --checkpoint=runs/lite0 [--manual_dir=~/Sketchy]

`cost` uses synthetic embeddings (clusters of 200, as in `gallery.py`). It times `expand` for many
queries at once, as in an evaluation, and what it adds to the search of one sketch in an index.

`compare` ranks the classes by which a checkpoint was selected (held-out seen classes with
`config.evaluation.classes="held_out"`): by embedding, with expansion, and with ICFRR (Hudson and
Smith, arXiv 2303.17703), for several numbers of photos each.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from tests.benchmarks import gallery
from tests.benchmarks.machine import describe
from zse_jax.retrieval import expansion, metrics


def milliseconds(run, rounds: int, queries: int = 1) -> str:
    """Median and smallest wall time of `run` for each query, after a warm-up, as text."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began) / queries)
    return f"{statistics.median(times[1:]):.1f} ms (fastest {min(times[1:]):.1f})"


def cost(options: argparse.Namespace) -> None:
    """Time per query, for many queries at once and for one search."""
    from zse_jax.gallery.shortlist import EXPANDED_AMONG, Shortlister
    from zse_jax.gallery.tables import Tables

    print(describe("jax", "numpy", "pylance"))
    centres = gallery.clusters(options.photos, options.width)
    sketches = gallery.drawn(centres, options.sketches, 10**6)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        photos = gallery.write(Path(folder) / "index", centres, options.photos)
        shortlister = Shortlister(Tables(Path(folder) / "index"))
        print(f"{options.photos:,} photos of width {options.width}, k={options.k}")
        on_device = jax.device_put((sketches, photos))
        whole = milliseconds(
            lambda: expansion.expand(*on_device, options.k).block_until_ready(),
            options.rounds,
            len(sketches),
        )
        print(f"{len(sketches)} queries at once, expanded: {whole} a query")
        one = iter(itertools.cycle(sketches))
        for count in (200, EXPANDED_AMONG):
            took = milliseconds(lambda count=count: shortlister(next(one), count), 40)
            print(f"one search: the first {count:,}: {took}")
        wider = shortlister(sketches[0], EXPANDED_AMONG)
        added = milliseconds(lambda: shortlister.expanded(sketches[0], wider, options.k), 40)
        print(f"one search: their order by the expanded query: {added} more")


def icfrr(
    similarity: Float[np.ndarray, "q g"],
    photos: Float[np.ndarray, "g g"],
    k: int,
    beta: float = 0.5,
    rounds: int = 5,
) -> Float[np.ndarray, "q g"]:
    """Similarities after iterative cluster-free re-ranking, with K_Q = K_G = k.

    In each round, a photo's score grows by beta times the mean, over the first k photos of the
    query, of 1 - r / (G - 1), where r < k is its rank among the neighbours of that photo, from 0,
    and of 0 for r >= k. Beta and the rounds are the defaults of the published code.
    """
    without_self = photos - 2 * np.eye(len(photos), dtype=photos.dtype)
    ranks = np.argsort(np.argsort(-without_self, axis=1), axis=1)
    weights = np.where(ranks < k, 1 - ranks / (len(photos) - 1), 0)
    scores = similarity.astype(np.float64)
    for _ in range(rounds):
        first = np.argsort(-scores, axis=1)[:, :k]
        scores = scores + beta * weights[first].mean(axis=1)
    return scores.astype(np.float32)


def compare(options: argparse.Namespace) -> None:
    """Metrics of expansion and of ICFRR by k, exact convention."""
    from zse_jax.checkpoints import reading
    from zse_jax.evaluation.evaluator import Evaluator
    from zse_jax.retrieval.encoding import encode
    from zse_jax.runtime import sharding

    step, retriever = reading.load_step(options.checkpoint)
    config = reading.read_config(options.checkpoint, step)
    for key in ("manual_dir", "data_dir"):
        config.data[key] = getattr(options, key) or config.data[key]
    evaluator = Evaluator(config, sharding.make_mesh(), 1, 1, selection=True)
    vectors, labels = [], []
    for items, modality in ((evaluator.sketches, "sketch"), (evaluator.photos, "photo")):
        batches = evaluator.batches(items, retriever.image_size)
        features, found = encode(retriever, batches, modality, progress=modality)
        vectors.append(np.asarray(retriever.embed(features, modality), np.float32))
        labels.append(found)
    sketches, photos = vectors
    plain, among = sketches @ photos.T, photos @ photos.T
    kind = evaluator.notes.get("classes", "unseen")
    print(f"{options.checkpoint}, step {step}: {evaluator.size}, {kind} classes; exact, percent")
    rows = {"embedding": plain}
    for k in options.ks:
        moved = np.asarray(expansion.expand(sketches, photos, k))
        rows[f"+ expansion, k = {k}"] = moved @ photos.T
    for k in options.ks:
        rows[f"+ ICFRR, K = {k}"] = icfrr(plain, among, k)
    for name, similarity in rows.items():
        values = metrics.rank_metrics(similarity, *labels, ap="exact")
        text = ", ".join(f"{key} {100 * value:.1f}" for key, value in values.items())
        print(f"  {name:22} {text}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["cost", "compare"])
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--sketches", type=int, default=256)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", help="folder for temporary files")
    parser.add_argument("--checkpoint", default="runs/lite0")
    parser.add_argument("--manual_dir", help="the unpacked benchmark, if it was moved")
    parser.add_argument("--data_dir", help="the prepared data sets, if they were moved")
    parser.add_argument("--ks", type=int, nargs="+", default=[5, 10, 20, 30, 60])
    options = parser.parse_args()
    {"cost": cost, "compare": compare}[options.what](options)


if __name__ == "__main__":
    main()
