"""A complete evaluation of real images, against a lower bound of its time.

    python -m tests.benchmarks.evaluation [--variant=Ti/16 --sketches=200 --photos=400]

Encodes and ranks sketches and photos of Sketchy's unseen classes (split 1) with an untrained
network through the evaluator of `zse_jax.evaluate`: read, decode, encode, score, measure. Before
and after it, in the same process, the same network repeatedly encodes a batch that is already on
the device, and scores one tile of pairs: each image and each pair once at those rates is the lower
bound. Both sides exclude compilation.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

from configs import sketchy
from tests.benchmarks import machine
from zse_jax import retrievers
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.retrieval import encoding, tiles
from zse_jax.runtime import sharding

LIMIT = 1.1


def median_seconds(run: Callable[[], Any], at_least: float) -> float:
    """Median seconds of `run`, repeated for at least `at_least` seconds and three times."""
    jax.block_until_ready(run())
    spent: list[float] = []
    while sum(spent) < at_least or len(spent) < 3:
        start = time.perf_counter()
        jax.block_until_ready(run())
        spent.append(time.perf_counter() - start)
    return float(np.median(spent))


def least_seconds(
    retriever: retrievers.Retriever, images: int, pairs: int, batch_size: int
) -> tuple[float, float]:
    """Seconds for the images and pairs at the rate of one batch and of one tile."""
    side = retriever.image_size
    pixels = jax.numpy.zeros((batch_size, side, side, 3), np.uint8)
    graphdef, state = encoding.evaluation_state(retriever, None)
    encode = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x, "photo"))
    features = encode(state, pixels)
    tile = 8, tiles.default_tile(features, features)[1]  # fewer sketches: as fast, sooner measured
    score = jax.jit(lambda state, s, p: nnx.merge(graphdef, state).score(s, p))
    sketches, photos = (
        jax.tree.map(lambda x, n=n: jax.numpy.resize(x, (n, *x.shape[1:])), features) for n in tile
    )
    a_batch = median_seconds(lambda: encode(state, pixels), 3)
    a_tile = median_seconds(lambda: score(state, sketches, photos), 5)
    return images * a_batch / batch_size, pairs * a_tile / (tile[0] * tile[1])


def main() -> None:
    """Measures both and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("../shared/data/Sketchy"))
    parser.add_argument("--variant", default="Ti/16")
    parser.add_argument("--sketches", type=int, default=200)
    parser.add_argument("--photos", type=int, default=400)
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    config = sketchy.get_config(options.variant)
    config.data.manual_dir = str(options.folder)
    print(machine.describe("jax", "flax", "numpy"))
    with tempfile.TemporaryDirectory() as scratch:
        config.data.data_dir = scratch
        evaluator = Evaluator(config, sharding.make_mesh(devices=jax.devices()[:1]), 1, 1)
        evaluator.sketches = evaluator.sketches.select(np.arange(options.sketches))
        evaluator.photos = evaluator.photos.select(np.arange(options.photos))
        retriever = retrievers.create(config.model, rngs=nnx.Rngs(0))
        images, pairs = options.sketches + options.photos, options.sketches * options.photos
        print(
            f"ZSE {options.variant}, float32, {options.sketches} sketches x {options.photos} photos"
        )
        size = config.evaluation.batch_size
        few = Evaluator(config, sharding.make_mesh(devices=jax.devices()[:1]), 1, 1)
        few.sketches, few.photos = few.sketches.select(range(40)), few.photos.select(range(80))
        few(retriever, rankings=["relation"])  # compiles
        before = least_seconds(retriever, images, pairs, size)
        start = time.perf_counter()
        evaluation = evaluator(retriever, rankings=["relation"], progress=True)
        whole = time.perf_counter() - start
        after = least_seconds(retriever, images, pairs, size)
    least = np.mean([before, after], axis=0)
    for name, seconds in evaluation.seconds.items():
        print(f"  {name:16} {seconds:8.1f} s")
    print(f"whole evaluation   {whole:8.1f} s")
    print(
        f"images at the rate of a batch {least[0]:.1f} s, "
        f"pairs at the rate of a tile {least[1]:.1f} s"
    )
    print(f"ratio {whole / least.sum():.2f} (limit {LIMIT}); before {before}, after {after}")


if __name__ == "__main__":
    main()
