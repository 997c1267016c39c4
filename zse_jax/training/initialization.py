"""Where training starts, if not at random values: `config.init_from`.

A publisher's file of weights (see `zse_jax.convert` for whose are known), or a checkpoint: of an
earlier training, or converted. Only a run that starts is concerned; one that is resumed goes on
from its own checkpoint.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from zse_jax.checkpoints import reading
from zse_jax.pretrained import files, publishers
from zse_jax.retrievers.base import Retriever
from zse_jax.training.step import Setup, State, merge_model, placed


def initialised(config: ConfigDict, setup: Setup, state: State) -> State:
    """`state` with the weights that `config.init_from` names, each where it belongs on the mesh.

    Raises:
      FileNotFoundError: there is neither a file nor a checkpoint.
      ValueError: it is of another system or size, or cannot be read.
    """
    if not config.get("init_from"):
        return state
    model = merge_model(setup.definition, state)
    fill(model, config)
    return placed(state, model, setup)


def fill(model: Retriever, config: ConfigDict) -> None:
    """Fills `model` in place from `config.init_from`; errors as `initialised`."""
    path = os.fspath(config.init_from)
    where = reading.absolute(path)
    if where.suffix in files.SUFFIXES:
        if model.starter is not None:
            raise ValueError(
                f"config.init_from={path} is a file of weights, and the system "
                f"{config.model.system!r} is also taught by those that it starts from: give it as "
                "config.teacher.weights."
            )
        publishers.start(model, where, config.model.system)
        return
    try:
        source = _movable(reading.load(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"config.init_from={path}: {error}") from error
    try:
        model.start_from(source)
    except ValueError as error:
        raise ValueError(f"config.init_from={path}: {error}") from error


def _movable(source: Retriever) -> Retriever:
    """`source` with arrays that go to any devices, and are not bound to the one they lie on."""
    definition, *parts = nnx.split(source, nnx.RngState, ...)
    values = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), parts[1])
    return nnx.merge(definition, parts[0], values)
