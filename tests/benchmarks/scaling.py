"""Memory and FLOPs of a training step on 1, 2, 4 and 8 devices, and the overhead of the loop.

    python -m tests.benchmarks.scaling [--system=zse|clip_prompt|efficient_cnn] [--arg=Ti/16]
        [--batch=16] [--loop] [--loop-batch=4] [--rounds=5]

The table shows XLA's analysis of the compiled step for a global batch of `--batch` samples. The
step is not executed, so virtual devices on one CPU give the same numbers as real ones (except
temporary memory, which depends on the backend). `data` splits the batch; `fsdp` also splits
parameters and optimizer state.

`--loop` trains with `zse_jax.training.loop` on images of realistic size, which another process
decodes, and times each step in alternation with a bare call of the same compiled step. It waits for
each step, so that asynchronous execution does not hide the overhead of the loop.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
).strip()

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.machine import describe
from tests.benchmarks.systems import CONFIGS, batch_shapes, config_of
from zse_jax.runtime import sharding
from zse_jax.training import profiling
from zse_jax.training import step as training_step


def table(system: str, arg: str, samples: int, **flat: Any) -> Iterator[str]:
    """A line for each mesh: memory and FLOPs of a step per device."""
    yield (
        f"{'devices':>8}{'data x fsdp':>13}{'state GB':>10}{'temporary GB':>14}{'GFLOP':>10}"
        f"{'x devices':>11}"
    )
    for devices in (1, 2, 4, 8):
        for fsdp in sorted({1, devices}):
            config = config_of(system, arg, **flat)
            mesh = sharding.make_mesh(-1, fsdp, jax.devices()[:devices])
            setup = training_step.set_up(config, mesh)
            batch = batch_shapes(system, samples, config.model.image_size)
            _, cost = profiling.compile_step(
                setup.step, setup.abstract, batch, devices, config.train.accumulate
            )
            if devices == 1:
                alone = cost.flops
            state = sharding.bytes_per_device(
                {name: setup.abstract[name] for name in ("model", "optimizer")}
            )
            yield (
                f"{devices:8}{f'{devices // fsdp} x {fsdp}':>13}{state / 1e9:10.3f}"
                f"{cost.temporary_bytes / 1e9:14.3f}{cost.flops / 1e9:10.1f}"
                f"{cost.flops * devices / alone:11.3f}"
            )


def noise_items(name: str, modality: str, classes: Any, **_: Any) -> Any:
    """Four 256 x 256 JPEG images of noise per class, instead of a prepared data set."""
    import io

    from PIL import Image

    from data_pipelines import loading

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), 4)
    encoded = []
    for _ in labels:
        coarse = rng.integers(0, 256, (32, 32, 3), np.uint8)
        with io.BytesIO() as file:
            Image.fromarray(coarse).resize((256, 256)).save(file, "JPEG")
            encoded.append(file.getvalue())
    names = tuple(f"{classes[label]}/{i}.jpg" for i, label in enumerate(labels))
    return loading.Items(
        modality, encoded, np.arange(len(labels)), labels, tuple(classes), names, names
    )


def loop_overhead(system: str, arg: str, samples: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a step in the loop and of a bare step, measured in turn."""
    from absl import flags

    from data_pipelines import loading
    from zse_jax.training import loop as training_loop

    flags.FLAGS.mark_as_parsed()
    loading.load_items = noise_items
    config = config_of(
        system, arg,
        **{"train.steps": rounds + 2, "train.batch_size": samples, "evaluation.every": 0,
           "checkpoint.every": 0, "log.tensorboard": False, "log.every": 1, "data.workers": 1},
    )  # fmt: skip
    config.evaluation.sketch_stride = config.evaluation.photo_stride = 10
    in_loop: list[float] = []
    bare: list[float] = []
    compiled = training_loop.Run.compiled
    make_mesh = sharding.make_mesh
    sharding.make_mesh = lambda *args, **kwargs: make_mesh(1, 1, jax.devices()[:1])
    training_loop.Run.finish = lambda run: {}

    def watched(run: Any, state: Any, batch: Any) -> Any:
        step = compiled(run, state, batch)
        last = [time.perf_counter()]

        def once(state: Any, batch: Any) -> Any:
            """Times a bare step on a copy of the state, then runs the step of the loop."""
            in_loop.append(time.perf_counter() - last[0])
            copy = jax.tree.map(jnp.copy, state)
            jax.block_until_ready(copy)
            began = time.perf_counter()
            _, losses = step(copy, batch)
            jax.block_until_ready(losses)
            bare.append(time.perf_counter() - began)
            last[0] = time.perf_counter()
            state, losses = step(state, batch)
            jax.block_until_ready(losses)
            return state, losses

        return once

    training_loop.Run.compiled = watched
    with tempfile.TemporaryDirectory() as workdir:
        training_loop.train(config, workdir)
    return statistics.median(in_loop[2:]), statistics.median(bare[2:])


def main() -> None:
    """Prints the table, or the overhead of the loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--system", choices=CONFIGS, default="zse")
    parser.add_argument("--arg", default="", help="config variants and overrides, such as Ti/16")
    parser.add_argument("--batch", type=int, default=16, help="samples, over all devices")
    parser.add_argument("--loop", action="store_true", help="compare the loop with a bare step")
    parser.add_argument("--loop-batch", type=int, default=4, help="samples per step of the loop")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of the loop")
    options = parser.parse_args()
    print(describe("jax", "flax"))
    name = f"{options.system} {options.arg}".strip()
    if options.loop:
        loop, bare = loop_overhead(options.system, options.arg, options.loop_batch, options.rounds)
        print(
            f"{name}, {options.loop_batch} samples: a step in the loop {loop:.3f} s, bare "
            f"{bare:.3f} s, ratio {loop / bare:.3f} (target: 1.05)"
        )
        return
    print(f"{name}, a step of {options.batch} samples, per device:")
    for line in table(options.system, options.arg, options.batch):
        print(line, flush=True)


if __name__ == "__main__":
    main()
