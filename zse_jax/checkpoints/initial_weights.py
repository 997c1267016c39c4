"""Initial weights of a retriever: from a publisher's file, from a checkpoint, or random values.

`config.init_from` names them. Configs of benchmarks name the weights that the system was published
with; random values must be asked for by name, and every result then says so.
"""

import os
from pathlib import PurePosixPath

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from zse_jax.checkpoints import hub, reading
from zse_jax.pretrained import publishers, sources
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Encoder

RANDOM = "random"
"""The value of `config.init_from` with which a network starts from random values."""


RANDOM_VALUES = "random values"
"""What `started_from` calls them."""


def alternatives(path: str | os.PathLike | None) -> list[str]:
    """The initial weights that `path` names: several if they are separated by " or "."""
    return [] if path is None else [name.strip() for name in os.fspath(path).split(" or ")]


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether `path` can only be a checkpoint or a model of this library.

    Raises:
      FileNotFoundError, ValueError: as `hub.is_weights`.
    """
    return os.fspath(path) != RANDOM and not hub.is_weights(path)


def check(path: str | os.PathLike | None, key: str = "init_from") -> None:
    """Checks that initial weights are named and, without reading them, available.

    The hub is asked for their names and whether they may be read; they are not downloaded.

    Args:
      path: the value of the config's key: "random", a checkpoint, or as in
        `zse_jax.pretrained.sources`.
      key: the name of the key in the config, for messages.

    Raises:
      ValueError: the key has no value, or one that is no name of weights.
      FileNotFoundError: they are not available; says which file to put where.
    """
    advice = (
        f"--config.{key}=FILE starts from a file, and --config.{key}={RANDOM} from random values, "
        "which every result then shows."
    )
    if path is None:
        raise ValueError(
            f"config.{key} is not set, so that it is not known which weights to start from: name a "
            f"publisher's file or a checkpoint. {advice}"
        )
    path = os.fspath(path)
    if path == RANDOM:
        return
    try:
        if hub.is_weights(path):
            sources.check(path)
        elif sources.parse_hub_uri(path) is None and hub.find(path) is None:
            with reading.find(path):
                pass
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"config.{key}={path}: {error} {advice}") from error


def fill_from(model: Encoder, path: str | os.PathLike, system: str) -> None:
    """Fills `model` in place.

    Args:
      model: a retriever.
      path: "random", which changes nothing; a publisher's weights, as in
        `zse_jax.pretrained.sources`; or anything that `zse_jax.load` reads.
      system: the `config.model.system` of `model`.

    Raises:
      FileNotFoundError: there is neither a file nor a checkpoint, or it cannot be downloaded.
      ValueError: it is of another system or size, or cannot be read.
    """
    if os.fspath(path) == RANDOM:
        return
    if hub.is_weights(path):
        publishers.start(model, path, system)
        return
    definition, *parts = nnx.split(reading.load(path), nnx.RngState, ...)
    # Through the host, so that the arrays are not bound to the device on which they were loaded.
    values = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)), parts[1])
    registry.copy_parameters(system, model, nnx.merge(definition, parts[0], values))


def started_from(config: ConfigDict) -> str:
    """What the weights of this config were before the first step, for tables and cards.

    Returns:
      "random values", the name of a file or a folder, hf://owner/name, or package:NAME; "" if it
      is not known, as in checkpoints of earlier versions.
    """
    path = config.get("init_from")
    if path is None or path == RANDOM:
        return RANDOM_VALUES if path else ""
    return str(sources.parse_hub_uri(path) or PurePosixPath(path).name)


def notes(config: ConfigDict) -> dict[str, str]:
    """`started_from` as a note of an evaluation; empty if it is not known."""
    return {"started_from": start} if (start := started_from(config)) else {}
