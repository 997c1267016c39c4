"""All speed figures of one accelerator in a fixed time, compared with its own rate and PyTorch.

    python -m tests.benchmarks.accelerator --all --minutes=8 --output=DIR
    python -m tests.benchmarks.accelerator --only scoring "encoding ZSE" --dtypes bfloat16

Runs the measurements of `accelerator_measurements.plan` in the order of their worth while time is
left: rates of matrix products and copies, encoding, relation scoring over tile sizes, training
steps at the best batch, and profiles of the two slowest. If `torch` is installed, the same work in
compiled PyTorch (`torch_networks.py`) runs in turn with ours. DIR/results.json is written after
each measurement; the table and the projected times of full benchmarks come last. With less than 7
minutes, fewer batches and tiles are tried, and float32 comes only if time is left.

Needs jax, flax, optax, orbax-checkpoint, jaxtyping, ml_collections, etils, rich, psutil, scipy and
tqdm (for CLIP-AT also openai-clip); no TensorFlow, TFDS, clu or grain. `--tiny` tries the program
out on a CPU.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before JAX takes memory: the rest is PyTorch's.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")

import jax

from data_pipelines import paths
from tests.benchmarks import accelerator_measurements as measurements
from tests.benchmarks.accelerator_plan import Row, execute, table
from tests.benchmarks.machine import describe
from tests.benchmarks.scoring import BENCHMARKS


def projections(rows: Sequence[Row]) -> Iterator[str]:
    """Times of the full benchmarks from the measured rates of ZSE B/16, with the arithmetic."""
    rates = {(row["name"], row["dtype"]): row["rate"] for row in rows if "rate" in row}
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        encode = rates.get(("encoding ZSE B/16", dtype))
        score = rates.get(("scoring ZSE B/16", dtype))
        if not encode or not score:
            continue
        for name, (sketches, photos) in BENCHMARKS.items():
            images, pairs = sketches + photos, sketches * photos
            hours = (images / encode + pairs / score) / 3600
            yield (
                f"{name}, {dtype}: {images:,} images / {encode:,.4g} per s + {pairs:,} pairs / "
                f"{score:,.4g} per s = {hours:.3g} h"
            )


def device() -> dict[str, Any]:
    """The accelerator, the host and the versions."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint"]
    if measurements.Bench().torch:
        packages.append("torch")
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "backend": jax.default_backend(),
        "host": describe(*packages),
    }


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--all", action="store_true", help="every measurement")
    chosen.add_argument("--only", nargs="+", metavar="NAME", help="those whose name contains it")
    parser.add_argument("--minutes", type=float, default=8, help="in all; 8 by default")
    parser.add_argument("--output", type=Path, default=Path("accelerator"), help="folder")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batches", nargs="+", type=int, help="images per training step")
    parser.add_argument("--tiles", nargs="+", type=int, help="sketches, and as many photos")
    parser.add_argument("--encode", type=int, help="images per encoding call")
    parser.add_argument("--profiles", type=int, default=2, help="programs to profile")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="measure only JAX")
    parser.add_argument("--tiny", action="store_true", help="try the program out on a CPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    began = time.monotonic()
    options = parsed(arguments)
    bench = measurements.Bench(tiny=options.tiny, torch=options.torch)
    bench.profiled = options.profiles
    if options.minutes >= 7 and not options.tiny:
        bench.batches, bench.tiles = (256, 128, 512), (32, 64, 128, 256)
    for name in ("batches", "tiles", "encode"):
        if getattr(options, name):
            setattr(bench, name, getattr(options, name))
    plan = measurements.plan(bench, options.output, options.dtypes)
    if options.only:
        plan = [item for item in plan if any(name in item.name for name in options.only)]
        if not plan:
            raise SystemExit(f"No measurement contains {' or '.join(options.only)} in its name.")
    plan = measurements.with_compilation(bench, plan)
    options.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = device()
    print(result["host"], f"{result['device']} ({result['backend']})", sep="\n", flush=True)
    rows: list[Row] = []
    result["rows"] = rows
    file = options.output / "results.json"
    for row in execute(plan, 60 * options.minutes, time.monotonic, began):
        rows.append(row)
        paths.replace(file, json.dumps(result, indent=1))
        print(f"{row['seconds']:6.1f} s  {table([row]).splitlines()[1]}", flush=True)
    result["projections"] = list(projections(rows))
    paths.replace(file, json.dumps(result, indent=1))
    print("", table(rows), *result["projections"], f"{file}", sep="\n")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # without waiting for compilations that took too long
