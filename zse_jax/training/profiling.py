"""What a step costs, how near the device comes to its best, and where the time goes.

The step is compiled once, ahead of the first one, and XLA's own analyses of it say how many FLOP
and how much memory it takes. Model FLOP utilisation (MFU; Chowdhery et al., arXiv 2204.02311) is
those FLOP over the time of a step and the rate of the device; where blocks are rematerialised, the
work done twice counts twice.
"""

import functools
import math
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from zse_jax.runtime import sharding

PEAK = {
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H200": 989,
    "NVIDIA B200": 2250,
    "TPU v3": 61.5,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
}
"""Dense bfloat16 TFLOP/s by `device_kind`, from NVIDIA's data sheets (without sparsity) and Google
Cloud's TPU pages (of one core of a v3, which has two a chip). Float32 counts against it too."""


Step = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
"""A compiled training step: (state, batch) to the next state and the losses."""


class Rate(NamedTuple):
    """What one device can do, in FLOP/s, and whether that was measured or published."""

    flops: float
    measured: bool


@functools.cache
def device_rate(dtype: str = "float32") -> Rate:
    """The best rate of one device of this kind: `PEAK`, or its own matrix products in `dtype`."""
    kind = jax.local_devices()[0].device_kind
    if kind in PEAK:
        return Rate(PEAK[kind] * 1e12, measured=False)
    # Virtual devices share the cores, which one of them can use alone.
    share = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return Rate(matrix_rate(dtype) / share, measured=True)


def matrix_rate(dtype: str, size: int | None = None, count: int = 4, rounds: int = 3) -> float:
    """FLOP/s of products of random square matrices on the first device, the best of `rounds`.

    Args:
      dtype: of the factors.
      size: of the matrices; by default small on a CPU (a tenth of a second), 8192 elsewhere.
      count: products in a row.
      rounds: how often.
    """
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    device = jax.local_devices()[0]
    a, b = (
        jax.device_put(jax.random.normal(jax.random.key(i), (size, size), dtype), device)
        for i in range(2)
    )

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ b / size**0.5, a)

    jax.block_until_ready(products(a, b))
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(products(a, b))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * count / best


class Cost(NamedTuple):
    """What a compiled step takes on each device.

    Attributes:
      flops: floating-point operations; 0 where the backend does not tell.
      state_bytes: of the arguments and results, which share their memory.
      temporary_bytes: of what lives only within the step, activations above all.
    """

    flops: float
    state_bytes: int
    temporary_bytes: int


def compile_step(
    step: Any, state: Any, batch: Any, devices: int, accumulate: int = 1
) -> tuple[Step, Cost]:
    """Compiles a `jax.jit`-ted step for these arguments (or shapes), and says what it costs.

    Args:
      step: `train_state.Setup.step`.
      state, batch: as it is called with.
      devices: of the mesh.
      accumulate: micro-batches. XLA counts the body of a loop once; all of the step is taken that
        many times, which counts the optimizer, a few operations per parameter, too often.
    """
    lowered = step.lower(state, batch)
    compiled = lowered.compile()
    # The compiled program is the truth, but calls of vendors' libraries count as nothing in it.
    flops = max(_flops(compiled.cost_analysis()), _flops(lowered.cost_analysis()) / devices)
    memory = compiled.memory_analysis()
    if memory is None:  # some backends do not tell
        return compiled, Cost(flops * accumulate, sharding.bytes_per_device(state), 0)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return compiled, Cost(flops * accumulate, held, memory.temp_size_in_bytes)


def _flops(analysis: Any) -> float:
    if isinstance(analysis, Sequence):
        analysis = analysis[0] if analysis else None
    return max(0.0, float(analysis.get("flops", 0.0))) if analysis else 0.0


def describe(cost: Cost, rate: Rate, steps: int) -> str:
    """A line: what a step takes on each device, and how long `steps` of them last at the least."""
    from zse_jax.runtime.console import duration

    kind = jax.local_devices()[0].device_kind
    gigabytes = (cost.state_bytes + cost.temporary_bytes) / 1e9
    text = (
        f"a step: {cost.flops / 1e9:,.1f} GFLOP and {gigabytes:.2f} GB on each device "
        f"({cost.state_bytes / 1e9:.2f} GB state and batch)"
    )
    if not cost.flops:
        return text
    least = duration(steps * cost.flops / rate.flops)
    source = "measured" if rate.measured else "published"
    return f"{text}; at {rate.flops / 1e9:,.0f} GFLOP/s ({kind}, {source}), {steps} take {least}"


