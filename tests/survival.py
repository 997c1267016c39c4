r"""Kills a run repeatedly at random moments, and checks that the result does not change.

    python -m tests.survival [--kills=20] [--seed=0] [--folder=DIR]

trains the demo's network for 200 steps without interruption, and again with `kill -9` at random
moments (while it starts, computes, evaluates or saves). Prints the moment of each kill, and whether
parameters, dropout keys, optimizer, metrics.jsonl and metrics.json of both runs are equal to the
byte. The exit code reports it too. A short version is in
`tests/zse_jax/runtime/test_preemption.py`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zse_jax.checkpoints import arrays as checkpoint_arrays
from zse_jax.checkpoints import reading, writing
from zse_jax.runtime import sharding
from zse_jax.runtime.metrics_file import read_metrics
from zse_jax.training import loop

ROOT = Path(__file__).parents[1]

DEMO = [
    "zse_jax.main", "--config=configs/demo.py:steps=200", "--config.evaluation.every=50",
    "--config.evaluation.sketch_stride=12", "--config.evaluation.photo_stride=12",
    "--config.evaluation.test_sketch_stride=12", "--config.evaluation.test_photo_stride=12",
    "--config.checkpoint.every=10", "--config.log.every=5", "--config.log.tensorboard=False",
]  # fmt: skip


def started(command: Sequence[str]) -> subprocess.Popen:
    """Starts a run in a new process group, to kill it with its worker processes."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(command: Sequence[str]) -> None:
    """Runs to the end; raises RuntimeError if it fails."""
    process = started(command)
    error = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {error}")


def kills(
    command: Sequence[str], workdir: Path, moments: Sequence[float], begun: bool = False
) -> Iterator[tuple[float, int, int]]:
    """Starts the run and kills it, once for each of `moments`.

    Args:
      command: module and arguments of the run.
      workdir: of the run.
      moments: seconds after the start; with `begun`, after it logged a step that is not saved.
      begun: see `moments`.

    Yields:
      The moment, the last step of metrics.jsonl, and the last checkpoint (-1: none), for each kill
      that hit.
    """
    for moment in moments:
        before = identity(workdir)
        process = started(command)
        while begun and process.poll() is None and not has_progressed(workdir, before):
            time.sleep(0.02)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            yield moment, last_step(workdir), last_saved(workdir)
            continue
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: {process.communicate()[1]}")
        return  # it ended before


def identity(workdir: Path) -> int:
    """The inode of metrics.jsonl, which a run that resumes replaces."""
    file = workdir / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else -1


def has_progressed(workdir: Path, before: int) -> bool:
    """Whether a run that started with the metrics.jsonl `before` is past its checkpoints."""
    new = before != identity(workdir) or before == -1
    return new and last_step(workdir) > max(0, last_saved(workdir))


def last_step(workdir: Path) -> int:
    """The last step in metrics.jsonl; -1: none."""
    file = workdir / "metrics.jsonl"
    lines = read_metrics(file) if file.exists() else []
    return lines[-1]["step"] if lines else -1


def last_saved(workdir: Path) -> int:
    """The last complete checkpoint; -1: none."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=-1)


def contents(workdir: Path) -> dict[str, Any]:
    """The result of a run without times: bytes of arrays, lines, metrics."""
    config = reading.read_config(workdir)
    setup = loop.set_up(config, sharding.make_mesh(**config.mesh))
    select = config.evaluation.select
    with writing.Checkpoints(workdir, select=select) as checkpoints:
        step = checkpoints.latest
        state = checkpoints.restore(step, setup.abstract)
    found: dict[str, Any] = {"step": step}
    for part, arrays in state.items():
        for name, array in checkpoint_arrays.flat_arrays(arrays).items():
            if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
                array = jax.random.key_data(array)
            found[f"{part}/{name}"] = np.asarray(array).tobytes()
    found["metrics.jsonl"] = [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]
    found["metrics.json"] = json.loads((workdir / "metrics.json").read_text())
    return found


def different(one: Path, other: Path) -> list[str]:
    """Names of the parts in which two runs differ."""
    a, b = contents(one), contents(other)
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def main() -> int:
    """See the docstring of this module; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="survival-"))
    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    if not (whole / "metrics.json").exists():  # else reuse that of an earlier call
        finished([*DEMO, f"--workdir={whole}"])
        print(f"uninterrupted: {time.monotonic() - began:.0f} s")
    print(f"{last_step(whole)} steps, a checkpoint every 10")
    rng = np.random.default_rng(options.seed)
    command, hits = [*DEMO, f"--workdir={killed}"], 0
    print(f"{'kill':>4} {'moment':<24} {'last line':>10} {'checkpoint':>11}", flush=True)
    for kill in range(options.kills):
        begun = kill % 2 == 0  # alternately while it computes and at any moment after its start
        moments = [rng.uniform(0, 6 if begun else 20)]
        for moment, step, saved in kills(command, killed, moments, begun):
            hits += 1
            since = "new steps" if begun else "start"
            print(
                f"{hits:>4} {moment:>5.1f} s after {since:<10} {step:>10} {saved:>11}", flush=True
            )
    finished(command)
    wrong = different(whole, killed)
    print(f"after {hits} kills: " + (f"DIFFERENT: {wrong}" if wrong else "equal to the byte"))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
