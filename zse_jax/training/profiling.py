"""The cost of a step, model FLOP utilisation, input waits, memory, and profiles.

The step is compiled ahead of time, and XLA's analyses of it give its FLOP and memory. Model FLOP
utilisation (MFU; Chowdhery et al., arXiv 2204.02311) is this FLOP count divided by the time of a
step and the peak rate of the device. Rematerialised work counts twice.
"""

import functools
import itertools
import math
import os
import queue
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from zse_jax.runtime import sharding
from zse_jax.runtime.console import duration

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
Cloud's TPU pages (v3: one of the two cores of a chip). Also the reference for float32."""


Step = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
"""A compiled training step: (state, batch) -> (next state, losses)."""


class Rate(NamedTuple):
    """The peak rate of one device in FLOP/s, and whether it was measured or published."""

    flops: float
    measured: bool


@functools.cache
def device_rate(dtype: str = "float32") -> Rate:
    """The rate of this kind of device in `PEAK`, or that of matrix products in `dtype` on it."""
    kind = jax.local_devices()[0].device_kind
    if kind in PEAK:
        return Rate(PEAK[kind] * 1e12, measured=False)
    # Virtual devices share the cores; a single one can use all of them.
    share = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return Rate(matrix_rate(dtype) / share, measured=True)


def matrix_rate(dtype: str, size: int | None = None, count: int = 4, rounds: int = 3) -> float:
    """FLOP/s of products of random square matrices on the first device, the best of `rounds`.

    Args:
      dtype: of the factors.
      size: of the matrices; by default 1024 on a CPU (a tenth of a second), 8192 elsewhere.
      count: products per measurement.
      rounds: number of measurements.
    """
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    device = jax.local_devices()[0]
    a, b = (
        jax.device_put(jax.random.normal(jax.random.key(i), (size, size), dtype), device)
        for i in range(2)
    )

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ b, a)

    b /= size**0.5  # the products keep their size
    jax.block_until_ready(products(a, b))
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(products(a, b))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * count / best


class Cost(NamedTuple):
    """The cost of a compiled step on each device.

    Attributes:
      flops: floating-point operations; 0 if the backend does not report them.
      state_bytes: memory of the arguments and results (donated arguments count once).
      temporary_bytes: memory used only within the step, mostly activations.
    """

    flops: float
    state_bytes: int
    temporary_bytes: int


def compile_step(
    step: Any, state: Any, batch: Any, devices: int, accumulate: int = 1
) -> tuple[Step, Cost]:
    """Compiles a `jax.jit`-ted step for these arguments (or shapes); also returns its cost.

    Args:
      step: `training.step.Setup.step`.
      state, batch: its arguments.
      devices: number of devices in the mesh.
      accumulate: number of micro-batches. XLA counts the body of a loop once, so the FLOP of the
        step are multiplied by it. This overcounts the optimizer, a few operations per parameter.
    """
    lowered = step.lower(state, batch)
    compiled = lowered.compile()
    # The compiled program is more accurate, but counts calls of vendor libraries as 0.
    flops = max(_flops(compiled.cost_analysis()), _flops(lowered.cost_analysis()) / devices)
    memory = compiled.memory_analysis()
    if memory is None:  # not reported by some backends
        return compiled, Cost(flops * accumulate, sharding.bytes_per_device(state), 0)
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return compiled, Cost(flops * accumulate, size, memory.temp_size_in_bytes)


def _flops(analysis: Any) -> float:
    if isinstance(analysis, Sequence):
        analysis = analysis[0] if analysis else None
    return max(0.0, float(analysis.get("flops", 0.0))) if analysis else 0.0


def describe(cost: Cost, rate: Rate) -> str:
    """One line: the cost of a step on each device, and the device's peak rate."""
    kind = jax.local_devices()[0].device_kind
    gigabytes = (cost.state_bytes + cost.temporary_bytes) / 1e9
    text = (
        f"a step: {cost.flops / 1e9:,.1f} GFLOP and {gigabytes:.2f} GB on each device "
        f"({cost.state_bytes / 1e9:.2f} GB state and batch)"
    )
    if not cost.flops:
        return text
    source = "measured" if rate.measured else "published"
    return f"{text}; peak rate {rate.flops / 1e9:,.0f} GFLOP/s ({kind}, {source})"


def parameter_groups(model: Any) -> dict[str, int]:
    """Number of parameters in each optimizer group of a `Retriever`, and of "frozen" ones."""
    counts: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        group = model.parameter_group(path) or "frozen"
        counts[group] = counts.get(group, 0) + math.prod(leaf.shape)
    return dict(sorted(counts.items(), key=lambda item: (item[0] == "frozen", -item[1])))


FIRST_STEPS = 5
"""Number of steps from which the time of a run is estimated, by the times between their ends."""


class Health:
    """Measures steps, how long the device waits for data, MFU, and memory; a context manager.

    A separate thread records when each step is done, so that the loop does not wait for it.
    """

    def __init__(self) -> None:
        """Starts the thread. Set `cost` and `rate` when the step is compiled."""
        self.cost: Cost | None = None
        self.rate: Rate | None = None
        self._starved = 0.0
        self._done: list[float] | None = None
        self._ends: list[float] = []
        self._estimated = False
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
            except Exception:  # the loop gets the same error when it reads the outputs
                continue
            done.append(time.monotonic())
            if len(self._ends) < FIRST_STEPS:
                self._ends.append(done[0])

    def fetch(self, batches: Iterator[Any]) -> Any:
        """The next batch; counts the time after the device has become idle as waiting."""
        began = time.monotonic()
        batch = next(batches)
        if self._done:
            self._starved += max(0.0, time.monotonic() - max(began, self._done[0]))
        return batch

    def started(self, outputs: Any) -> None:
        """Call after a step was dispatched; `outputs` are ready when it is done."""
        self._done = []
        self._steps.put((outputs, self._done))

    def estimate(self, steps: int) -> str:
        """One line, once the first steps are done: the time that `steps` steps take; else ""."""
        if self._estimated or len(self._ends) < FIRST_STEPS:
            return ""
        self._estimated = True
        seconds = statistics.median(later - end for end, later in itertools.pairwise(self._ends))
        return (
            f"a step takes {seconds:.3g} s (median of the first {FIRST_STEPS}): {steps:,} more "
            f"take about {duration(steps * seconds)}, without evaluations"
        )

    def timing(self, steps_per_second: float, seconds: float) -> dict[str, float]:
        """Values for the log since the last call, `seconds` ago.

        `input_wait` is the fraction of the time in which the device waited for data, `mfu` is a
        fraction too, `device_memory_gb` is the peak memory of the first device of this process,
        `host_memory_gb` that of this process. Unknown values are left out.
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
        """`window`: (start, stop) in steps done, or () for no profile.

        Raises:
          ValueError: `window` does not fit a run of `steps`, or `workdir` is not a local folder.
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
        """Call when `step` steps were dispatched, with the outputs of the last ones.

        Returns:
          The folder of the trace when it has been written, else None. Only process 0 writes one.
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
        """Stops a running trace and writes it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
