"""Checkpoints: what is saved, where, which are kept, and how they are read again.

    WORKDIR/checkpoints/<step>/model      parameters (all that evaluation reads)
                               random     dropout keys and their counters
                               optimizer  step and moments
                               data       position in the training data, one file per process
                               config     the whole config, and the version that wrote it
                               metrics    the evaluation at this step, if there was one

The only file that knows Orbax. Orbax writes in the background into a folder that gets its name
when it is complete, so a killed process or a full disk never harms an earlier checkpoint. Arrays
are stored flat, under the path of their module ("encoder/blocks/0/attention/qkv/kernel"), so that
the files do not depend on how a Flax release nests its states.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from zse_jax import configuration, retrievers
from zse_jax.retrievers.base import Retriever

FOLDER = "checkpoints"
ITEMS = ("model", "random", "optimizer")
"""The parts of a train state, each an item of its own."""

Arrays = dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run; a context manager that waits for the last save.

    Attributes:
      folder: where they lie.
      select: the metric (a key of the saved metrics) of which the largest value is "best".
    """

    def __init__(self, workdir: str | os.PathLike, *, select: str, keep_last: int = 2):
        """Opens, or creates, the checkpoints of `workdir`; keeps the best and the last ones."""
        if keep_last < 1:
            raise ValueError(f"config.checkpoint.keep_last={keep_last} must be at least 1.")
        self.select = select
        self.folder = absolute(workdir) / FOLDER

        def quality(metrics: Mapping[str, float]) -> float:
            return metrics.get(select, float("-inf"))

        options = managers.CheckpointManagerOptions(
            best_fn=quality,
            cleanup_tmp_directories=True,
            preservation_policy=managers.AnyPreservationPolicy(
                [
                    managers.LatestN(keep_last),
                    managers.BestN(
                        get_metric_fn=quality, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
        )
        self._manager = managers.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            with self._saving():
                self._manager.close()
        except OSError:
            if error is None:  # an earlier error tells the cause better
                raise

    @property
    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the best metric and its value, or None where none was evaluated."""
        return _best(self._manager, self.select)

    def metrics(self, step: int) -> dict[str, float]:
        """The evaluation saved with `step`; empty if there was none."""
        return self._manager.metrics(step) or {}

    def save(
        self,
        step: int,
        state: Mapping[str, nnx.State],
        batches: Any,
        config: ConfigDict,
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Saves everything under `step`, in the background, unless that step is there already.

        Args:
          step: training steps done.
          state: the parts named in `ITEMS`.
          batches: the iterator of training batches; its `get_state()` is taken now.
          config: travels with the checkpoint.
          metrics: the evaluation at this step.

        Raises:
          OSError: this save, or the one before that ran in the background, could not be written.
        """
        from grain.checkpoint import CheckpointSave  # grain is not needed to read a model

        from zse_jax import __version__

        if step in self._manager.all_steps():
            return
        flat = {name: flat_arrays(state[name]) for name in ITEMS}  # Orbax saves no empty item
        items = {name: ocp.args.StandardSave(arrays) for name, arrays in flat.items() if arrays}
        about = {"version": __version__, "config": configuration.to_plain(config)}
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **items,
                    data=CheckpointSave(_Position(batches)),
                    config=ocp.args.JsonSave(about),
                ),
                metrics=dict(metrics) if metrics else None,
                force=True,
            )

    def wait(self) -> None:
        """Returns when the last save is on disk; raises OSError if it failed."""
        with self._saving():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises OSError if a save in the background has failed meanwhile."""
        with self._saving():
            self._manager.check_for_errors()

    def restore(
        self, step: int, abstract: Mapping[str, nnx.State], batches: Any | None = None
    ) -> dict[str, nnx.State]:
        """The train state of `step`, placed as `abstract` says; moves `batches` to its position.

        Args:
          step: one of the steps there are.
          abstract: `ITEMS` of jax.ShapeDtypeStruct leaves with shardings.
          batches: an iterator of training batches with `set_state`, or None.

        Raises:
          ValueError: the checkpoint is of another model, or damaged.
        """
        state = _restore(self._manager, step, abstract)
        if batches is not None:
            from grain.checkpoint import CheckpointRestore

            position = ocp.args.Composite(data=CheckpointRestore(_Position(batches)))
            with _reading(self.folder / str(step)):
                self._manager.restore(step, args=position)
        return state

    def read_config(self, step: int) -> ConfigDict:
        """The config saved with `step`."""
        return _read_config(self._manager, step)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns whatever goes wrong while saving into one OSError that says what to do."""
        try:
            yield
        except Exception as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            system = re.search(r"([\w ]+) \[os_error_code", str(error))  # as tensorstore says it
            reason = system[1].strip() if system else _first_line(error)
            with _reader(self.folder) as manager:
                last = manager.latest_step()
            raise OSError(
                f"A checkpoint could not be saved in {self.folder}: {reason}. "
                + (
                    "No checkpoint is complete yet"
                    if last is None
                    else f"The last good checkpoint is step {last}, and it is intact"
                )
                + f": {'free some space' if full else 'mend the cause'} and start the same "
                "command again to go on from there."
            ) from error


class _Position:
    """The position of an iterator of batches, in the form that grain's checkpoint handler asks."""

    def __init__(self, batches: Any):
        self._batches = batches

    def get_state(self) -> bytes:
        return json.dumps(self._batches.get_state()).encode()

    def set_state(self, state: bytes) -> None:
        self._batches.set_state(json.loads(state))

    def start_prefetch(self) -> None:
        """Nothing: the iterator prefetches by itself."""


def flat_arrays(state: nnx.State) -> Arrays:
    """The arrays of a state, by the path of their module: {"blocks/0/norm/scale": ...}."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def abstract_state(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes and types as jax.ShapeDtypeStruct leaves that carry `shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def load(path: str | os.PathLike) -> Retriever:
    """The trained system in a checkpoint, ready to encode and score (dropout off).

    Nothing else is needed: the config travels with the checkpoint. Never imports TensorFlow.

    Args:
      path: a workdir (its best checkpoint, or the last if none was evaluated), or the folder of
        one step; local, or a cloud path such as gs://bucket/run.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      ValueError: it is damaged, or written by another version of its model.
    """
    with find(path) as (manager, step):
        config = _read_config(manager, step)
        model = nnx.eval_shape(
            lambda: retrievers.create(
                config.model.to_dict(), rngs=nnx.Rngs(0), dtype=config.compute_dtype
            )
        )
        definition, *parts = nnx.split(model, nnx.RngState, ...)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = dict(zip(("random", "model"), parts, strict=True))
        abstract = abstract_state(shapes, jax.tree.map(lambda _: device, shapes))
        state = _restore(manager, step, abstract)
    model = nnx.merge(definition, state["random"], state["model"])
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def read_config(path: str | os.PathLike) -> ConfigDict:
    """The config inside the checkpoint that `load(path)` would read."""
    with find(path) as (manager, step):
        return _read_config(manager, step)


def step_of(path: str | os.PathLike) -> int:
    """The step that `load(path)` would read."""
    with find(path) as (_, step):
        return step


@contextlib.contextmanager
def find(path: str | os.PathLike) -> Iterator[tuple[managers.CheckpointManager, int]]:
    """The manager and the step that `path` (a workdir, or one step's folder) stands for.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`; says what is there.
    """
    path = absolute(path)
    if path.name.isdigit() and (path / "model").exists():
        folder, step = path.parent, int(path.name)
    else:
        folder, step = path if path.name == FOLDER else path / FOLDER, None
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} holds no checkpoint: {_contents(path)}.")
    with _reader(folder) as manager:
        if step is None and (latest := manager.latest_step()) is not None:
            best = _best(manager, _read_config(manager, latest).evaluation.select)
            step = best[0] if best else latest
        if step is None:
            raise FileNotFoundError(
                f"{folder} holds no complete checkpoint: the run has not saved one yet "
                f"({_contents(folder)})."
            )
        yield manager, step


def _reader(folder: epath.Path) -> managers.CheckpointManager:
    """A manager that only reads: it creates nothing, and deletes nothing."""
    options = managers.CheckpointManagerOptions(
        create=False,
        best_fn=lambda metrics: 0.0,  # without it, metrics are not read
        preservation_policy=managers.preservation_policy.PreserveAll(),
    )
    return managers.CheckpointManager(folder, options=options)


def _best(manager: managers.CheckpointManager, select: str) -> tuple[int, float] | None:
    metrics = {step: manager.metrics(step) or {} for step in manager.all_steps()}
    found = [(values[select], step) for step, values in metrics.items() if select in values]
    return max(found)[::-1] if found else None


def _read_config(manager: managers.CheckpointManager, step: int) -> ConfigDict:
    with _reading(manager.directory / str(step)):
        about = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        return configuration.from_plain(about.config["config"])


def _restore(
    manager: managers.CheckpointManager, step: int, abstract: Mapping[str, nnx.State]
) -> dict[str, nnx.State]:
    folder = manager.directory / str(step)
    with _reading(folder):
        wanted = {name: flat for name, part in abstract.items() if (flat := flat_arrays(part))}
        for name in wanted:
            saved = dict(ocp.StandardCheckpointHandler().metadata(folder / name))
            _compare(saved, wanted[name], f"{folder}/{name}")
        args = {name: ocp.args.StandardRestore(arrays) for name, arrays in wanted.items()}
        restored = manager.restore(step, args=ocp.args.Composite(**args))
    return {
        name: jax.tree_util.tree_map_with_path(
            lambda path, _, name=name: restored[name][_name(path)], part
        )
        for name, part in abstract.items()
    }


class _MismatchError(ValueError):
    """A checkpoint that can be read, and does not fit."""


def _compare(saved: Mapping[str, Any], wanted: Arrays, where: str) -> None:
    """Raises ValueError naming the arrays that differ between a checkpoint and a model."""
    differ = [
        f"{name} is {tuple(saved[name].shape)} in the checkpoint and {_stored_shape(leaf)} here"
        for name, leaf in wanted.items()
        if name in saved and tuple(saved[name].shape) != _stored_shape(leaf)
    ]
    differ += [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    differ += [f"{name} is only in the checkpoint" for name in saved if name not in wanted]
    if differ:
        more = f"; and {len(differ) - 6} more" if len(differ) > 6 else ""
        raise _MismatchError(
            f"The checkpoint {where} is of another model: {'; '.join(differ[:6])}{more}. "
            "Use the config.model it was trained with (it travels inside the checkpoint)."
        )


def _stored_shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape on disk: that of a random key is the shape of its numbers."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, leaf).shape if is_key else tuple(leaf.shape)


@contextlib.contextmanager
def _reading(folder: epath.Path) -> Iterator[None]:
    """Turns whatever goes wrong while reading into one ValueError that names the folder."""
    try:
        yield
    except _MismatchError:
        raise
    except Exception as error:
        raise ValueError(
            f"The checkpoint {folder} cannot be read; it is damaged, or was written by another "
            f"version ({_first_line(error)}). If there is an earlier step beside it, delete this "
            "folder to go on from that one."
        ) from error


def absolute(path: str | os.PathLike) -> epath.Path:
    """A local path made absolute (Orbax asks for that), a cloud path as it is."""
    path = os.fspath(path)
    return epath.Path(path if "://" in path else Path(path).expanduser().resolve())


def _contents(path: epath.Path) -> str:
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file; give the workdir of a training run, or one step's folder in it"
    names = sorted(child.name for child in path.iterdir())
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"expected {FOLDER}/<step>/, found " + (listed or "an empty folder")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"
