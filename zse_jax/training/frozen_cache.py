"""The output of frozen layers, computed once for every training image.

With `config.train.cache_frozen`, each variant of a training image (`config.train.variants`) and its
mirror image pass the frozen first layers (`Retriever.frozen`) once, before the first step. Training
then reads their output instead of images, and computes only the layers that train. The results are
those of training without it, up to rounding.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from data_pipelines import loading
from data_pipelines.loading import ComputedItems, Items
from zse_jax.retrieval.encoding import encode
from zse_jax.retrieval.storage import Storage, free_host_memory
from zse_jax.retrievers.base import Encoder, Modality, Retriever, evaluation_view
from zse_jax.runtime import sharding


class FrozenLayers(Encoder):
    """The frozen layers of a retriever: features are their output for image and mirror image."""

    def __init__(self, retriever: Retriever, mirror: bool):
        """Shares the retriever; without `mirror`, the second output is left out."""
        self.retriever, self.mirror = retriever, mirror
        self.image_size = retriever.image_size

    def encode(
        self, images: UInt8[Array, "b h w 3"], modality: Modality
    ) -> Float[Array, "b n ..."]:
        """The outputs for each image, and for its mirror image."""
        del modality
        both = (images, images[:, :, ::-1]) if self.mirror else (images,)
        outputs = [self.retriever.frozen(some) for some in both]
        return jnp.stack([x for x in outputs if x is not None], axis=1)

    def embedding(self, features: Float[Array, "b n ..."]) -> Float[Array, "b d"]:
        """The mean over images and places, L2-normalised."""
        mean = features.mean(axis=range(1, features.ndim - 1))
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


class Later(NamedTuple):
    """Training sketches and photos, whose arrays `fill` computes; `size` is that of all arrays."""

    items: tuple[ComputedItems, ...]
    size: int


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
    output = nnx.eval_shape(lambda model, images: model.frozen(images), model, image)
    if output is None:
        raise ValueError(
            "config.train.cache_frozen=true, but no first layers are frozen: set "
            "config.model.frozen_blocks, for a system and a backbone that have it, or "
            "config.train.cache_frozen=false."
        )
    count = sum(map(len, items)) * (2 if mirror else 1) * variants
    made = tuple(map(ComputedItems.of, items))
    return Later(made, count * output.size * output.dtype.itemsize)


def fill(given: Later, model: Retriever, config: ConfigDict, mesh: Mesh) -> None:
    """Computes the output of the frozen layers for all items, in place; shows progress.

    Args:
      given: more than half of the free memory is kept in a temporary file.
      model: with its parameters.
      config, mesh: of the run.
    """
    layers = FrozenLayers(evaluation_view(model), config.train.mirror)
    fits = given.size <= free_host_memory() / 2
    count = config.train.variants
    for some, variant in itertools.product(given.items, range(count)):
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
            storage=Storage("host" if fits else "disk"),
        )
        some.computed.values.append(values)
