"""Models as they are shared: one folder, one file of weights, no run around them.

    FOLDER/model.safetensors   the parameters, under the path of their module
           config.json         version, step, the whole config, metrics, and digests of the weights
           README.md           the model card

`zse_jax.checkpoints.publishing` writes such a folder, this file reads it: from a disk, a bucket, or
the Hugging Face Hub ("hf://owner/name", "hf://owner/name@revision"), whose client is imported when
it is asked for and not needed otherwise. Nothing in a folder is executed.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from zse_jax import retrievers
from zse_jax.checkpoints.arrays import checksums
from zse_jax.retrievers.base import Retriever
from zse_jax.runtime import config_io

HUB = "hf://"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
LIBRARY = "zse_jax"

_ADDRESS = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


class Address(NamedTuple):
    """A place on the hub: "owner/name", and a branch, tag or commit, or None."""

    name: str
    revision: str | None


def address(path: str | os.PathLike) -> Address | None:
    """What "hf://owner/name@revision" stands for; None for other paths.

    Raises:
      ValueError: it begins like one and is none.
    """
    path = os.fspath(path)
    if not path.startswith(HUB):
        return None
    match = _ADDRESS.fullmatch(path.removeprefix(HUB).rstrip("/"))
    if match is None:
        raise ValueError(
            f"{path} is no place on the hub: write hf://owner/name, or hf://owner/name@revision."
        )
    return Address(match["name"], match["revision"])


def hub() -> Any:
    """The module huggingface_hub.

    Raises:
      ValueError: it is not installed; says how to get it.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            f"{HUB} paths need the hub's client: `pip install huggingface_hub`; or download the "
            "model's folder yourself, and give its path."
        ) from error
    return huggingface_hub


def find(path: str | os.PathLike) -> epath.Path | None:
    """The folder of the shared model at `path`, downloaded if it is on the hub.

    Returns:
      None if what is there is no shared model, but perhaps a checkpoint.

    Raises:
      FileNotFoundError: the hub has no such model, or cannot be reached.
      ValueError: it is no model of this library; or the hub's client is not installed.
    """
    if place := address(path):
        folder = _downloaded(place)
        if not (folder / WEIGHTS).exists():
            raise ValueError(
                f"{HUB}{place.name} is no model of {LIBRARY}: it holds no {WEIGHTS}. "
                "`zse_jax.save_pretrained` makes one."
            )
    else:
        path = os.fspath(path)
        folder = epath.Path(path if "://" in path else Path(path).expanduser())
    return folder if (folder / WEIGHTS).exists() and (folder / CONFIG).exists() else None


def _downloaded(place: Address) -> epath.Path:
    client = hub()
    try:
        return epath.Path(
            client.snapshot_download(
                repo_id=place.name, revision=place.revision, allow_patterns=[*FILES]
            )
        )
    except Exception as error:  # the client's own have no common class
        at = f" at {place.revision}" if place.revision else ""
        raise FileNotFoundError(
            f"The model {HUB}{place.name}{at} could not be downloaded ({first_line(error)}). Check "
            "the name and the connection; a private model needs `hf auth login`."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says first, after its type."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"


def read_about(folder: epath.Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
      ValueError: it cannot be read, or is of another library.
    """
    file = folder / CONFIG
    try:
        about = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Download it again.") from error
    if not isinstance(about, dict) or about.get("library") != LIBRARY:
        found = about.get("architectures") if isinstance(about, dict) else None
        raise ValueError(
            f"{folder} is a model of another library{f' ({found[0]})' if found else ''}: turn its "
            f"weights into a checkpoint first, with python -m zse_jax.convert {folder / WEIGHTS} "
            "OUTPUT."
        )
    return about


def read_config(folder: epath.Path) -> ConfigDict:
    """The config of a shared model; raises ValueError."""
    return config_io.from_plain(read_about(folder)["config"])


def load(folder: epath.Path) -> Retriever:
    """The system in a folder, ready to encode and score (dropout off).

    Raises:
      ValueError: its weights are damaged, or do not fit its config; names the arrays.
    """
    from zse_jax.checkpoints import arrays as checkpoint_arrays

    about = read_about(folder)
    config = config_io.from_plain(about["config"])
    model = nnx.eval_shape(
        lambda: retrievers.create(
            config.model.to_dict(), rngs=nnx.Rngs(0), dtype=config.compute_dtype
        )
    )
    definition, *parts = nnx.split(model, nnx.RngState, ...)
    random, parameters = parts
    arrays = _arrays(folder / WEIGHTS)
    checkpoint_arrays.compare(arrays, checkpoint_arrays.flat_arrays(parameters), os.fspath(folder))
    filled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(arrays[checkpoint_arrays.array_name(path)], leaf.dtype),
        parameters,
    )
    _check(folder, about, checkpoint_arrays.flat_arrays(filled))
    model = nnx.merge(definition, jax.tree.map(_beginning, random), filled)
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


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
            f"{folder / WEIGHTS} is damaged: {', '.join(differ[:3])} ({len(differ)} in all) are "
            "not what was saved. Download it again."
        )


def _beginning(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The state of random numbers before the first: a shared model does not go on training."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)
