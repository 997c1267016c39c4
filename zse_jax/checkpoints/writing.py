"""Writes the checkpoints of a run, deletes old ones, and resumes from the latest.

    WORKDIR/checkpoints/<step>/model      parameters (all that evaluation reads)
                               random     dropout keys and their counters
                               optimizer  step and moments
                               data       position in the training data, one file per process
                               config     the whole config, and the version that wrote it
                               trained    the classes and images that trained, if recorded
                               metrics    the evaluation at this step, if there was one

Only this module and `zse_jax.checkpoints.reading` use Orbax. Orbax writes in the background into a
temporary folder that is renamed when complete, so a killed process or a full disk never harms an
earlier checkpoint. Arrays are stored by flat names, the path of their module
("encoder/blocks/0/attention/qkv/kernel"), so that the files do not depend on how a Flax release
nests its states. With several processes, each writes its part of the arrays.
"""

import contextlib
import errno
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from data_pipelines import paths
from zse_jax.checkpoints import reading
from zse_jax.checkpoints.arrays import checksums, flat_arrays, split_model
from zse_jax.checkpoints.reading import FOLDER, DamagedError, absolute, reader
from zse_jax.runtime import config_io, distributed
from zse_jax.runtime.console import first_line
from zse_jax.version import __version__

logger = logging.getLogger(__name__)

DAMAGED = "damaged-checkpoints"
"""The folder in the workdir for checkpoints that could not be read."""

LAG_SECONDS = 15.0
"""How long to wait until every process sees the checkpoints that process 0 sees."""

ITEMS = ("model", "random", "optimizer")
"""The parts of a train state, which are saved as separate items."""