def parameter_groups(model: Any) -> dict[str, int]:
    """Number of parameters in each optimizer group of a `Retriever`, and "frozen" ones."""
    from flax import nnx

    counts: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        group = model.parameter_group(path) or "frozen"
        counts[group] = counts.get(group, 0) + math.prod(leaf.shape)
    return dict(sorted(counts.items(), key=lambda item: (item[0] == "frozen", -item[1])))


class Health:
    """Watches the loop: how long the device waits for data, its MFU, its memory.

    A thread of its own notes when each step is done, so that the loop need not wait for it.
    """

    def __init__(self) -> None:
        """Nothing is known of the step yet; `cost` and `rate` are set when it is compiled."""
        self.cost: Cost | None = None
        self.rate: Rate | None = None
        self._starved = 0.0
        self._done: list[float] | None = None
        self._steps: queue.SimpleQueue = queue.SimpleQueue()
        self._watcher = threading.Thread(target=self._watch, name="health", daemon=True)
        self._watcher.start()

    def __enter__(self) -> "Health":
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.put(None)

    def _watch(self) -> None:
        while (step := self._steps.get()) is not None:
            outputs, done = step
            try:
                jax.block_until_ready(outputs)
            except Exception:  # the loop meets the same error when it reads them
                continue
            done.append(time.monotonic())

    def fetch(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time counts as waiting from when the device had run out of work."""
        began = time.monotonic()
        batch = next(batches)
        if self._done:
            self._starved += max(0.0, time.monotonic() - max(began, self._done[0]))
        return batch

    def started(self, outputs: Any) -> None:
        """A step was handed to the device; `outputs` are there when it is done."""
        self._done = []
        self._steps.put((outputs, self._done))

    def timing(self, steps_per_second: float, seconds: float) -> dict[str, float]:
        """Values for the log since the last call, `seconds` ago.

        `input_wait` is the share of the time in which the device waited for data; `mfu` a share
        too, `device_memory_gb` the most that the first device of this process has held,
        `host_memory_gb` the most of this process. What is not known is left out.
        """
        found = {"input_wait": min(1.0, self._starved / seconds) if seconds > 0 else 0.0}
        self._starved = 0.0
        if self.cost and self.rate and self.cost.flops:
            found["mfu"] = steps_per_second * self.cost.flops / self.rate.flops
        stats: Mapping[str, int] = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            found["device_memory_gb"] = stats["peak_bytes_in_use"] / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        found["host_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
        return found


class Trace:
    """Writes a profile of some steps, for TensorBoard's profile page or ui.perfetto.dev."""

    def __init__(self, window: Sequence[int], steps: int, workdir: str | os.PathLike):
        """`window` is (start, stop), counted as steps done, or () for none.

        Raises:
          ValueError: no such window in a run of `steps`, or `workdir` is not a local folder.
        """
        self._window, self._folder, self._running = tuple(window), os.fspath(workdir), False
        if not self._window:
            return
        whole = len(self._window) == 2 and all(isinstance(step, int) for step in self._window)
        if not whole or not 0 <= self._window[0] < self._window[1] <= steps:
            raise ValueError(
                f"config.profile={self._window} must be (start, stop), two steps with 0 <= start < "
                f"stop <= config.train.steps={steps}, such as --config.profile='(20, 25)'."
            )
        if "://" in self._folder:
            raise ValueError(
                f"config.profile writes its trace to a local folder, but the workdir is "
                f"{self._folder}: profile a run with a local --workdir."
            )

    def at(self, step: int, outputs: Any) -> str | None:
        """To be called when `step` steps were handed out; `outputs` are those of the last ones.

        Returns:
          Where the trace lies, once it is written. Only process 0 writes one.
        """
        if not self._window or jax.process_index() != 0:
            return None
        if step == self._window[0]:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step == self._window[1] and self._running:
            jax.block_until_ready(outputs)
            self.close()
            return str(Path(self._folder, "plugins", "profile"))
        return None

    def close(self) -> None:
        """Writes what there is of a trace that is still running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
