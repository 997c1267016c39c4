"""Reads checkpoints: the whole train state, onto any mesh, or only the model.

Only this module and `zse_jax.checkpoints.writing`, which describes the layout, use Orbax.
"""

import contextlib
import json
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from data_pipelines import paths
from data_pipelines.files import is_system
from zse_jax.checkpoints import conversion, hub
from zse_jax.checkpoints.arrays import (
    Arrays,
    MismatchError,
    abstract_model,
    abstract_state,
    array_name,
    checksums,
    compare,
    flat_arrays,
    merge_for_inference,
)
from zse_jax.pretrained import sources
from zse_jax.retrievers.base import Encoder, Retriever
from zse_jax.runtime import config_io
from zse_jax.runtime.console import first_line

logger = logging.getLogger(__name__)

DEFAULT = sources.DEFAULT

FOLDER = "checkpoints"
METRICS = "metrics"
"""The item of a checkpoint with its evaluation, and its file."""

Read = TypeVar("Read")

_CONFIGS: MutableMapping[Retriever, ConfigDict] = weakref.WeakKeyDictionary()
"""The configs of the retrievers that were loaded and still exist."""

_RECORDS: MutableMapping[Encoder, dict[str, Any] | None] = weakref.WeakKeyDictionary()
"""The records of the training data of these retrievers."""


class DamagedError(ValueError):
    """A checkpoint with missing or changed files."""


def load(
    path: str | os.PathLike,
    *,
    allow_fallback: bool = False,
    base: str | os.PathLike | None = None,
) -> Retriever:
    """The trained retriever in a checkpoint, ready to encode and score (dropout off).

    Nothing else is needed: the checkpoint contains its config. Never imports TensorFlow.

    Args:
      path: a workdir (its best checkpoint, or the last if none was evaluated), the folder of one
        step, or a folder written by `zse_jax.save_pretrained`; local, in a bucket such as
        gs://bucket/run, or, for published models, hf://owner/name on the Hugging Face Hub. Or a
        publisher's weights (`zse_jax.pretrained.sources`); see `conversion.load`.
      allow_fallback: if the best checkpoint of a workdir is damaged, read the next best, with a
        warning.
      base: where the base weights of a model are that `save_pretrained` wrote without them
        (`adapters_only`); None: as it names them.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`, or no base weights.
      DamagedError: it cannot be read.
      ValueError: the checkpoint is of another version of its model, or was trained on another base.
    """
    return load_step(path, allow_fallback=allow_fallback, base=base)[1]


def load_step(
    path: str | os.PathLike,
    step: int | None = None,
    *,
    allow_fallback: bool = False,
    base: str | os.PathLike | None = None,
) -> tuple[int, Retriever]:
    """The step that is read, and the retriever; as `load`, or a given `step` of a workdir."""
    weights = hub.is_weights(path)
    folder = None if weights else hub.find(path)
    if base is not None and folder is None:
        raise ValueError(
            f"base={base} is for a model that was saved with adapters_only, and {path} is not one: "
            "leave it out."
        )
    if weights:
        retriever, config = conversion.load(path)
        _CONFIGS[retriever] = config
        return 0, retriever
    if folder is not None:
        retriever = hub.load(folder, base)
        _CONFIGS[retriever] = hub.read_config(folder)
        _RECORDS[retriever] = hub.read_record(folder)
        return hub.read_about(folder)["step"], retriever
    return _first_readable(path, _load, step, allow_fallback)


def _first_readable(
    path: str | os.PathLike,
    read: Callable[[managers.CheckpointManager, int], Read],
    step: int | None,
    allow_fallback: bool,
) -> tuple[int, Read]:
    """The step to read and what `read` makes of it; with `allow_fallback`, of the next best."""
    with find(path, step, allow_fallback=allow_fallback) as (manager, first):
        fixed = step is not None or _is_step(absolute(path))
        steps = [first] if fixed else _by_quality(manager, first)
        for number, following in zip(steps, [*steps[1:], None], strict=True):
            try:
                return number, read(manager, number)
            except DamagedError as error:
                if following is None:
                    raise
                if not allow_fallback:
                    raise DamagedError(
                        f"{error} The next best step is {following}: to use it, give its folder, "
                        f"{manager.directory / str(following)}, or allow the fallback "
                        "(--allow_fallback of zse_jax.evaluate, allow_fallback=True of load)."
                    ) from error
                logger.warning("%s Reading step %d instead.", error, following)
    raise AssertionError("`find` returns at least one step.")


