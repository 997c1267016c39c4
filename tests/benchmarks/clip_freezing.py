"""Savings from freezing CLIP: time of a training step, and memory of the optimizer state.

    python -m tests.benchmarks.clip_freezing [--batch=4] [--rounds=5] [--variant=B/32]

Times the category-level step of `configs/clip_sketchy_split2.py` with trainable="layer_norm" and
trainable="all" (full fine-tuning), in alternation, on random pixels. Prints the machine, the
medians, their ratio, and the size of the optimizer state.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from configs import clip_sketchy_split2
from tests.benchmarks.machine import describe
from zse_jax.runtime import sharding
from zse_jax.training import step as training_step

CHOICES = ("layer_norm", "all")


def prepare(variant: str, trainable: str, batch: int):
    """A compiled step, its state and a batch; sizes of model and optimizer in bytes."""
    config = clip_sketchy_split2.get_config(variant)
    config.model.trainable = trainable
    config.model.class_names = tuple(f"class {c}" for c in range(104))
    setup = training_step.set_up(config, sharding.make_mesh())
    state = setup.init()
    rng = np.random.default_rng(0)
    size = config.model.image_size
    data = {
        "sketches": rng.integers(0, 256, (batch, 1, size, size, 3), dtype=np.uint8),
        "photos": rng.integers(0, 256, (batch, 2, size, size, 3), dtype=np.uint8),
        "sketch_labels": np.zeros((batch, 1), np.int32),
        "photo_labels": np.zeros((batch, 2), np.int32),
    }
    sizes = [sharding.bytes_per_device(state[name]) for name in ("model", "optimizer")]
    return setup.step, state, data, sizes


def main() -> None:
    """Measures both and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant", default="B/32")
    options = parser.parse_args()
    print(describe("jax", "flax", "optax"))
    runs = {name: prepare(options.variant, name, options.batch) for name in CHOICES}
    states = {name: run[1] for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in CHOICES}
    for turn in range(options.rounds + 1):
        for name, (step, _, data, _) in runs.items():
            start = time.perf_counter()
            states[name], losses = step(states[name], data)
            jax.block_until_ready((states[name], losses))
            if turn:  # the first includes the compilation
                seconds[name].append(time.perf_counter() - start)
    for name, (*_, (model, optimizer)) in runs.items():
        print(
            f"{name:10}  {statistics.median(seconds[name]):.3f} s a step  optimizer "
            f"{optimizer / 1e6:.2f} MB, {100 * optimizer / model:.2f} % of the model's "
            f"{model / 1e6:.0f} MB"
        )
    frozen, full = (statistics.median(seconds[name]) for name in CHOICES)
    print(f"frozen / full: {frozen / full:.3f}")


if __name__ == "__main__":
    main()
