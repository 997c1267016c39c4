"""Logs the metrics of a run to the console, `metrics.jsonl` and TensorBoard.

Only process 0 logs. `metrics.jsonl` has one JSON object per line: `step`, and values named
`train/...` (means over the steps since the previous line), `validation/RANKING/CONVENTION/METRIC`
and `time/...` (the only ones that differ when a run is repeated). A resumed run removes the lines
later than its first step, so that the file is the same as without the interruption.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping

import jax
from etils import epath

from zse_jax.runtime.console import duration
from zse_jax.runtime.metrics_file import METRICS_FILE, keep_until


class Reporter:
    """Writes the values of a run; a context manager.

    Attributes:
      clock: measures training time; paused while something else runs.
      images: images per step.
      health: returns more values for `time/`, given steps per second and the seconds measured.
    """

    health: Callable[[float, float], Mapping[str, float]] | None = None

    def __init__(
        self,
        workdir: str | os.PathLike,
        steps: int,
        start: int | None = None,
        tensorboard: bool = True,
        headline: str = "exact/mAP@all",
    ):
        """Opens the files of a run of `steps` that resumes at step `start` (None: a new run).

        The console shows the metric `headline` of every ranking after each validation. TensorBoard
        files need TensorFlow (through clu), whose import takes seconds.
        """
        self.images = 0
        self.clock = Clock(start or 0)
        self._steps = steps
        self._headline = headline
        self._chief = jax.process_index() == 0
        self._file = self._writer = None
        if not self._chief:
            return
        path = epath.Path(workdir) / METRICS_FILE
        keep_until(path, -1 if start is None else start)
        self._file = path.open("a")
        if tensorboard:
            from clu import metric_writers

            self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def say(self, text: str = "") -> None:
        """Prints a line on the console."""
        if self._chief:
            print(text, flush=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line to `metrics.jsonl`, and the values to TensorBoard."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._file.name} cannot be written at step {step}: {error.strerror}. Fix the "
                "cause (such as a full disk) and run the same command to resume from the last "
                "checkpoint."
            ) from error
        if self._writer is not None:
            self._writer.write_scalars(step, dict(values))

    def training(self, step: int, means: Mapping[str, float]) -> None:
        """Reports the mean losses up to `step`: {"loss": ..., "triplet": ...}."""
        rate, eta = self.clock.rate(step), self.clock.eta(step, self._steps)
        timing = {"steps_per_second": rate, "images_per_second": rate * self.images}
        timing |= self.health(rate, self.clock.seconds) if self.health else {}
        self.write(
            step,
            {f"train/{name}": value for name, value in means.items()}
            | {f"time/{name}": value for name, value in timing.items()},
        )
        terms = sorted(means.keys() - {"loss", "gradient_norm", "learning_rate"})
        losses = "  ".join(f"{name} {means[name]:.4f}" for name in ("loss", *terms))
        images, waits = rate * self.images, timing.get("input_wait", 0.0)
        self.say(
            f"step {step:>{len(str(self._steps))}}/{self._steps} {step / self._steps:4.0%}  "
            f"{losses}  {images:,.{0 if images > 20 else 1}f} images/s  eta {duration(eta)}"
            + (f"  waiting for data {waits:.0%}" if waits > 0.1 else "")
        )

    def evaluation(
        self,
        step: int,
        metrics: Mapping[str, float],
        seconds: float,
        classes: str = "unseen classes",
    ) -> None:
        """Reports validation metrics of `classes`, named ranking/convention/metric."""
        self.write(step, {f"validation/{name}": value for name, value in metrics.items()})
        shown = "  ".join(
            f"{name.partition('/')[0]} {100 * value:.1f}"
            for name, value in metrics.items()
            if name.endswith(f"/{self._headline}")
        )
        name = self._headline.removeprefix("exact/")
        self.say(f"step {step}: {classes}, {name} {shown}  ({duration(seconds)})")


class Clock:
    """Measures steps per second without pauses, and the remaining time.

    Attributes:
      seconds: time between the last two calls of `rate`, without pauses.
    """

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts measuring at `step`, for example after the compilation of the first step."""
        self._first = self._last = (step, time.monotonic())
        self._paused = self.seconds = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside from `rate`: an evaluation or a save."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def rate(self, step: int) -> float:
        """Steps per second since the last call; 0 if there was none."""
        now = time.monotonic()
        steps, seconds = step - self._last[0], now - self._last[1] - self._paused
        self._last, self._paused, self.seconds = (step, now), 0.0, seconds
        return steps / seconds if steps and seconds > 0 else 0.0

    def eta(self, step: int, steps: int) -> float:
        """Seconds until step `steps` at the average rate so far, pauses included."""
        done = step - self._first[0]
        return (steps - step) * (time.monotonic() - self._first[1]) / done if done else 0.0
