"""Training, encoding and scoring on an accelerator, compared with matrix products and PyTorch.

    python -m tests.benchmarks.accelerator [--systems zse clip_prompt efficient_cnn]
        [--batches 16 32 64 ...] [--dtype bfloat16] [--remat none] [--rounds 5]
        [--no-torch] [--tiny]

For each system: runs the training step of `zse_jax.training.loop` (the same compiled program with
donated buffers) on noise on the device, with growing batches until out of memory. Prints the best
rate in images per second, and its FLOP/s as a fraction of the measured (and published) rate of
matrix products. If `torch` is installed, a compiled PyTorch network with equal arithmetic trains
with the same batch, in alternation.

Needs jax, flax, optax, orbax-checkpoint, jaxtyping, ml_collections, etils and rich (for CLIP-AT
also openai-clip); no TensorFlow, TFDS, clu or grain. `--tiny` is a quick test on a CPU.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.benchmarks.machine import describe
from tests.benchmarks.systems import IMAGES, TINY, config_of, noise
from zse_jax.retrievers.registry import REMAT
from zse_jax.runtime import sharding
from zse_jax.training import profiling
from zse_jax.training import step as training_step

Run = Callable[[], None]
"""Runs and waits for the result."""


class Trained(NamedTuple):
    """A training step with one batch size."""

    samples: int
    step: Run
    cost: profiling.Cost


def training(setup: training_step.Setup, config: Any, system: str, samples: int) -> Trained:
    """The compiled step on a batch on the devices; each call continues the training.

    Raises:
      jax.errors.JaxRuntimeError: if it does not fit in memory.
    """
    mesh = jax.tree.leaves(setup.abstract)[0].sharding.mesh
    batch = jax.device_put(
        noise(system, samples, config.model.image_size), sharding.batch_sharding(mesh)
    )
    step, cost = profiling.compile_step(setup.step, setup.abstract, batch, mesh.size)
    state = setup.init()

    def run() -> None:
        nonlocal state
        state, losses = step(state, batch)
        jax.block_until_ready(losses)

    run()
    return Trained(samples, run, cost)


def seconds(runs: dict[str, Run], rounds: int, least: float) -> dict[str, float]:
    """Median seconds per call, in turn; each measurement lasts about `least` seconds."""
    calls = {}
    for name, run in runs.items():
        run()
        began = time.perf_counter()
        run()
        calls[name] = max(1, round(least / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - began) / calls[name])
    return {name: statistics.median(found) for name, found in times.items()}


def out_of_memory(error: Exception) -> bool:
    """Whether the error means that the batch is too large."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def best_batch(system: str, options: argparse.Namespace) -> tuple[Trained, Any] | None:
    """The batch with the most images per second, and the setup; prints all that fit."""
    config = config_of(
        system, tiny=options.tiny, **{"compute_dtype": options.dtype, "train.remat": options.remat}
    )
    setup = training_step.set_up(config, sharding.make_mesh())
    images, best, rate = sum(IMAGES[system]), None, 0.0
    for samples in options.batches:
        try:
            trained = training(setup, config, system, samples)
            time_of = seconds({"step": trained.step}, 2, options.least)["step"]
        except Exception as error:
            if not out_of_memory(error):
                raise
            print(f"  {samples * images:6} images: out of memory")
            break
        memory = (trained.cost.state_bytes + trained.cost.temporary_bytes) / 1e9
        print(
            f"  {samples * images:6} images: {samples * images / time_of:10.1f} /s, {memory:.1f} GB"
        )
        if samples * images / time_of > rate:
            best, rate = trained, samples * images / time_of
        del trained
    return None if best is None else (best, (config, setup))


