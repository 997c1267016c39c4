"""The output of frozen layers, computed once for every training image.

With `config.train.cache_frozen`, each variant of a training image (`config.train.variants`) and its
mirror image pass the frozen first layers (`Retriever.frozen_layers`) once, before the first step.
Training then reads their output instead of images, and computes only the layers that train. The
results are those of training without it, up to rounding. `config.train.frozen_dir` keeps the output
for other runs with the same frozen layers and images.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import loading, paths
from data_pipelines.loading import ComputedItems, Items
from zse_jax.evaluation.data_selection import content_digest
from zse_jax.retrieval.encoding import encode, fingerprint
from zse_jax.retrieval.storage import Storage, free_host_memory
from zse_jax.retrievers.base import Retriever
from zse_jax.retrievers.frozen_layers import FrozenLayers
from zse_jax.runtime import sharding

FOLDER = "config.train.frozen_dir"


class Later(NamedTuple):
    """Training sketches and photos, whose arrays `fill` computes.

    `size` is that of all arrays in bytes, `output` the shape of one.
    """

    items: tuple[ComputedItems, ...]
    size: int
    output: jax.ShapeDtypeStruct


def later(
    items: Sequence[Items], model: Retriever, *, mirror: bool = False, variants: int = 1
) -> Later:
    """The items for the input pipeline, which can be built before the model has parameters.

    Args:
      items: training sketches and photos.
      model: of the run; shapes in place of arrays are enough.
      mirror: whether mirror images are used.
      variants: number of variants of each image.

    Raises:
      ValueError: the model has no frozen layers.
    """
    side = model.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    if model.frozen_layers is None:
        raise ValueError(
            "config.train.cache_frozen=true, but no first layers are frozen: set "
            "config.model.frozen_blocks, for a system and a backbone that have it, or "
            "config.train.cache_frozen=false."
        )
    layers = nnx.eval_shape(lambda it: _layers(it, mirror), model)
    output = nnx.eval_shape(lambda it, images: it.encode(images, "photo"), layers, image)
    count = sum(map(len, items)) * variants
    made = tuple(map(ComputedItems.of, items))
    return Later(made, count * output.size * output.dtype.itemsize, output)


def fill(given: Later, model: Retriever, config: ConfigDict, mesh: Mesh) -> None:
    """Computes the output of the frozen layers for all items, in place; shows progress.

    Args:
      given: more than half of the free memory is kept in a temporary file.
      model: with its parameters.
      config, mesh: of the run. What `config.train.frozen_dir` has is read.

    Raises:
      ValueError: the folder is in a bucket, or what it has is damaged.
    """
    count = config.train.variants
    layers = _layers(model, config.train.mirror)
    storage = Storage("host" if given.size <= free_host_memory() / 2 else "disk")
    folder = config.train.frozen_dir and paths.local(config.train.frozen_dir, FOLDER)
    for some, variant in itertools.product(given.items, range(count)):
        if folder:
            key = f"{content_digest(some)}/{model.image_size}/{variant}"
            name = hashlib.sha256(f"{fingerprint(layers)}/{key}".encode()).hexdigest()[:16]
            storage = Storage("disk", folder=folder / name, key=key)
        batches = loading.evaluation_batches(
            some.images(),
            image_size=model.image_size,
            batch_size=config.evaluation.batch_size // jax.process_count(),
            variant=variant,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        which = f", variant {variant + 1} of {count}" if count > 1 else ""
        values, _ = encode(
            layers,
            batches,
            some.modality,
            sharding=sharding.batch_sharding(mesh),
            progress=f"frozen layers, {len(some):,} {some.modality} images{which}",
            storage=storage,
        )
        some.computed.values.append(values)


def _layers(model: Retriever, mirror: bool) -> FrozenLayers:
    assert model.frozen_layers is not None  # checked in `later`
    return FrozenLayers(*model.frozen_layers, model.image_size, mirror)
