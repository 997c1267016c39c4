"""The train state before the first step, for a run that does not resume from its own checkpoint.

The registry specifies how a system is initialised; `config.init_from` then replaces its weights.
"""

import os

from jax.sharding import Mesh
from ml_collections import ConfigDict

from zse_jax.checkpoints import initial_weights
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Retriever
from zse_jax.training import distillation
from zse_jax.training.step import Setup, State, merge_model, placed


def first_state(config: ConfigDict, mesh: Mesh, setup: Setup, workdir: str | os.PathLike) -> State:
    """The initial train state, each array placed on the mesh.

    Raises:
      FileNotFoundError: `config.init_from` is neither a file nor a checkpoint.
      ValueError: it is of another system or size, or cannot be read; errors of `distillation`.
    """
    if registry.system(config.model.system).initialization == "distillation":
        state = distillation.start(config, mesh, setup, workdir)
    else:
        state = setup.init()
    if not config.get("init_from"):
        return state
    model = merge_model(setup.definition, state)
    fill(model, config)
    return placed(state, model, setup)


def fill(model: Retriever, config: ConfigDict) -> None:
    """Fills `model` in place from `config.init_from`; errors as for `first_state`."""
    path, system = config.init_from, config.model.system
    distilled = registry.system(system).initialization == "distillation"
    if distilled and initial_weights.is_weight_file(path):
        raise ValueError(
            f"config.init_from={path} is a file of weights, but the system {system!r} also needs "
            "them as its teacher: set config.teacher.weights instead."
        )
    try:
        initial_weights.fill_from(model, path, system)
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"config.init_from={path}: {error}") from error