def _load(manager: managers.CheckpointManager, step: int) -> Retriever:
    config = read_step_config(manager, step)
    definition, shapes = abstract_model(config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = abstract_state(shapes, jax.tree.map(lambda _: device, shapes))
    retriever = merge_for_inference(definition, restore(manager, step, abstract))
    _CONFIGS[retriever] = config
    _RECORDS[retriever] = read_step_record(manager, step)
    return retriever


def config_of(retriever: Retriever) -> ConfigDict | None:
    """The config of a retriever that was loaded from a checkpoint; None for others."""
    return _CONFIGS.get(retriever)


def record_of(retriever: Encoder) -> dict[str, Any] | None:
    """What a retriever that was loaded from a checkpoint was trained on; None if not recorded."""
    return _RECORDS.get(retriever)


def _by_quality(manager: managers.CheckpointManager, first: int) -> list[int]:
    """All steps: `first`, then the evaluated ones, best first, then the others, latest first."""
    select, setting = _validation(manager)
    evaluated = _evaluations(manager, skip_damaged=True)

    def quality(step: int) -> tuple[bool, float, int]:
        found = evaluated.get(step)
        same = found is not None and found.setting == setting
        value = found.metrics.get(select) if found is not None and same else None
        return step == first, float("-inf") if value is None else value, step

    return sorted(manager.all_steps(), key=quality, reverse=True)


def _validation(manager: managers.CheckpointManager) -> tuple[str, str]:
    """The metric that selects the best step, and the setting in which it was measured.

    From the last config that can be read.
    """
    for step in sorted(manager.all_steps(), reverse=True):
        with contextlib.suppress(DamagedError):
            config = read_step_config(manager, step)
            return config.evaluation.select, config_io.validation_setting(config)
    return "", ""


def read_record(path: str | os.PathLike) -> dict[str, Any] | None:
    """What the checkpoint that `load(path)` would read was trained on; None if not recorded.

    See `zse_jax.evaluation.training_record`.
    """
    if hub.is_weights(path):
        return None
    if folder := hub.find(path):
        return hub.read_record(folder)
    with find(path) as (manager, step):
        return read_step_record(manager, step)


def read_config(
    path: str | os.PathLike, step: int | None = None, *, allow_fallback: bool = False
) -> ConfigDict:
    """The config of the checkpoint that `load_step` would read."""
    if hub.is_weights(path):
        return conversion.read_config(path)
    if folder := hub.find(path):
        return hub.read_config(folder)
    return _first_readable(path, read_step_config, step, allow_fallback)[1]


def step_of(path: str | os.PathLike) -> int:
    """The step that `load(path)` would read."""
    if hub.is_weights(path):
        return 0
    if folder := hub.find(path):
        return hub.read_about(folder)["step"]
    with find(path) as (_, step):
        return step


def place_of(path: str | os.PathLike, step: int) -> str:
    """The folder of `step` if the workdir `path` contains it; else `path` itself."""
    if not sources.is_remote(path):
        folder = absolute(path) / FOLDER / str(step)
        if folder.exists():
            return os.fspath(folder)
    return os.fspath(path)


@contextlib.contextmanager
def find(
    path: str | os.PathLike, step: int | None = None, *, allow_fallback: bool = False
) -> Iterator[tuple[managers.CheckpointManager, int]]:
    """Opens the manager of `path` (a workdir, or one step's folder), with the step to read.

    Args:
      path: see `load`.
      step: a step of the workdir; None: the best.
      allow_fallback: ignore, with a warning, evaluations that cannot be read.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`, or not this step; the message lists what
        is there.
      DamagedError: the best step is not known, because an evaluation cannot be read.
    """
    path = absolute(path)
    if _is_step(path):
        if step not in (None, int(path.name)):
            raise ValueError(f"{path} is the folder of one step: give its run for step {step}.")
        folder, step = path.parent, int(path.name)
    else:
        folder = path if path.name == FOLDER else path / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} contains no checkpoint: {_contents(path)}.")
    with reader(folder) as manager:
        steps = manager.all_steps()
        if not steps:
            raise FileNotFoundError(
                f"{folder} contains no complete checkpoint: the run has not saved one yet "
                f"({_contents(folder)})."
            )
        if step is None:
            best = best_step(_evaluations(manager, allow_fallback), *_validation(manager))
            step = best[0] if best else max(steps)
        if step not in steps:
            raise FileNotFoundError(
                f"{folder} has no step {step}: its steps are {', '.join(map(str, sorted(steps)))}."
            )
        yield manager, step


