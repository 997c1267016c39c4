"""What a training step costs each device as devices are added, and the overhead of the loop.

    python -m tests.benchmarks.scaling [--systems zse cmca ...] [--batch=4] [--published]
        [--processes=2] [--json=FILE]
    python -m tests.benchmarks.scaling --loop [--systems zse] [--arg=Ti/16] [--loop-batch=4]
        [--rounds=5]

The table is a weak scaling: `--batch` samples per device on 1, 2, 4 and 8 devices of one process,
and on 8 devices of two. `data` splits the batch; `fsdp` also splits parameters and optimizer state.
It is XLA's analysis of the compiled step: floating-point operations, bytes that operations read and
write, and collectives with the bytes of their results, all per device. The step is not executed, so
virtual devices give the numbers of real ones, with these exceptions: temporary memory and accessed
bytes depend on how a backend fuses operations, and on a CPU a reduce-scatter is an all-reduce whose
result is cut. The networks are small (`SYSTEMS`) unless `--published` is given.

`--loop` trains with `zse_jax.training.loop` on images of realistic size, which another process
decodes, and times each step in alternation with a bare call of the same compiled step. It waits for
each step, so that asynchronous execution does not hide the overhead of the loop.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
).strip()

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.machine import describe
from tests.benchmarks.systems import batch_shapes, config_of
from tests.collectives import KINDS, collectives
from zse_jax.runtime import distributed, sharding
from zse_jax.training import profiling
from zse_jax.training import step as training_step


class Case(NamedTuple):
    """A system to measure.

    Attributes:
      system: its name in the registry.
      small: changes of its config without `--published`.
      recipe: other changes of its config.
      kind: its kind of batch, if not the usual one.
    """

    system: str
    small: dict[str, Any]
    recipe: dict[str, Any]
    kind: str | None = None


CLIP = {
    "model.width": 128, "model.depth": 1, "model.heads": 4, "model.embed_dim": 128,
    "model.text_width": 64, "model.text_depth": 1, "model.text_heads": 4,
}  # fmt: skip
SYSTEMS = {
    "zse": Case(
        "zse",
        {"model.width": 128, "model.depth": 1, "model.heads": 4, "model.mlp_width": 512,
         "model.scale_channels": 16, "model.cross_heads": 4, "model.cross_mlp_width": 256,
         "model.anchor_width": 128, "model.image_size": 128, "model.anchors": 16},
        {},
    ),
    "clip_prompt": Case("clip_prompt", CLIP, {}),
    "clip_prompt_fine_grained": Case(
        "clip_prompt", CLIP, {"model.recipe": "fine_grained"}, "instance_group"
    ),
    "efficient_cnn": Case("efficient_cnn", {"model.depths": (1, 1), "model.width": 32}, {}),
    "cmca": Case("cmca", {"model.backbone": "dinov2_tiny", "model.image_size": 64}, {}),
}  # fmt: skip
"""Without `--published`, networks are as wide as splitting needs, but shallow: one block of width
128 (ZSE, CLIP-AT), two blocks (EfficientCNN), four of width 96 (CMCA), so that they compile in
seconds."""


def measure(name: str, devices: int, fsdp: int, samples: int, published: bool) -> dict[str, Any]:
    """The cost of a compiled step on each of `devices`, as many of them in each process."""
    case = SYSTEMS[name]
    config = config_of(case.system, **case.recipe, **({} if published else case.small))
    each = devices // jax.process_count()
    chosen = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:each]
    ]
    setup = training_step.set_up(config, sharding.make_mesh(-1, fsdp, chosen))
    size = config.model.image_size
    batch = batch_shapes(case.system, samples * devices, size, case.kind)
    program, cost = profiling.compile_step(setup.step, setup.abstract, batch, devices)
    row = {
        "system": name,
        "processes": jax.process_count(),
        "devices": devices,
        "fsdp": fsdp,
        "state_bytes": sharding.bytes_per_device(
            {part: setup.abstract[part] for part in ("model", "optimizer")}
        ),
        "temporary_bytes": cost.temporary_bytes,
        "flops": cost.flops,
        "accessed_bytes": program.cost_analysis()["bytes accessed"],
    }
    found = list(collectives(program.as_text()))
    for kind in KINDS:
        sizes = [one.bytes for one in found if one.kind == kind]
        row[kind] = {"number": len(sizes), "bytes": sum(sizes)}
    return row


def measure_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each system and mesh; in two processes, only for the largest number of devices."""
    counts = (1, 2, 4, 8) if jax.process_count() == 1 else (8,)
    for name in options.systems:
        for devices in counts:
            for fsdp in sorted({1, devices}):
                yield measure(name, devices, fsdp, options.batch, options.published)


def in_two_processes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of `measure_all` in two processes of four virtual devices each."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        arguments = [f"--batch={options.batch}", f"--json={file.name}", "--processes=1"]
        arguments += ["--published"] * options.published
        subprocess.run(
            [sys.executable, "launch/processes.py", "-n=2", "--devices=4",
             "--program=tests.benchmarks.scaling", "--", *arguments, "--systems", *options.systems],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return json.loads(file.read())


COLUMNS = (
    "system", "processes", "devices", "data x fsdp", "state MB", "temporary MB", "GFLOP",
    "accessed GB", *KINDS,
)  # fmt: skip


def markdown(row: dict[str, Any]) -> str:
    """A line of the table; a collective as number and kB of its results."""
    cells = [
        row["system"], row["processes"], row["devices"],
        f"{row['devices'] // row['fsdp']} x {row['fsdp']}",
        f"{row['state_bytes'] / 1e6:.2f}", f"{row['temporary_bytes'] / 1e6:.1f}",
        f"{row['flops'] / 1e9:.3f}", f"{row['accessed_bytes'] / 1e9:.3f}",
    ]  # fmt: skip
    for kind in KINDS:
        number, size = row[kind]["number"], row[kind]["bytes"]
        cells.append(f"{number}: {size / 1e3:,.1f}" if number else "0")
    return f"| {' | '.join(map(str, cells))} |"


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
           "evaluation.allow_trained": True,  # the same noise is every part of the data
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
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--batch", type=int, default=4, help="samples per device")
    parser.add_argument("--published", action="store_true", help="networks of published sizes")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="at most")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--loop", action="store_true", help="compare the loop with a bare step")
    parser.add_argument("--arg", default="", help="config variants of the loop, such as Ti/16")
    parser.add_argument("--loop-batch", type=int, default=4, help="samples per step of the loop")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of the loop")
    options = parser.parse_args()
    if options.batch < 1:
        parser.error(f"--batch={options.batch}: each device needs at least 1 sample")
    distributed.initialize(**distributed.from_arguments([""]))
    print(describe("jax", "flax"))
    if options.loop:
        for name in options.systems:
            loop, bare = loop_overhead(
                SYSTEMS[name].system, options.arg, options.loop_batch, options.rounds
            )
            print(
                f"{name} {options.arg}, {options.loop_batch} samples: a step in the loop "
                f"{loop:.3f} s, bare {bare:.3f} s, ratio {loop / bare:.3f} (target: 1.05)"
            )
        return
    print(f"\n{options.batch} samples per device; collectives: number: kB\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rows = []
    for row in measure_all(options):
        rows.append(row)
        print(markdown(row), flush=True)
    if options.processes == 2:
        rows += (others := in_two_processes(options))
        print("\n".join(map(markdown, others)))
    if options.json and jax.process_index() == 0:
        options.json.write_text(json.dumps(rows, indent=1))
    distributed.finish()


if __name__ == "__main__":
    main()
