"""Reads checkpoints: the whole train state, onto any mesh, or only the model.

Only this module and `zse_jax.checkpoints.writing`, which describes the layout, use Orbax.
"""

import contextlib
import json
import logging
import os
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from data_pipelines.files import is_system
from zse_jax.checkpoints import hub
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
from zse_jax.retrievers.base import Retriever
from zse_jax.runtime import config_io
from zse_jax.runtime.console import first_line

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"

_CONFIGS: MutableMapping[Retriever, ConfigDict] = weakref.WeakKeyDictionary()
"""The configs of the retrievers that were loaded and still exist."""


class DamagedError(ValueError):
    """A checkpoint with missing or changed files."""


def load(path: str | os.PathLike) -> Retriever:
    """The trained retriever in a checkpoint, ready to encode and score (dropout off).

    Nothing else is needed: the checkpoint contains its config. Never imports TensorFlow.

    Args:
      path: a workdir (its best checkpoint, or the last if none was evaluated; if that is damaged,
        the next best, with a warning), the folder of one step, or a folder written by
        `zse_jax.save_pretrained`; local, in a bucket such as gs://bucket/run, or, for published
        models, hf://owner/name on the Hugging Face Hub.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      DamagedError: no checkpoint at `path` can be read.
      ValueError: the checkpoint is of another version of its model.
    """
    return load_step(path)[1]


def load_step(path: str | os.PathLike) -> tuple[int, Retriever]:
    """The step that `load(path)` reads, and the retriever."""
    if folder := hub.find(path):
        retriever = hub.load(folder)
        _CONFIGS[retriever] = hub.read_config(folder)
        return hub.read_about(folder)["step"], retriever
    with find(path) as (manager, first):
        steps = [first] if _is_step(absolute(path)) else _by_quality(manager, first)
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            try:
                return step, _load(manager, step)
            except DamagedError as error:
                if following is None:
                    raise
                logger.warning("%s Reading step %d instead.", error, following)
    raise AssertionError("`find` returns at least one step.")


def _load(manager: managers.CheckpointManager, step: int) -> Retriever:
    config = read_step_config(manager, step)
    definition, shapes = abstract_model(config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = abstract_state(shapes, jax.tree.map(lambda _: device, shapes))
    retriever = merge_for_inference(definition, restore(manager, step, abstract))
    _CONFIGS[retriever] = config
    return retriever


def config_of(retriever: Retriever) -> ConfigDict | None:
    """The config of a retriever that was loaded from a checkpoint; None for others."""
    return _CONFIGS.get(retriever)


def _by_quality(manager: managers.CheckpointManager, first: int) -> list[int]:
    """All steps: `first`, then the evaluated ones, best first, then the others, latest first."""
    steps = manager.all_steps()
    select = _select(manager)

    def quality(step: int) -> tuple[bool, float, int]:
        return step == first, (metrics_of(manager, step).get(select, float("-inf"))), step

    return sorted(steps, key=quality, reverse=True)


def _select(manager: managers.CheckpointManager) -> str:
    """The metric that selects the best step, from the last config that can be read."""
    for step in sorted(manager.all_steps(), reverse=True):
        with contextlib.suppress(DamagedError):
            return read_step_config(manager, step).evaluation.select
    return ""


def read_config(path: str | os.PathLike) -> ConfigDict:
    """The config of the checkpoint that `load(path)` would read."""
    if folder := hub.find(path):
        return hub.read_config(folder)
    with find(path) as (manager, step):
        return read_step_config(manager, step)


def step_of(path: str | os.PathLike) -> int:
    """The step that `load(path)` would read."""
    if folder := hub.find(path):
        return hub.read_about(folder)["step"]
    with find(path) as (_, step):
        return step


def place_of(path: str | os.PathLike, step: int) -> str:
    """The folder of `step` if the workdir `path` contains it; else `path` itself."""
    if hub.parse_hub_uri(path) is None:
        folder = absolute(path) / FOLDER / str(step)
        if folder.exists():
            return os.fspath(folder)
    return os.fspath(path)


@contextlib.contextmanager
def find(path: str | os.PathLike) -> Iterator[tuple[managers.CheckpointManager, int]]:
    """Opens the manager of `path` (a workdir, or one step's folder), with the step to read.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`; the message lists what is there.
    """
    path = absolute(path)
    if _is_step(path):
        folder, step = path.parent, int(path.name)
    else:
        folder, step = path if path.name == FOLDER else path / FOLDER, None
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} contains no checkpoint: {_contents(path)}.")
    with reader(folder) as manager:
        if step is None and (latest := manager.latest_step()) is not None:
            best = best_step(manager, _select(manager))
            step = best[0] if best else latest
        if step is None:
            raise FileNotFoundError(
                f"{folder} contains no complete checkpoint: the run has not saved one yet "
                f"({_contents(folder)})."
            )
        yield manager, step


def _is_step(path: epath.Path) -> bool:
    return path.name.isdigit() and (path / "model").exists()


def reader(folder: epath.Path) -> managers.CheckpointManager:
    """A read-only manager: it creates and deletes nothing."""
    options = managers.CheckpointManagerOptions(
        create=False,
        best_fn=lambda metrics: 0.0,  # without it, Orbax does not read metrics
        preservation_policy=managers.preservation_policy.PreserveAll(),
    )
    return managers.CheckpointManager(folder, options=options)


def best_step(manager: managers.CheckpointManager, select: str) -> tuple[int, float] | None:
    """The step with the largest metric `select`, and its value; None if none was evaluated."""
    metrics = {step: metrics_of(manager, step) for step in manager.all_steps()}
    found = [(values[select], step) for step, values in metrics.items() if select in values]
    return max(found)[::-1] if found else None


def metrics_of(manager: managers.CheckpointManager, step: int) -> dict[str, float]:
    """The evaluation saved with `step`; empty if there was none, or it is damaged."""
    try:
        return manager.metrics(step) or {}
    except Exception:  # Orbax raises various errors for a truncated file
        return {}


def read_step_config(manager: managers.CheckpointManager, step: int) -> ConfigDict:
    """The config saved with `step`; raises DamagedError."""
    with reading(manager.directory / str(step)):
        about = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        return config_io.from_plain(about.config["config"])


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
    except MismatchError:
        raise
    except Exception as error:
        raise DamagedError(
            f"The checkpoint {folder} cannot be read; it is damaged, or was written by another "
            f"version ({first_line(error)}). To use an earlier step of the run, delete this folder."
        ) from error


def absolute(path: str | os.PathLike) -> epath.Path:
    """A local path as an absolute one (Orbax requires it); a cloud path unchanged."""
    path = os.fspath(path)
    return epath.Path(path if "://" in path else Path(path).expanduser().resolve())


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
