"""Published models: a folder with the weights in one file, without the state of a training run.

    FOLDER/model.safetensors   the parameters, named by the path of their module
           config.json         version, step, config, metrics, and checksums of the weights; and,
                               if only trained parameters are saved, name and checksums of the base
           trained.json        the classes and images that trained, if recorded
           README.md           the model card

`zse_jax.checkpoints.publishing` writes such a folder, this module reads it: from a disk, a bucket,
or the Hugging Face Hub ("hf://owner/name", "hf://owner/name@revision";
`zse_jax.pretrained.sources`). The model "default" is part of this package. Nothing in a folder is
executed.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import paths
from zse_jax.checkpoints.arrays import (
    Arrays,
    abstract_model,
    array_name,
    checksums,
    compare,
    flat_arrays,
    merge_for_inference,
    split_model,
)
from zse_jax.pretrained import publishers, sources
from zse_jax.pretrained.sources import Repository
from zse_jax.retrievers.base import Retriever
from zse_jax.runtime import config_io

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TRAINED = "trained.json"
FILES = (WEIGHTS, CONFIG, CARD, TRAINED)
LIBRARY = "zse_jax"

DEFAULT_FOLDER = epath.Path(__file__).parent.parent / "default_model"

_CONVERT = "convert a publisher's weights first, with python -m zse_jax.convert {} OUTPUT."


def repository(path: str | os.PathLike) -> Repository | None:
    """The repository of "hf://owner/name[@revision]"; None for other paths.

    Raises:
      ValueError: it is malformed, or names one file.
    """
    found = sources.parse_hub_uri(path)
    if found is not None and found.file is not None:
        raise ValueError(
            f"{found} names one file. A model of {LIBRARY} is a whole repository, hf://owner/name; "
            f"{_CONVERT.format(found)}"
        )
    return found


def find(path: str | os.PathLike) -> epath.Path | None:
    """The folder of the published model at `path`, downloaded if it is on the hub.

    Returns:
      None if `path` is not a published model; it may be a checkpoint.

    Raises:
      FileNotFoundError: the hub has no such model, or cannot be reached.
      ValueError: it is not a model of this library; or the hub's client is not installed.
    """
    if os.fspath(path) == sources.DEFAULT:
        return DEFAULT_FOLDER
    if os.fspath(path).startswith(sources.PACKAGE):
        raise ValueError(f"{path} is not a model of {LIBRARY}: {_CONVERT.format(path)}")
    if found := repository(path):
        listed, online = _listed(found)
        if not listed:
            raise ValueError(
                f"{found} is not a model of {LIBRARY}, which `zse_jax.save_pretrained` creates: "
                f"{_CONVERT.format(found)}"
            )
        return epath.Path(sources.download(found, listed, online=online)[0].parent)
    folder = paths.located(path)
    return folder if (folder / WEIGHTS).exists() and (folder / CONFIG).exists() else None


def is_model(path: str | os.PathLike) -> bool:
    """Whether `path` is a published model of this library; downloads at most its config.

    Raises:
      FileNotFoundError, ValueError: as `find`.
    """
    if found := repository(path):
        return bool(_listed(found)[0])
    folder = find(path)
    return folder is not None and _library(folder / CONFIG) == LIBRARY


def is_weights(path: str | os.PathLike) -> bool:
    """Whether `path` names a publisher's weights, not a checkpoint or model of this library.

    Raises:
      FileNotFoundError, ValueError: the hub has to be asked, and it cannot be; see `find`.
    """
    if os.fspath(path) == sources.DEFAULT:
        return False
    if sources.is_weight_file(path):
        return True
    on_hub = sources.parse_hub_uri(path) is not None
    return (on_hub or sources.is_weight_folder(path)) and not is_model(path)


def _listed(found: Repository) -> tuple[list[str], bool]:
    """The files of a model of this library on the hub, and whether the hub answers.

    No files if the repository is not one.
    """
    names, online = sources.listing(found)
    listed = [name for name in FILES if name in names]
    if not {WEIGHTS, CONFIG} <= {*listed}:
        return [], online
    [config] = sources.download(found, [CONFIG], online=online)
    return (listed if _library(epath.Path(config)) == LIBRARY else []), online


def _library(file: epath.Path) -> str | None:
    about = _parsed(file)
    return about.get("library") if isinstance(about, dict) else None


def _parsed(file: epath.Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Download it again.") from error


def read_about(folder: epath.Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: it cannot be read, or is of another library.
    """
    about = _parsed(folder / CONFIG)
    if not isinstance(about, dict) or about.get("library") != LIBRARY:
        found = about.get("architectures") if isinstance(about, dict) else None
        raise ValueError(
            f"{folder} is a model of another library{f' ({found[0]})' if found else ''}: convert "
            f"its weights first, with python -m zse_jax.convert {folder / WEIGHTS} OUTPUT."
        )
    return about


