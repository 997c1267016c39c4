"""Initial weights of a retriever: from a publisher's file, or from a checkpoint."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zse_jax.checkpoints import reading
from zse_jax.pretrained import files, publishers
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Encoder


def is_weight_file(path: str | os.PathLike) -> bool:
    """Whether `path` is named like a publisher's file of weights, not like a checkpoint."""
    return Path(path).suffix in files.SUFFIXES


def fill_from_file(model: Encoder, path: str | os.PathLike, system: str) -> None:
    """Fills `model` in place from a publisher's file; arguments and errors as for `fill_from`."""
    publishers.start(model, path, system)


def fill_from(model: Encoder, path: str | os.PathLike, system: str) -> None:
    """Fills `model` in place.

    Args:
      model: a retriever.
      path: a publisher's file (see `zse_jax.convert`), or anything that `zse_jax.load` reads.
      system: the `config.model.system` of `model`.

    Raises:
      FileNotFoundError: there is neither a file nor a checkpoint.
      ValueError: it is of another system or size, or cannot be read.
    """
    if is_weight_file(path):
        fill_from_file(model, path, system)
        return
    definition, *parts = nnx.split(reading.load(path), nnx.RngState, ...)
    # Through the host, so that the arrays are not bound to the device on which they were loaded.
    values = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), parts[1])
    registry.copy_parameters(system, model, nnx.merge(definition, parts[0], values))
