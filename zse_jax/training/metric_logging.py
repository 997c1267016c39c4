"""Logs the metrics of a run to the console, `metrics.jsonl` and TensorBoard.

Only process 0 logs. `metrics.jsonl` has one JSON object per line: `step`, and values named
`train/...` (means over the steps since the previous line), `validation/RANKING/CONVENTION/METRIC`
(with the `setting` in which they were measured, see `config_io.validation_setting`) and `time/...`
(the only ones that differ when a run is repeated). A resumed run removes the lines later than its
first step, so that the file is the same as without the interruption.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
from etils import epath

from zse_jax.runtime.console import duration, first_line
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
        self._file: TextIO | None = None
        self._writer: Any = None
        self._workdir, self._failed = workdir, False
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

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        closing = [(METRICS_FILE, self._file), ("The TensorBoard files", self._writer)]
        for what, file in closing:
            if file is None:
                continue
            # After an error, which describes the cause, another one of the same cause says nothing.
            ignored = contextlib.suppress(*([Exception] if error or self._failed else []))
            with ignored, self._writing(what):
                file.close()

    def say(self, text: str = "") -> None:
        """Prints a line on the console."""
        if self._chief:
            print(text, flush=True)

    def write(self, step: int, values: Mapping[str, float], **labels: str) -> None:
        """Appends a line to `metrics.jsonl`, and the values, without the labels, to TensorBoard.

        Raises:
          OSError: a file cannot be written.
        """
        if self._file is None:
            return
        with self._writing(METRICS_FILE):
            self._file.write(json.dumps({"step": step, **labels, **values}) + "\n")
            self._file.flush()
        if self._writer is not None:
            with self._writing("The TensorBoard files"):
                self._writer.write_scalars(step, dict(values))

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Turns every error of a writer into one OSError that says what to do."""
        try:
            yield
        except Exception as error:  # clu and TensorFlow raise types of their own, in threads
            self._failed = True
            cause = error.__cause__ or error
            reason = getattr(cause, "strerror", None) or first_line(cause).rpartition("; ")[2]
            raise OSError(
                f"{what} in {self._workdir} cannot be written: {reason}. Fix the cause (such as a "
                "full disk) and run the same command to resume from the last checkpoint."
            ) from error

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
        setting: str,
        classes: str = "unseen classes",
    ) -> None:
        """Reports validation metrics, named ranking/convention/metric, of a setting."""
        values = {f"validation/{name}": value for name, value in metrics.items()}
        self.write(step, values, setting=setting)
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
