"""The train state before the first step, for a run that does not resume from its own checkpoint.

`config.init_from` names the initial weights, or "random". Then a system can set initial
values from the training images, and those that the registry initialises with a distillation get the
knowledge of their teacher.
"""

import os

from jax.sharding import Mesh
from ml_collections import ConfigDict

from zse_jax.checkpoints import initial_weights
from zse_jax.evaluation import domain_means
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Retriever, evaluation_view
from zse_jax.training import distillation
from zse_jax.training.step import Setup, State, merge_model, placed


def check(config: ConfigDict) -> None:
    """Checks that the initial weights of a run are available, before the data are prepared.

    Raises:
      ValueError: `config.init_from` has no value, or is no teacher where one is needed.
      FileNotFoundError: the weights are not on this machine.
    """
    initial_weights.check(config.get("init_from"))
    if distils(config):
        distillation.check(config)


def first_state(config: ConfigDict, mesh: Mesh, setup: Setup, workdir: str | os.PathLike) -> State:
    """The initial train state, each array placed on the mesh.

    Raises:
      FileNotFoundError: `config.init_from` is neither a file nor a checkpoint.
      ValueError: it has no value, is of another system or size, or cannot be read; errors of
        `distillation`.
    """
    check(config)
    state = setup.init()
    if config.init_from == initial_weights.RANDOM and not distils(config):
        return state
    model = merge_model(setup.definition, state)
    fill(model, config)
    encoder = evaluation_view(model)
    model.start_from_training(
        lambda function: domain_means.mean_of(function, encoder, config, mesh)
    )
    if distils(config):
        distillation.teach(model, config, mesh, setup, workdir)
    return placed(state, model, setup)


def fill(model: Retriever, config: ConfigDict) -> None:
    """Fills `model` in place from `config.init_from`; errors as for `first_state`."""
    path = config.init_from
    initial_weights.check(path)
    try:
        initial_weights.fill_from(model, path, config.model.system)
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"config.init_from={path}: {error}") from error


def distils(config: ConfigDict) -> bool:
    """Whether the registry initialises the system of this config with a distillation."""
    return registry.system(config.model.system).initialization == "distillation"