class Checkpoints:
    """The checkpoints of one training run; a context manager that waits for the last save.

    Which steps exist, and their evaluations, are read once, by one process, and then kept in
    memory: all processes decide alike, and no step of the training reads the storage.

    Attributes:
      folder: contains the checkpoints.
      select: the metric (a key of the saved metrics) whose largest value is "best".
      setting: the `config_io.validation_setting` in which values of `select` are compared.
      trained: what the run was trained on, saved with every checkpoint; None: not recorded. See
        `zse_jax.evaluation.training_record`.
    """

    trained: Mapping[str, Any] | None = None

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        select: str,
        setting: str | None = None,
        keep_last: int = 2,
    ):
        """Opens or creates the checkpoints of `workdir`.

        It keeps the last ones, and the best one of every setting.

        Args:
          workdir: of the run.
          select: see the attributes.
          setting: see the attributes; None: that of the last step with an evaluation.
          keep_last: number of last checkpoints.
        """
        if keep_last < 1:
            raise ValueError(f"config.checkpoint.keep_last={keep_last} must be at least 1.")
        self.select, self._setting, self._keep_last = select, setting, keep_last
        self.folder = absolute(workdir) / FOLDER
        options = managers.CheckpointManagerOptions(
            cleanup_tmp_directories=True, preservation_policy=_Kept(self)
        )
        self._manager = reading.Manager(self.folder, options=options)
        self._evaluations: dict[int, reading.Evaluated] = {}
        self._look()

    def _look(self) -> None:
        """Reads which steps exist, and their evaluations; all processes get those of the first."""
        known: dict[str, Any] = {}
        if distributed.this_process() == 0:
            for step in self._manager.all_steps():
                try:
                    known[str(step)] = reading.evaluation_of(self._manager, step)
                except DamagedError as error:
                    logger.warning("%s Its evaluation is ignored.", error)
                    known[str(step)] = None
        known = distributed.of_first(known)
        self._evaluations = {
            int(step): reading.Evaluated(*found) for step, found in known.items() if found
        }
        steps, until = sorted(map(int, known)), time.monotonic() + LAG_SECONDS
        while sorted(self._manager.all_steps()) != steps and time.monotonic() < until:
            time.sleep(0.5)
            self._manager.reload()
        if (here := sorted(self._manager.all_steps())) != steps:
            raise OSError(
                f"{self.folder} has the steps {steps} for process 0, and {here} for process "
                f"{distributed.this_process()}: the shared disk is not up to date. Run the same "
                "command again."
            )

    @property
    def setting(self) -> str:
        """The setting in which evaluations are compared."""
        if self._setting is not None or not self._evaluations:
            return self._setting or ""
        return self._evaluations[max(self._evaluations)].setting

    @property
    def kept(self) -> set[int]:
        """The steps to keep besides the last ones: the best of every setting."""
        settings = {found.setting for found in self._evaluations.values()}
        best = (reading.best_step(self._evaluations, self.select, one) for one in settings)
        return {found[0] for found in best if found}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            with self._saving():
                self._manager.close()
        except OSError:
            if error is None:  # an earlier error describes the cause better
                raise

    @property
    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the best metric and its value, or None if none was evaluated.

        Only evaluations in `setting` count.
        """
        return reading.best_step(self._evaluations, self.select, self.setting)

    @property
    def incomparable(self) -> bool:
        """Whether there are evaluations, but none in `setting`."""
        return bool(self._evaluations) and not any(map(self.metrics, self._evaluations))

    def metrics(self, step: int) -> dict[str, float]:
        """The evaluation of `step` in `setting`; empty if there was none."""
        found = self._evaluations.get(step)
        return found.metrics if found and found.setting == self.setting else {}

    def save(
        self,
        step: int,
        state: Mapping[str, nnx.State],
        batches: Any,
        config: ConfigDict,
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Saves everything under `step` in the background; does nothing if the step exists.

        Args:
          step: number of training steps done.
          state: the parts named in `ITEMS`.
          batches: the iterator of training batches; its `get_state()` is saved.
          config: saved with the checkpoint.
          metrics: the evaluation at this step.

        Raises:
          OSError: this save, or the previous one in the background, failed.
        """
        from grain.checkpoint import CheckpointSave  # grain is not needed to read a model

        if step in self._manager.all_steps():
            return
        flat = {name: flat_arrays(state[name]) for name in ITEMS}  # Orbax cannot save empty items
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(arrays) for name, arrays in flat.items() if arrays
        }
        about = {
            "version": __version__,
            "config": config_io.to_plain(config),
            "digests": {name: checksums(arrays) for name, arrays in flat.items()},
        }
        if metrics:
            items[reading.METRICS] = ocp.args.JsonSave(self._evaluated(step, config, metrics))
        if self.trained is not None:
            items["trained"] = ocp.args.JsonSave(dict(self.trained))
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **items,
                    data=CheckpointSave(_Position(batches)),
                    config=ocp.args.JsonSave(about),
                ),
                force=True,
            )

    def _evaluated(
        self, step: int, config: ConfigDict, metrics: Mapping[str, float]
    ) -> dict[str, Any]:
        """Records an evaluation in memory; returns what its file contains."""
        setting = config_io.validation_setting(config)
        self._evaluations[step] = reading.Evaluated(setting, dict(metrics))
        return {**metrics, "setting": setting}

    def evaluated(self, step: int, config: ConfigDict, metrics: Mapping[str, float]) -> None:
        """Adds an evaluation to a step that is already saved.

        Args:
          step: a saved step.
          config: of the evaluation.
          metrics: the evaluation.

        Raises:
          OSError: it cannot be written.
        """
        self.wait()
        content = self._evaluated(step, config, metrics)
        if distributed.this_process() == 0:
            paths.replace(reading.evaluation_file(self.folder / str(step)), json.dumps(content))

    def wait(self) -> None:
        """Returns when the last save is on disk; raises OSError if it failed."""
        with self._saving():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises OSError if a save in the background has failed."""
        with self._saving():
            self._manager.check_for_errors()

    def restore(
        self, step: int, abstract: Mapping[str, nnx.State], batches: Any | None = None
    ) -> dict[str, nnx.State]:
        """The train state of `step`; also moves `batches` to the saved position.

        Args:
          step: a saved step.
          abstract: `ITEMS` of jax.ShapeDtypeStruct leaves with shardings.
          batches: an iterator of training batches with `set_state`, or None.

        Raises:
          DamagedError: it cannot be read.
          ValueError: the checkpoint is of another model, or contains a model without train state.
        """
        folder = self.folder / str(step)
        position = reading.read_position(folder) if batches is not None else {}
        if batches is not None and not position:
            raise ValueError(
                f"{folder} contains a converted model without a train state, so training cannot be "
                f"resumed: start a new run from it with --config.init_from={folder} and another "
                "--workdir."
            )
        state = reading.restore(self._manager, step, abstract)
        if batches is not None:
            batches.set_state(position)
        return state

    def check_latest(self, check: Callable[[ConfigDict], Any]) -> None:
        """Calls `check` with the config of the last step, if there is one and it can be read."""
        if self.latest is not None:
            with contextlib.suppress(DamagedError):
                check(self.read_config(self.latest))

    def resume(
        self,
        abstract: Mapping[str, nnx.State],
        batches: Any,
        check: Callable[[ConfigDict], Any],
    ) -> tuple[int, dict[str, nnx.State]] | None:
        """The last readable step and its state, as `restore`; None if there are no checkpoints.

        Damaged later ones are moved to `DAMAGED` in the workdir, with a warning. With several
        processes, all of them then end with `distributed.AGAIN`.

        Args:
          abstract, batches: as for `restore`.
          check: called with the config of a step before its state is read; raises if it does not
            fit.

        Raises:
          DamagedError: there are checkpoints, but none can be read.
          ValueError: a checkpoint is of another model.
        """
        problem = ""
        while (step := self.latest) is not None:
            try:
                check(self.read_config(step))
                return step, self.restore(step, abstract, batches)
            except DamagedError as error:
                problem = str(error)
            problem = self._set_aside(step, problem)
            logger.warning(problem)
        if problem:
            raise DamagedError(
                f"None of the checkpoints in {self.folder} could be read: running the same command "
                f"again starts from scratch. {problem}"
            )
        return None

    def _set_aside(self, step: int, problem: str) -> str:
        """Moves a damaged step to `DAMAGED`; returns `problem` with the next action appended.

        One of several processes ends instead: the others wait for it inside Orbax, so all of them
        must start again.
        """
        there, name = self.folder.parent / DAMAGED, str(step)
        there.mkdir(exist_ok=True)
        while (there / name).exists():
            name += "-again"
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            (self.folder / str(step)).rename(there / name)
        steps = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        message = f"{problem} It was moved to {there}"
        if distributed.together():
            then = f"resumes from step {max(steps)}" if steps else "starts from scratch"
            message = f"{message}. Run the same command again: it {then}."
            print(f"error: {message}", file=sys.stderr, flush=True)
            distributed.leave(distributed.AGAIN if steps else 1, message)
        self._manager.reload()
        self._evaluations.pop(step, None)
        then = f"resuming from step {max(steps)}" if steps else "starting from scratch"
        return f"{message}; {then}."

    @property
    def record(self) -> dict[str, Any] | None:
        """What the last step was trained on; None if there is no step or no record."""
        if self.latest is None:
            return None
        with contextlib.suppress(DamagedError):
            return reading.read_step_record(self._manager, self.latest)
        return None

    def read_config(self, step: int) -> ConfigDict:
        """The config saved with `step`."""
        return reading.read_step_config(self._manager, step)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns every error while saving into one OSError that says what to do."""
        try:
            yield
        except Exception as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            system = re.search(r"([\w ]+) \[os_error_code", str(error))  # tensorstore's format
            reason = system[1].strip() if system else first_line(error)
            with reader(self.folder) as manager:
                last = manager.latest_step()
            raise OSError(
                f"A checkpoint could not be saved in {self.folder}: {reason}. "
                + (
                    "No checkpoint is complete yet"
                    if last is None
                    else f"The last good checkpoint is step {last}, and it is intact"
                )
                + f": {'free some space' if full else 'fix the cause'} and run the same command "
                "to resume from there."
            ) from error


class _Kept(managers.PreservationPolicy):
    """Keeps the last checkpoints, and `Checkpoints.kept`."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each step is kept."""
        steps = [info.step for info in checkpoints]
        kept = {*steps[-self._checkpoints._keep_last :], *self._checkpoints.kept}
        return [step in kept for step in steps]


def write(
    workdir: str | os.PathLike,
    step: int,
    retriever: nnx.Module,
    config: ConfigDict,
    trained: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint without train state: to load or initialise from, not to resume.

    `trained` is its record of training data, see `Checkpoints.trained`.

    Raises:
      OSError: it could not be written.
    """
    state = split_model(retriever)[1] | {"optimizer": nnx.State({})}
    with Checkpoints(workdir, select=config.evaluation.select) as checkpoints:
        checkpoints.trained = trained
        checkpoints.save(step, state, SimpleNamespace(get_state=dict), config, None)  # no position


class _Position:
    """The position of an iterator of batches, in the form that grain's checkpoint handler needs."""

    def __init__(self, batches: Any):
        self._batches = batches

    def get_state(self) -> bytes:
        return json.dumps(self._batches.get_state()).encode()

    def start_prefetch(self) -> None:
        """Does nothing: the iterator already prefetches."""