def torch_step(system: str, trained: Trained, options: argparse.Namespace) -> Run | None:
    """The PyTorch step with equal arithmetic, compiled on a GPU; None if not available."""
    if not options.torch or importlib.util.find_spec("torch") is None:
        return None
    if system != "zse":
        return None
    import torch

    from tests.benchmarks.torch_zse import TorchZSE

    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys = {"width", "depth", "heads", "mlp_width", "anchor_width", "cross_mlp_width"}
    sizes = {key: value for key, value in TINY["zse"].items() if key in keys}
    channels = {"scale_channels": TINY["zse"]["scale_channels"]}
    model = TorchZSE(**(sizes | channels if options.tiny else {})).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-2, fused=True)
    images = torch.randn(4 * trained.samples, 3, 224, 224, device=device)
    loss_of = torch.compile(model.loss) if device == "cuda" else model.loss

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = loss_of(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):  # compiles it
        run()
    return run


def inference(system: str, setup: training_step.Setup, config: Any, images: int) -> dict[str, Run]:
    """Encoding of images; for ZSE also a tile of relation scores."""
    model = training_step.merge_model(setup.definition, setup.init())
    still = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, state = nnx.split(still)
    size = config.model.image_size
    pixels = jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (images, size, size, 3), np.uint8)
    )
    encode = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x, "photo"))
    features = jax.block_until_ready(encode(state, pixels))
    runs: dict[str, Run] = {"encode": lambda: jax.block_until_ready(encode(state, pixels))}
    if system == "zse":
        score = jax.jit(lambda state, q, g: nnx.merge(graphdef, state).score(q, g))
        runs["score"] = lambda: jax.block_until_ready(score(state, features, features))
    return runs


def report(system: str, matrix_rate: float, options: argparse.Namespace) -> None:
    """Measures one system and prints its lines."""
    print(f"{system}, {options.dtype}, remat={options.remat}: training")
    found = best_batch(system, options)
    if found is None:
        print("  no batch fits")
        return
    trained, (config, setup) = found
    images = trained.samples * sum(IMAGES[system])
    runs = {"ours": trained.step}
    if other := torch_step(system, trained, options):
        runs["torch"] = other
    times = seconds(runs, options.rounds, options.least)
    flops = trained.cost.flops / times["ours"]
    line = f"  best: {images} images, {images / times['ours']:.1f} /s, {flops / 1e12:.3g} TFLOP/s"
    line += f", {flops / matrix_rate:.1%} of the measured rate (target for ZSE: 45 %)"
    published = profiling.device_rate(options.dtype)
    if not published.measured:
        line += f", {flops / published.flops:.1%} of the published one"
    print(line)
    if "torch" in times:
        ratio = times["torch"] / times["ours"]
        print(f"  PyTorch: {images / times['torch']:.1f} /s, ratio {ratio:.2f} (target: 1.2)")
    else:
        print("  PyTorch: not measured (no baseline for this system, or torch is not installed)")
    count = options.encode
    times = seconds(inference(system, setup, config, count), options.rounds, options.least)
    print(f"  encoding {count} images: {count / times['encode']:.1f} /s")
    if "score" in times:
        print(f"  scoring {count} x {count} pairs: {count**2 / times['score']:,.0f} /s")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=sorted(IMAGES), default=sorted(IMAGES))
    parser.add_argument(
        "--batches", nargs="+", type=int, help="samples per step; stops when out of memory"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--remat", choices=REMAT, default="none")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--encode", type=int, help="images per encoding call")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="measure only JAX")
    parser.add_argument("--tiny", action="store_true", help="a quick test on a CPU")
    options = parser.parse_args(arguments)
    options.batches = options.batches or ([2] if options.tiny else [16, 32, 64, 128, 256, 512])
    options.encode = options.encode or (4 if options.tiny else 256)
    options.least = 0.0 if options.tiny else 0.5
    return options


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    options = parsed(arguments)
    print(describe("jax", "jaxlib", "flax"))
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})")
    if importlib.util.find_spec("torch") is not None and options.torch:
        print(describe("torch").rpartition(", ")[2])
    size = 256 if options.tiny else None
    rate = profiling.matrix_rate(options.dtype, size, count=4 if options.tiny else 50)
    print(f"matrix products, {options.dtype}: {rate / 1e12:.3g} TFLOP/s")
    for system in options.systems:
        report(system, rate, options)


if __name__ == "__main__":
    main()
