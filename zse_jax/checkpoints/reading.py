"""Checkpoints as they are read: whole, onto any mesh, or only the model of one.

Only this file and `zse_jax.checkpoints.writing`, which describes the layout, use Orbax.
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

from zse_jax import retrievers
from zse_jax.checkpoints import hub
from zse_jax.checkpoints.arrays import (
    Arrays,
    MismatchError,
    abstract_state,
    array_name,
    checksums,
    compare,
    flat_arrays,
)
from zse_jax.retrievers.base import Retriever
from zse_jax.runtime import config_io

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"

_CONFIGS: MutableMapping[Retriever, ConfigDict] = weakref.WeakKeyDictionary()
"""Of the systems that were loaded, while they live."""


class DamagedError(ValueError):
    """A checkpoint whose files are not all there, or not what they were."""


def load(path: str | os.PathLike) -> Retriever:
    """The trained system in a checkpoint, ready to encode and score (dropout off).

    Nothing else is needed: the config travels with the checkpoint. Never imports TensorFlow.

    Args:
      path: a workdir (its best checkpoint, or the last if none was evaluated; where that is
        damaged, the next best, which is warned of), the folder of one step, or one made by
        `zse_jax.save_pretrained`; local, a cloud path such as gs://bucket/run, or, of the last
        kind, hf://owner/name on the Hugging Face Hub.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      DamagedError: it cannot be read, and neither can another one in the workdir.
      ValueError: it is of another version of its model.
    """
    return load_step(path)[1]


def load_step(path: str | os.PathLike) -> tuple[int, Retriever]:
    """The step that `load(path)` reads, and what it returns."""
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
    raise AssertionError("There is always a first step.")


def _load(manager: managers.CheckpointManager, step: int) -> Retriever:
    config = read_step_config(manager, step)
    model = nnx.eval_shape(
        lambda: retrievers.create(
            config.model.to_dict(), rngs=nnx.Rngs(0), dtype=config.compute_dtype
        )
    )
    definition, *parts = nnx.split(model, nnx.RngState, ...)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = dict(zip(("random", "model"), parts, strict=True))
    abstract = abstract_state(shapes, jax.tree.map(lambda _: device, shapes))
    state = restore(manager, step, abstract)
    model = nnx.merge(definition, state["random"], state["model"])
    model = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    _CONFIGS[model] = config
    return model


def config_of(retriever: Retriever) -> ConfigDict | None:
    """The config of a system that was loaded here; None for others."""
    return _CONFIGS.get(retriever)


def _by_quality(manager: managers.CheckpointManager, first: int) -> list[int]:
    """All steps: `first`, then those that are evaluated, the best ahead, then the latest ahead."""
    steps = manager.all_steps()
    select = _select(manager)

    def quality(step: int) -> tuple[bool, float, int]:
        return step == first, (metrics_of(manager, step).get(select, float("-inf"))), step

    return sorted(steps, key=quality, reverse=True)


def _select(manager: managers.CheckpointManager) -> str:
    """The metric that says which step is best, from the last config that can be read."""
    for step in sorted(manager.all_steps(), reverse=True):
        with contextlib.suppress(DamagedError):
            return read_step_config(manager, step).evaluation.select
    return ""


def read_config(path: str | os.PathLike) -> ConfigDict:
    """The config inside the checkpoint that `load(path)` would read."""
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
    """The folder of `step`, if it still lies in the workdir `path`; else `path` itself."""
    if hub.address(path) is None:
        folder = absolute(path) / FOLDER / str(step)
        if folder.exists():
            return os.fspath(folder)
    return os.fspath(path)


@contextlib.contextmanager
def find(path: str | os.PathLike) -> Iterator[tuple[managers.CheckpointManager, int]]:
    """The manager and the step that `path` (a workdir, or one step's folder) stands for.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`; says what is there.
    """
    path = absolute(path)
    if _is_step(path):
        folder, step = path.parent, int(path.name)
    else:
        folder, step = path if path.name == FOLDER else path / FOLDER, None
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} holds no checkpoint: {_contents(path)}.")
    with reader(folder) as manager:
        if step is None and (latest := manager.latest_step()) is not None:
            best = best_step(manager, _select(manager))
            step = best[0] if best else latest
        if step is None:
            raise FileNotFoundError(
                f"{folder} holds no complete checkpoint: the run has not saved one yet "
                f"({_contents(folder)})."
            )
        yield manager, step


def _is_step(path: epath.Path) -> bool:
    return path.name.isdigit() and (path / "model").exists()


def reader(folder: epath.Path) -> managers.CheckpointManager:
    """A manager that only reads: it creates nothing, and deletes nothing."""
    options = managers.CheckpointManagerOptions(
        create=False,
        best_fn=lambda metrics: 0.0,  # without it, metrics are not read
        preservation_policy=managers.preservation_policy.PreserveAll(),
    )
    return managers.CheckpointManager(folder, options=options)


def best_step(manager: managers.CheckpointManager, select: str) -> tuple[int, float] | None:
    """The step whose metric `select` is largest, and its value; None where none was evaluated."""
    metrics = {step: metrics_of(manager, step) for step in manager.all_steps()}
    found = [(values[select], step) for step, values in metrics.items() if select in values]
    return max(found)[::-1] if found else None


def metrics_of(manager: managers.CheckpointManager, step: int) -> dict[str, float]:
    """The evaluation saved with `step`; empty if there was none, or it is damaged."""
    try:
        return manager.metrics(step) or {}
    except Exception:  # whatever Orbax makes of a file that is cut off
        return {}


def read_step_config(manager: managers.CheckpointManager, step: int) -> ConfigDict:
    """The config saved with `step`; raises DamagedError."""
    with reading(manager.directory / str(step)):
        about = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        return config_io.from_plain(about.config["config"])


def read_position(folder: epath.Path) -> dict[str, int]:
    """The position in the training data saved with the step in `folder`; raises DamagedError.

    Each process wrote its own file, and all of them say the same: how many global batches were
    handed out. So it holds for any number of processes, and one file that can be read is enough.
    """
    files = sorted((folder / "data").glob("process_*.json"))
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            if isinstance(position := json.loads(file.read_text()), dict):
                return position
    with reading(folder):
        raise ValueError(f"none of {len(files)} files in data/ says where the data stood")


def restore(
    manager: managers.CheckpointManager, step: int, abstract: Mapping[str, nnx.State]
) -> dict[str, nnx.State]:
    """The parts of a train state that `abstract` names, placed as its leaves say.

    Raises:
      DamagedError: they cannot be read.
      ValueError: they are of another model.
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
    """Raises ValueError, naming them, where arrays are not those that were saved.

    Most of a checkpoint's bytes carry no checksum of their own.
    """
    about = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    saved = about.config.get("digests", {})  # without them: written by an earlier version
    differ = [
        f"{item}/{name}"
        for item, arrays in restored.items()
        for name, found in checksums(arrays).items()
        if saved.get(item, {}).get(name, found) != found
    ]
    if differ:
        raise ValueError(f"not what was saved: {', '.join(differ[:3])}, {len(differ)} in all")


@contextlib.contextmanager
def reading(folder: epath.Path) -> Iterator[None]:
    """Turns whatever goes wrong while reading into one DamagedError that names the folder."""
    try:
        yield
    except MismatchError:
        raise
    except Exception as error:
        raise DamagedError(
            f"The checkpoint {folder} cannot be read; it is damaged, or was written by another "
            f"version ({first_line(error)}). If there is an earlier step beside it, delete this "
            "folder to go on from that one."
        ) from error


def absolute(path: str | os.PathLike) -> epath.Path:
    """A local path made absolute (Orbax asks for that), a cloud path as it is."""
    path = os.fspath(path)
    return epath.Path(path if "://" in path else Path(path).expanduser().resolve())


def new_folder(path: str | os.PathLike) -> epath.Path:
    """`absolute` of a folder that is new or empty.

    Raises:
      FileExistsError: it is not.
    """
    folder = absolute(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "holds something already" if folder.is_dir() else "is a file"
        raise FileExistsError(
            f"{folder} {kind}, which is not overwritten: name a new or an empty folder."
        )
    return folder


def _contents(path: epath.Path) -> str:
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file; give the workdir of a training run, or one step's folder in it"
    names = sorted(child.name for child in path.iterdir())
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"expected {FOLDER}/<step>/, found " + (listed or "an empty folder")


def first_line(error: BaseException) -> str:
    """What an error says first, after its type."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"
