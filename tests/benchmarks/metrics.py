"""Ranking metrics against loops over queries and ranks like those of the published evaluator.

    python -m tests.benchmarks.metrics [--queries 2000] [--gallery 20000] [--slice 40]

Both sides get the same similarities in one process, in alternation; the loops get a slice of the
queries, and their time is divided by its size. They sort each query's gallery, then loop over it
once for every metric, with `voc` interpolation as a Python loop over all ranks. (The published
evaluator starts processes for that; here it is one process.) The metrics must be equal.
"""

import argparse
import resource
import statistics
import time

import jax
import numpy as np

from tests.benchmarks.machine import describe
from zse_jax.retrieval.metrics import CONVENTIONS, METRICS, query_metrics, query_metrics_of
from zse_jax.retrieval.ranking import rank
from zse_jax.retrieval.results import Evaluation


def looped(similarity, query_labels, gallery_labels):
    """The metrics in the `voc` convention, query by query."""
    relevant = (query_labels[:, None] == gallery_labels) * 1
    order = (-similarity).argsort()
    ordered = [row[indices] for row, indices in zip(relevant, order, strict=True)]
    average = [[interpolated(row, top) for row in ordered] for top in (None, 200)]
    precision = [[row[: min(top, row.sum())].mean() for row in ordered] for top in (100, 200)]
    return dict(zip(METRICS, map(np.mean, (*average, *precision)), strict=True))


def interpolated(relevant, top):
    """VOC average precision of one query, a rank at a time."""
    possible = relevant.sum() if top is None else min(top, relevant.sum())
    relevant = relevant[:top]
    found, missed = np.cumsum(relevant), np.cumsum(np.logical_not(relevant))
    recall = np.concatenate(([0.0], found / possible, [1.0]))
    precision = np.concatenate(([0.0], found / (found + missed), [0.0]))
    for place in range(len(precision) - 2, -1, -1):
        precision[place] = max(precision[place], precision[place + 1])
    steps = [after != before for after, before in zip(recall[1:], recall[:-1], strict=True)]
    return ((recall[1:] - recall[:-1])[steps] * precision[1:][steps]).sum()


def timed(function, *arguments):
    """The result, and the seconds it took: wall time and CPU time."""
    clock, processors = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, np.array([time.perf_counter() - clock, time.process_time() - processors])


def peak_memory():
    """Peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def intervals(similarity, query_labels, gallery_labels):
    """Seconds for bootstrap intervals of every metric in every convention."""
    ranked = rank(similarity, query_labels, gallery_labels)
    evaluation = Evaluation(
        name="",
        by_query={"score": query_metrics_of(ranked)},
        chances=dict.fromkeys(CONVENTIONS, 0.0),
        seconds={},
        sketch_labels=query_labels,
        photo_labels=gallery_labels,
        top={"score": ranked.top},
        top_similarity={"score": ranked.top_similarity},
    )
    return timed(evaluation.intervals)[1][0]


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--gallery", type=int, default=20000)
    parser.add_argument("--classes", type=int, default=30)
    parser.add_argument("--slice", type=int, default=40, help="queries for the loops")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    print(describe("numpy", "scipy", "jax"))
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((options.queries, options.gallery), dtype=np.float32)
    labels = [rng.integers(0, options.classes, n) for n in similarity.shape]
    part = similarity[: options.slice], labels[0][: options.slice], labels[1]
    before = peak_memory()

    ours, theirs, peak = [], [], 0
    for _ in range(options.rounds):
        _, seconds = timed(query_metrics, similarity, *labels)
        ours.append(seconds / options.queries)
        peak = peak or peak_memory()  # Before the loops allocate.
        expected, seconds = timed(looped, *part)
        theirs.append(seconds / len(part[0]))
    mine = {name: x.mean() for name, x in query_metrics(*part)["voc"].items()}
    assert all(abs(mine[name] - expected[name]) < 1e-9 for name in METRICS), (mine, expected)

    our, their = np.median(ours, axis=0), np.median(theirs, axis=0)
    size = f"{options.queries:,} x {options.gallery:,}"
    print(f"{size} float32 similarities, {len(METRICS)} metrics, {len(CONVENTIONS)} conventions")
    print(
        f"ours: {our[0] * options.queries:.2f} s, {our[0] * 1e3:.3f} ms per query; CPU time "
        f"{our[1] * 1e3:.3f} ms"
    )
    print(f"loops over {len(part[0])} queries, one convention: {their[0] * 1e3:.2f} ms per query")
    print(f"ratio: {their[0] / our[0]:.0f} in wall time, {their[1] / our[1]:.0f} in CPU time")
    print(
        f"memory: peak {peak / 1e9:.2f} GB, {before / 1e9:.2f} GB before ranking; similarities "
        f"{similarity.nbytes / 1e9:.2f} GB"
    )
    placed, on_device = jax.device_put(similarity), []
    for _ in range(options.rounds + 1):
        on_device.append(timed(rank, placed, *labels)[1][0])
    print(
        f"rank() of a jax array on {jax.devices()[0].device_kind}: "
        f"{statistics.median(on_device[1:]):.2f} s, the first time {on_device[0]:.2f} s"
    )
    print(f"bootstrap intervals of {size}: {intervals(similarity, *labels):.2f} s")


if __name__ == "__main__":
    main()
