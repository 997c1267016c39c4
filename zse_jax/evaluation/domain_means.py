"""The mean embedding of sketches and of photos over the training images.

An encoder with `means` (`config.model.centred`) subtracts them, so that sketches and photos of a
class meet although the modalities lie apart. They come from training images alone; those that are
evaluated do not change them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from data_pipelines import loading
from zse_jax.evaluation import data_selection
from zse_jax.retrieval.encoding import encode
from zse_jax.retrievers.base import Encoder, Features, Modality
from zse_jax.runtime import sharding

IMAGES = 1000
"""Most training images of each modality over which the means are taken, spread evenly."""


def measure(encoder: Encoder, config: ConfigDict, mesh: Mesh) -> None:
    """Sets the means of an encoder that has them, in place; each is the mean of unit vectors.

    Args:
      encoder: in evaluation mode.
      config: of its training.
      mesh: encodes the images.
    """
    if encoder.means is None:
        return
    encoder.means[...] = jnp.stack(mean_of(encoder.embedding, encoder, config, mesh))


def mean_of(
    function: Callable[[Features], Any], encoder: Encoder, config: ConfigDict, mesh: Mesh
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    """The means of `function` of the features over training sketches, and over photos."""
    both = training_embeddings(
        encoder, lambda features, _: function(features), config, mesh, IMAGES
    )
    sketches, photos = (jnp.asarray(x.mean(axis=0, dtype=np.float64), jnp.float32) for x in both)
    return sketches, photos


def training_embeddings(
    encoder: Encoder,
    embedding: Callable[[Features, Modality], Any],
    config: ConfigDict,
    mesh: Mesh,
    most: int,
    progress: bool = False,
) -> list[Float[np.ndarray, "_ d"]]:
    """Embeddings of training sketches, and of photos: at most `most` of each, spread evenly.

    Args:
      encoder: encodes the images.
      embedding: a function of features and modality, such as `encoder.embed`.
      config: names the training images.
      mesh: encodes them.
      most: images of each modality.
      progress: show progress bars.
    """
    return [
        embeddings(encoder, embedding, items.every(-(-len(items) // most)), config, mesh, progress)
        for items in data_selection.training_items(config)
    ]


def embeddings(
    encoder: Encoder,
    embedding: Callable[[Features, Modality], Any],
    items: loading.Items,
    config: ConfigDict,
    mesh: Mesh,
    progress: bool = False,
) -> Float[np.ndarray, "_ d"]:
    """Embeddings of all `items`; the other arguments are as above."""
    batches = loading.evaluation_batches(
        items,
        image_size=encoder.image_size,
        batch_size=config.evaluation.batch_size // jax.process_count(),
        workers=config.data.workers if progress else 0,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    where = sharding.batch_sharding(mesh)
    bar = f"{len(items):,} {items.modality}s" if progress else None
    features, _ = encode(encoder, batches, items.modality, sharding=where, progress=bar)
    embed = jax.jit(lambda features: embedding(features, items.modality))
    parts = [
        np.asarray(embed(jax.tree.map(lambda leaf, i=i: leaf[i : i + 4096], features)))
        for i in range(0, len(items), 4096)
    ]
    return np.concatenate(parts).astype(np.float32)
