"""Training step and encoding of B/16 on the CPU, compared with equal arithmetic in PyTorch.

    python -m tests.benchmarks.training [--samples 2] [--encode 16] [--rounds 5] [--no-torch]

Both run in one process in alternation, so that other load affects them equally. Prints medians and
their ratio. PyTorch is optional; without it, only JAX is measured.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.benchmarks.machine import alternate, describe
from zse_jax.retrievers import create


def jax_sides(samples: int, encode: int):
    """(training step, encoding) as functions without arguments, and the step's compile time."""
    model = create({"system": "zse"}, rngs=nnx.Rngs(params=0, dropout=1))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-5, weight_decay=1e-2), wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))
    rng = np.random.default_rng(0)

    def pixels(*shape):
        return jnp.asarray(rng.integers(0, 256, (*shape, 224, 224, 3), dtype=np.uint8))

    batch = {"sketches": pixels(samples, 2), "photos": pixels(samples, 2)}

    def step(state, batch):
        model, optimizer = nnx.merge(graphdef, state)
        (loss, _), gradients = nnx.value_and_grad(lambda m: m.loss(batch), has_aux=True)(model)
        optimizer.update(model, gradients)
        return nnx.state((model, optimizer)), loss

    started = time.perf_counter()
    step = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - started
    still = nnx.view(model, deterministic=True)
    graph, parameters = nnx.split(still)
    parameters = jax.tree.map(jnp.copy, parameters)
    encoder = jax.jit(lambda p, images: nnx.merge(graph, p).encode(images, "photo"))
    gallery = pixels(encode)

    def train():
        nonlocal state
        state, loss = step(state, batch)
        jax.block_until_ready((state, loss))

    return train, lambda: jax.block_until_ready(encoder(parameters, gallery)), seconds


def torch_sides(samples: int, encode: int):
    """The same in PyTorch, with one thread per core."""
    import torch

    from tests.benchmarks.torch_zse import TorchZSE

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = TorchZSE()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-2)
    images, gallery = torch.randn(4 * samples, 3, 224, 224), torch.randn(encode, 3, 224, 224)

    def train():
        model.train()
        model.loss(images).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def encoding():
        model.eval()
        model.tokens(gallery)

    return train, encoding


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2, help="per training step; 4 images each")
    parser.add_argument("--encode", type=int, default=16, help="images per encoding call")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--no-torch", action="store_true", help="measure only JAX")
    options = parser.parse_args()
    print(describe("jax", "flax") if options.no_torch else describe("jax", "flax", "torch"))
    train, encode, compiling = jax_sides(options.samples, options.encode)
    print(
        f"compiling the training step: {compiling:.1f} s (cold, unless a compilation cache is set)"
    )
    ours = {"training": train, "encoding": encode}
    theirs = (
        {}
        if options.no_torch
        else dict(zip(ours, torch_sides(options.samples, options.encode), strict=True))
    )
    counts = {"training": 4 * options.samples, "encoding": options.encode}
    print(f"{'float32 B/16':16} {'images':>6} {'ours /s':>9} {'torch /s':>9} {'ratio':>6}")
    for name, run in ours.items():
        sides = {"ours": run} | ({"torch": theirs[name]} if theirs else {})
        times = alternate(sides, options.rounds)
        rates = {k: counts[name] / statistics.median(v) for k, v in times.items()}
        other = rates.get("torch", float("nan"))
        print(
            f"{name:16} {counts[name]:6} {rates['ours']:9.2f} {other:9.2f} "
            f"{rates['ours'] / other:6.2f}"
        )


if __name__ == "__main__":
    main()
