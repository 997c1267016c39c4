"""The speed of EfficientCNN: encoding compared with ZSE B/16, and Hamming search.

    python -m tests.benchmarks.efficient [--images 16] [--rounds 5] [--codes 1000000]

Encoding: ResNet-50 and ZSE B/16 in one process in alternation, 224 x 224 pixels; medians of images
per second and their ratio (target: at least 2). Search: the exact 100 nearest of a million 64-bit
codes for each of 100 queries (target: under 5 s on 2 cores).
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.benchmarks.machine import describe
from zse_jax.retrieval import codes
from zse_jax.retrievers import create


def encoder(system: str, images: jax.Array):
    """A compiled function without arguments that encodes `images`."""
    model = nnx.jit(lambda: create({"system": system}, rngs=nnx.Rngs(params=0, dropout=1)))()
    still = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, state = nnx.split(still)
    encode = jax.jit(lambda state, images: nnx.merge(graphdef, state).encode(images, "photo"))
    jax.block_until_ready(encode(state, images))
    return lambda: jax.block_until_ready(encode(state, images))


def seconds(function) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    """Measures both and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="images per batch")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; the median counts")
    parser.add_argument("--codes", type=int, default=1_000_000)
    options = parser.parse_args()
    print(describe("jax", "flax", "numpy"))
    print(f"load average before: {os.getloadavg()[0]:.1f}")

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (options.images, 224, 224, 3), dtype=np.uint8)
    sides = {name: encoder(name, jnp.asarray(pixels)) for name in ("efficient_cnn", "zse")}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            times[name].append(seconds(side))
    rate = {name: options.images / statistics.median(found) for name, found in times.items()}
    print(
        f"images per second: EfficientCNN {rate['efficient_cnn']:.1f}, ZSE B/16 {rate['zse']:.1f}"
    )
    print(f"ratio {rate['efficient_cnn'] / rate['zse']:.2f} (target: 2)")

    words = rng.integers(0, 2**32, (options.codes + 100, 2), dtype=np.uint32)
    gallery, queries = words[100:], words[:100]
    found = [seconds(lambda: codes.search(queries, gallery, 100)) for _ in range(options.rounds)]
    print(
        f"Hamming search, {len(gallery):,} codes x {len(queries)} queries: "
        f"{statistics.median(found):.2f} s (target: 5)"
    )


if __name__ == "__main__":
    main()
