"""Initial weights of a retriever: from a publisher's file, from a checkpoint, or random values.

`config.init_from` names them. Configs of benchmarks name the weights that the system was published
with; random values must be asked for by name, and every result then says so.
"""

import os
from pathlib import Path, PurePosixPath

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from zse_jax.checkpoints import hub, reading
from zse_jax.pretrained import files, publishers
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Encoder

RANDOM = "random"
"""The value of `config.init_from` with which a network starts from random values."""


RANDOM_VALUES = "random values"
"""What `started_from` calls them."""


def is_weight_file(path: str | os.PathLike) -> bool:
    """Whether `path` is named like a publisher's file of weights, not like a checkpoint."""
    path = os.fspath(path)
    return not path.startswith(hub.HUB) and Path(path).suffix in files.SUFFIXES


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether `path` can only be a checkpoint or a model of this library."""
    path = os.fspath(path)
    return path != RANDOM and not is_weight_file(path) and _published(path) is None


def check(path: str | os.PathLike | None, key: str = "init_from") -> None:
    """Checks that initial weights are named and, without reading them, that they can be had.

    Args:
      path: the value of the config's key: "random", a file, a checkpoint, or hf://owner/name.
      key: the name of the key in the config, for messages.

    Raises:
      ValueError: the key has no value.
      FileNotFoundError: they are not on this machine; names the file to download, and the command.
    """
    advice = (
        f"--config.{key}={RANDOM} starts from random values instead, which every result then shows."
    )
    if path is None:
        raise ValueError(
            f"config.{key} is not set, so that it is not known which weights to start from: name a "
            f"publisher's file or a checkpoint, --config.{key}=FILE. {advice}"
        )
    path = os.fspath(path)
    if path == RANDOM:
        return
    if is_weight_file(path):
        if not reading.absolute(path).is_file():
            raise FileNotFoundError(
                f"config.{key}={path}: there is no file of weights {path}. {advice}"
            )
    elif (url := _published(path)) is not None:
        raise FileNotFoundError(
            f"config.{key}={path}: these pretrained weights are not on this machine, and this "
            f"version does not download them. Download {url} and add "
            f"--config.{key}={PurePosixPath(url).name} to the command. {advice}"
        )
    elif not path.startswith(hub.HUB) and hub.find(path) is None:
        try:
            with reading.find(path):
                pass
        except FileNotFoundError as error:
            raise FileNotFoundError(f"config.{key}={path}: {error} {advice}") from error


def _published(path: str) -> str | None:
    """The address of the publisher's weights that a hub path names; None for other paths."""
    repository = hub.parse_hub_uri(path)
    return publishers.HUB.get(repository.name) if repository else None


def fill_from(model: Encoder, path: str | os.PathLike, system: str) -> None:
    """Fills `model` in place.

    Args:
      model: a retriever.
      path: "random", which changes nothing; a publisher's file (see `zse_jax.convert`); or anything
        that `zse_jax.load` reads.
      system: the `config.model.system` of `model`.

    Raises:
      FileNotFoundError: there is neither a file nor a checkpoint.
      ValueError: it is of another system or size, or cannot be read.
    """
    if os.fspath(path) == RANDOM:
        return
    if is_weight_file(path):
        publishers.start(model, path, system)
        return
    definition, *parts = nnx.split(reading.load(path), nnx.RngState, ...)
    # Through the host, so that the arrays are not bound to the device on which they were loaded.
    values = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), parts[1])
    registry.copy_parameters(system, model, nnx.merge(definition, parts[0], values))


def started_from(config: ConfigDict) -> str:
    """What the weights of this config were before the first step, for tables and cards.

    Returns:
      "random values", the name of a file or a folder, or hf://owner/name; "" if it is not known,
      as in checkpoints of earlier versions.
    """
    path = config.get("init_from")
    if path is None or path == RANDOM:
        return RANDOM_VALUES if path else ""
    return path if path.startswith(hub.HUB) else PurePosixPath(path).name


def notes(config: ConfigDict) -> dict[str, str]:
    """`started_from` as a note of an evaluation; empty if it is not known."""
    return {"started_from": start} if (start := started_from(config)) else {}
