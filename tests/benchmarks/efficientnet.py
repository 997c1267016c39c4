"""EfficientNet-Lite0 on the CPU, compared with its PyTorch implementation on the same weights.

    python -m tests.benchmarks.efficientnet [--train 16] [--encode 32] [--rounds 7] [--no-torch]

Encoding (pooled features, as `retrieval.encoding` does it), and training steps (cross-entropy, all
parameters, AdamW) with the statistics of the batch and with those of the weights
(`frozen_statistics`, as in the configs `:lite0` and `:lite2`). PyTorch's side is the package
`efficientnet-lite-pytorch`, without dropout and stochastic depth; it needs `torch`. Both run in one
process in alternation, so that other load affects them equally; medians of the times, and of the
ratios of neighbouring runs (targets: 2 and 1.5). Then depthwise convolutions alone: the form for
CPUs against XLA's own, values and with gradients.
"""

import argparse
import functools
import os
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.benchmarks.machine import alternate, describe
from zse_jax.models import convolutions
from zse_jax.models.efficientnet_lite import EfficientNetLite
from zse_jax.pretrained import efficientnet_lite
from zse_jax.retrieval.encoding import in_chunks

# (side, channels, kernel, stride) of Lite0's depthwise convolutions.
SHAPES = [(112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 5, 2), (28, 240, 5, 1), (7, 1152, 5, 1)]


def jax_encoding(encode: np.ndarray, weights):
    """Encoding as a function without arguments."""
    model = nnx.jit(lambda: EfficientNetLite(rngs=nnx.Rngs(0)))()
    if weights:
        efficientnet_lite.load(model, weights)
    graph, parameters = nnx.split(nnx.view(model, use_running_average=True))

    @jax.jit
    def encoder(parameters, images):
        return in_chunks(lambda some: nnx.merge(graph, parameters)(some)[0], images)

    images = jnp.asarray(encode)
    return lambda: np.asarray(encoder(parameters, images))


def jax_training(train: np.ndarray, labels: np.ndarray, weights, frozen: bool):
    """A training step as a function without arguments."""
    model = nnx.jit(lambda: EfficientNetLite(frozen_statistics=frozen, rngs=nnx.Rngs(0)))()
    if weights:
        efficientnet_lite.load(model, weights)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-5, weight_decay=1e-2), wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        model, optimizer = nnx.merge(graphdef, state)

        def loss(model):
            logits = model(images)[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return nnx.state((model, optimizer)), value

    train, labels = jnp.asarray(train), jnp.asarray(labels)

    def training():
        nonlocal state
        state, loss = step(state, train, labels)
        return float(jax.block_until_ready((state, loss))[1])

    return training


def torch_sides(train: np.ndarray, encode: np.ndarray, labels: np.ndarray):
    """The three in PyTorch, with one thread per core, and its parameters as numpy arrays."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = EfficientNet.from_name("efficientnet-lite0", dropout_rate=0.0, drop_connect_rate=0.0)
    weights = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-2)
    train, encode = (torch.tensor(x.transpose(0, 3, 1, 2).copy()) for x in (train, encode))
    labels = torch.tensor(labels)

    @torch.inference_mode()
    def encoding():
        model.eval()
        return model.extract_features(encode).mean((2, 3)).numpy()

    def training(frozen):
        model.train(not frozen)
        loss = torch.nn.functional.cross_entropy(model(train), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    sides = encoding, *(functools.partial(training, frozen) for frozen in (False, True))
    return sides, weights


def compare(what: str, images: int, sides: dict, rounds: int, target: float) -> None:
    """Prints a row."""
    times = alternate(sides, rounds)
    rates = ", ".join(
        f"{name} {images / statistics.median(x):.1f} images/s" for name, x in times.items()
    )
    print(f"{what}, {images} images: {rates}", end="")
    if len(times) == 2:
        ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
        print(f"; ratio {ratio:.2f} (target: {target})", end="")
    print(flush=True)


def depthwise(batch: int, rounds: int) -> None:
    """Prints a table of depthwise convolutions."""
    print(f"depthwise convolutions, batch {batch}: ms, ours / XLA's own")
    for side, channels, size, stride in SHAPES:
        x = jnp.ones((batch, side, side, channels))
        kernel = jnp.ones((size, size, 1, channels))
        row = []
        for gradients in (False, True):
            sides = {}
            for form in (convolutions.shifted, convolutions.native):

                def values(x, kernel, form=form, stride=stride, gradients=gradients):
                    y, pullback = jax.vjp(lambda x, k: form(x, k, stride), x, kernel)
                    return pullback(y) if gradients else y

                compiled = jax.jit(values)
                sides[form.__name__] = functools.partial(
                    lambda f, *a: jax.block_until_ready(f(*a)), compiled, x, kernel
                )
            medians = [statistics.median(t) * 1e3 for t in alternate(sides, rounds).values()]
            row.append(f"{medians[0]:.1f} / {medians[1]:.1f}")
        print(
            f"  {side} x {side} x {channels}, {size} x {size}, stride {stride}: {row[0]}; "
            f"with gradients {row[1]}",
            flush=True,
        )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=16, help="images per training step")
    parser.add_argument("--encode", type=int, default=32, help="images per encoding call")
    parser.add_argument("--rounds", type=int, default=7, help="measured runs of each side")
    parser.add_argument("--no-torch", action="store_true", help="measure only JAX")
    parser.add_argument("--no-convolutions", action="store_true", help="leave out the last table")
    options = parser.parse_args()
    packages = ("jax", "flax") if options.no_torch else ("jax", "flax", "torch")
    print(describe(*packages))
    print(f"load average before: {os.getloadavg()[0]:.1f}")

    rng = np.random.default_rng(0)
    train, encode = (
        rng.standard_normal((count, 224, 224, 3), dtype=np.float32)
        for count in (options.train, options.encode)
    )
    labels = rng.integers(0, 1000, options.train)
    theirs, weights = (None, None) if options.no_torch else torch_sides(train, encode, labels)
    ours = (
        jax_encoding(encode, weights),
        *(jax_training(train, labels, weights, frozen) for frozen in (False, True)),
    )
    if theirs:
        features, others = ours[0](), theirs[0]()
        error = np.linalg.norm(features - others) / np.linalg.norm(others)
        losses = ours[1](), theirs[1]()
        print(
            f"relative difference of the features {error:.1e}; "
            f"first losses {losses[0]:.5f}, {losses[1]:.5f}"
        )
    for what, i, images, target in (
        ("encoding", 0, options.encode, 2),
        ("training step", 1, options.train, 1.5),
        ("training step, frozen statistics", 2, options.train, 1.5),
    ):
        sides = {"JAX": ours[i]} | ({"PyTorch": theirs[i]} if theirs else {})
        compare(what, images, sides, options.rounds, target)
    if not options.no_convolutions:
        depthwise(options.train, options.rounds)


if __name__ == "__main__":
    main()