def read_config(folder: epath.Path) -> ConfigDict:
    """The config of a published model; raises ValueError."""
    return config_io.from_plain(read_about(folder)["config"])


def read_record(folder: epath.Path) -> dict[str, Any] | None:
    """What a published model was trained on; None if that is not recorded.

    Raises:
      ValueError: the file cannot be read.
    """
    file = folder / TRAINED
    return _parsed(file) if file.exists() else None  # a model of an earlier version has none


def load(folder: epath.Path, base: str | os.PathLike | None = None) -> Retriever:
    """The retriever in a folder, ready to encode and score (dropout off).

    Args:
      folder: as `find` returns it.
      base: where the base weights of a model are that was saved without them, as in
        `zse_jax.pretrained.sources`; None: as the folder names them.

    Raises:
      FileNotFoundError: the base weights are not available.
      ValueError: the weights are damaged, do not fit the config, or need another base; lists the
        arrays.
    """
    about = read_about(folder)
    definition, state = abstract_model(config_io.from_plain(about["config"]))
    arrays = _arrays(folder / WEIGHTS)
    if "base" in about:
        arrays |= _base(folder, about, nnx.merge(definition, *_zeros(state)), base)
    elif base is not None:
        raise ValueError(
            f"base={base} is for a model that was saved with adapters_only, and {folder} contains "
            "all weights of its model: leave it out."
        )
    compare(arrays, flat_arrays(state["model"]), os.fspath(folder))
    parameters = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(arrays[array_name(path)].astype(leaf.dtype)),
        state["model"],
    )
    _check(folder, about, flat_arrays(parameters))
    random = _zeros(state)[0]
    return merge_for_inference(definition, {"model": parameters, "random": random})


def _zeros(state: Mapping[str, nnx.State]) -> tuple[nnx.State, nnx.State]:
    """Values in place of the shapes of `abstract_model`."""
    return jax.tree.map(_initial, state["random"]), jax.tree.map(_initial, state["model"])


def _base(
    folder: epath.Path, about: Mapping[str, Any], model: Retriever, path: str | os.PathLike | None
) -> Arrays:
    """The arrays of the base weights that the model in `folder` was trained on; fills `model`."""
    name, saved = about["base"]["name"], about["base"]["digests"]
    path = os.fspath(path or name)
    try:
        publishers.start(model, path, about["config"]["model"]["system"])
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"{folder} contains only the parameters that were trained on top of {name}. Reading "
            f"these base weights from {path} failed: {error} The argument base=FILE reads them "
            "from another place."
        ) from error
    flat = flat_arrays(split_model(model)[1]["model"])
    arrays = {name: np.asarray(flat[name]) for name in saved}
    differ = [key for key, found in checksums(arrays).items() if found != saved[key]]
    if differ:
        raise ValueError(
            f"{folder} was trained on top of {name}, but {path} has other values in "
            f"{len(differ)} of {len(saved)} arrays, such as {', '.join(differ[:3])}: use the base "
            "weights that it was trained on."
        )
    return arrays


def _arrays(file: epath.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse

    try:
        return parse(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Download it again.") from error


def _check(folder: epath.Path, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    saved = about.get("digests", {})
    differ = [name for name, found in checksums(arrays).items() if saved.get(name, found) != found]
    if differ:
        raise ValueError(
            f"{folder / WEIGHTS} is damaged: the checksums of {len(differ)} arrays differ, such as "
            f"{', '.join(differ[:3])}. Download it again."
        )


def _initial(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An initial random state: a published model does not resume its training."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype))  # jnp.zeros compiles each shape