def _is_step(path: epath.Path) -> bool:
    return path.name.isdigit() and (path / "model").exists()


class Manager(managers.CheckpointManager):
    """Orbax's manager, which does not read evaluations: `evaluation_of` does."""

    def metrics(self, step: int) -> None:
        """Nothing: Orbax would read every evaluation when it opens a folder."""


def reader(folder: epath.Path) -> Manager:
    """A read-only manager: it creates and deletes nothing."""
    options = managers.CheckpointManagerOptions(
        create=False, preservation_policy=managers.preservation_policy.PreserveAll()
    )
    return Manager(folder, options=options)


class Evaluated(NamedTuple):
    """The evaluation of a saved step: its metrics, and their `config_io.validation_setting`."""

    setting: str
    metrics: dict[str, float]


def best_step(
    evaluations: Mapping[int, Evaluated], select: str, setting: str
) -> tuple[int, float] | None:
    """The step with the largest metric `select` in a setting, and its value; None if none has it.

    Of equal ones, the last.
    """
    found = [
        (metrics[select], step)
        for step, (of, metrics) in evaluations.items()
        if of == setting and select in metrics
    ]
    return max(found)[::-1] if found else None


def evaluation_of(manager: managers.CheckpointManager, step: int) -> Evaluated | None:
    """The evaluation saved with `step`; None if there was none. Raises DamagedError."""
    folder = manager.directory / str(step)
    file = evaluation_file(folder)
    if not file.exists():
        return None
    with reading(folder):
        metrics = dict(json.loads(file.read_bytes()))
    setting = metrics.pop("setting", None)
    if setting is None:  # saved by an earlier version
        setting = config_io.validation_setting(read_step_config(manager, step))
    return Evaluated(setting, metrics)


def evaluation_file(folder: epath.Path) -> epath.Path:
    """The file with the evaluation of the step in `folder`."""
    return folder / METRICS / METRICS


def _evaluations(manager: managers.CheckpointManager, skip_damaged: bool) -> dict[int, Evaluated]:
    """The evaluations of all steps that have one; raises DamagedError, or warns of it."""
    found = {}
    for step in manager.all_steps():
        try:
            evaluation = evaluation_of(manager, step)
        except DamagedError as error:
            if not skip_damaged:
                raise DamagedError(
                    f"{error} So the best step of the run is not known: choose a step, such as "
                    f"{manager.directory / str(step)}, or allow the fallback (--allow_fallback of "
                    "zse_jax.evaluate, allow_fallback=True of load)."
                ) from error
            logger.warning("%s Its evaluation is ignored.", error)
            continue
        if evaluation is not None:
            found[step] = evaluation
    return found


def metrics_of(manager: managers.CheckpointManager, step: int) -> dict[str, float]:
    """The metrics saved with `step`; empty if it was not evaluated. Raises DamagedError."""
    found = evaluation_of(manager, step)
    return found.metrics if found else {}


def read_step_config(manager: managers.CheckpointManager, step: int) -> ConfigDict:
    """The config saved with `step`; raises DamagedError."""
    with reading(manager.directory / str(step)):
        about = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        return config_io.from_plain(about.config["config"])


