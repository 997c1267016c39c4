"""Systems from a publisher's weights alone: their config, at the size of the arrays, and network.

The config of a system is the one in `configs/` that the registry names.
"""

import logging
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from zse_jax.checkpoints.arrays import merge_for_inference, split_model
from zse_jax.pretrained import files, publishers, sources
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Retriever
from zse_jax.retrievers.rngs import rngs

logger = logging.getLogger(__name__)


def default_config(system: str) -> ConfigDict:
    """The config of a system, at its published size."""
    return import_module(f"configs.{registry.system(system).config}").get_config()


def read(source: str | os.PathLike) -> files.Weights:
    """The contents of a publisher's weights, as in `zse_jax.pretrained.sources`.

    Raises:
      FileNotFoundError, ValueError: they are not available, or cannot be read.
    """
    return files.read_noted(sources.local_file(source))


def config_of(
    publisher: str,
    arrays: Mapping[str, np.ndarray],
    system: str | None = None,
    file: Path | None = None,
) -> ConfigDict:
    """The config of a system, at the size of a publisher's arrays.

    Inferred settings that the system does not have are left out.

    Args:
      publisher: a key of `publishers.PUBLISHERS`.
      arrays: the publisher's names and arrays.
      system: one that accepts them; None: the first in the registry.
      file: of the arrays; what it, or a config beside it, says is used too.

    Raises:
      ValueError: a system that does not accept them, or sizes that cannot be inferred.
    """
    accepting = publishers.systems_of(publisher)
    if system is not None and system not in accepting:
        raise ValueError(
            f"--system={system}: weights of {publisher} are for {' or '.join(accepting)}."
        )
    system = system or accepting[0]
    config = default_config(system)
    fixed = registry.system(system).pretrained[publisher].settings
    beside = publishers.described(publisher, file) if file else {}
    inferred = {**publishers.settings(publisher, arrays), **beside, **fixed}
    with config.unlocked():
        config.model.update({key: x for key, x in inferred.items() if key in config.model})
    return config


def recognised(
    weights: files.Weights, source: str | os.PathLike, system: str | None = None
) -> tuple[str, ConfigDict]:
    """The publisher of the weights that were read from `source`, and the config of `config_of`.

    Raises:
      ValueError: no known publisher, and as `config_of`; names the source.
    """
    try:
        publisher = publishers.publisher_of(weights.arrays)
        return publisher, config_of(publisher, weights.arrays, system, weights.file)
    except ValueError as error:
        raise ValueError(f"{os.fspath(source)}: {error}") from error


def created(config: ConfigDict) -> Retriever:
    """The system of `config` with the random values that `config.seed` determines."""
    settings: dict[str, Any] = config.model.to_dict()
    seed = config.seed

    @nnx.jit
    def create() -> Retriever:  # one compilation instead of hundreds of small ones
        return registry.create(settings, rngs=rngs(params=seed, dropout=seed + 1))

    return create()


def built(weights: files.Weights, config: ConfigDict, source: str | os.PathLike) -> Retriever:
    """The system of `config`, filled with a publisher's weights that were read from `source`.

    Raises:
      ValueError: the system does not accept them, or is of another size.
    """
    retriever = created(config)
    publishers.fill(retriever, weights.arrays, os.fspath(source), config.model.system, weights.file)
    return retriever


def load(source: str | os.PathLike) -> tuple[Retriever, ConfigDict]:
    """The system in a publisher's weights, ready to encode and score, and its config.

    Settings that cannot be inferred are as published; `zse_jax.convert` can set them. Parts of the
    system that are not in the weights have random values, with a warning.

    Args:
      source: as in `zse_jax.pretrained.sources`.

    Raises:
      FileNotFoundError, ValueError: the weights are not available or readable, or of no known
        publisher.
    """
    weights = read(source)
    publisher, config = recognised(weights, source)
    config.init_from = os.fspath(source)
    if random := registry.system(config.model.system).pretrained[publisher].random:
        logger.warning(
            "%s has no values for %s: they are random until trained.", source, ", ".join(random)
        )
    return merge_for_inference(*split_model(built(weights, config, source))), config


def read_config(source: str | os.PathLike) -> ConfigDict:
    """The config that `load` would return; raises the same errors."""
    config = recognised(read(source), source)[1]
    config.init_from = os.fspath(source)
    return config