def read_step_record(manager: managers.CheckpointManager, step: int) -> dict[str, Any] | None:
    """The record of the training data saved with `step`, if any; raises DamagedError."""
    folder = manager.directory / str(step)
    if not (folder / "trained").exists():
        return None
    with reading(folder):
        return manager.restore(
            step, args=ocp.args.Composite(trained=ocp.args.JsonRestore())
        ).trained


def read_position(folder: epath.Path) -> dict[str, int]:
    """The position in the training data saved with the step in `folder`; raises DamagedError.

    Each process wrote a file, all with the same content: the number of global batches used so far.
    It is valid for any number of processes, and one readable file is enough.
    """
    files = sorted((folder / "data").glob("process_*.json"))
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            if isinstance(position := json.loads(file.read_text()), dict):
                return position
    with reading(folder):
        raise ValueError(f"none of {len(files)} files in data/ contains the position in the data")


def restore(
    manager: managers.CheckpointManager, step: int, abstract: Mapping[str, nnx.State]
) -> dict[str, nnx.State]:
    """Restores the parts of a train state in `abstract`, with the shardings of its leaves.

    Raises:
      DamagedError: they cannot be read.
      MismatchError: they are of another model.
    """
    folder = manager.directory / str(step)
    with reading(folder):
        wanted = {name: flat for name, part in abstract.items() if (flat := flat_arrays(part))}
        for name in wanted:
            saved = dict(ocp.StandardCheckpointHandler().metadata(folder / name))
            compare(saved, wanted[name], f"{folder}/{name}")
        args = {name: ocp.args.StandardRestore(arrays) for name, arrays in wanted.items()}
        restored = manager.restore(step, args=ocp.args.Composite(**args))
        _check_digests(manager, step, restored)
    return {
        name: jax.tree_util.tree_map_with_path(
            lambda path, _, name=name: restored[name][array_name(path)], part
        )
        for name, part in abstract.items()
    }


def _check_digests(
    manager: managers.CheckpointManager, step: int, restored: Mapping[str, Arrays]
) -> None:
    """Raises ValueError with the arrays that differ from what was saved; see `checksums`."""
    about = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    saved = about.config.get("digests", {})  # missing in checkpoints of early versions
    differ = [
        f"{item}/{name}"
        for item, arrays in restored.items()
        for name, found in checksums(arrays).items()
        if saved.get(item, {}).get(name, found) != found
    ]
    if differ:
        raise ValueError(f"the checksums of {len(differ)} arrays differ: {', '.join(differ[:3])}")


@contextlib.contextmanager
def reading(folder: epath.Path) -> Iterator[None]:
    """Turns every error while reading into one DamagedError that names the folder."""
    try:
        yield
    except (MismatchError, DamagedError):
        raise
    except Exception as error:
        raise DamagedError(
            f"The checkpoint {folder} cannot be read; it is damaged, or was written by another "
            f"version ({first_line(error)})."
        ) from error


def absolute(path: str | os.PathLike) -> epath.Path:
    """A user's path as `paths.located`, without links; names of the hub and of packages stay."""
    if sources.is_remote(path):
        return epath.Path(str(sources.parse_hub_uri(path) or path))
    place = paths.located(path)
    return place if paths.in_bucket(place) else place.resolve()


def new_folder(path: str | os.PathLike) -> epath.Path:
    """The absolute path of a folder that is new or empty, except for files of the system.

    Raises:
      FileExistsError: it is neither.
    """
    folder = absolute(path)
    if folder.is_dir():
        occupied = any(not is_system(path.name) for path in folder.iterdir())
    else:
        occupied = folder.exists()
    if occupied:
        kind = "is not empty" if folder.is_dir() else "is a file"
        raise FileExistsError(f"{folder} {kind}: give a new or an empty folder.")
    return folder


def _contents(path: epath.Path) -> str:
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file; give the workdir of a training run, or the folder of one step"
    names = sorted(child.name for child in path.iterdir() if not is_system(child.name))
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"expected {FOLDER}/<step>/, found " + (listed or "an empty folder")
