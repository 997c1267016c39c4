"""The text baseline: class names as queries in place of sketches.

For systems with a text encoder: each sketch of the test set is replaced by the name of its class;
gallery, protocol and metrics do not change. Enabled by `config.evaluation.queries="text"`.
"""

import dataclasses
from collections.abc import Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from data_pipelines.loading import Items
from zse_jax.retrievers.base import Encoder, Features, Modality, TextQueries


class ByName(Encoder):
    """A retriever whose "sketches" are pixels that spell the number of a class; see `spelled`."""

    def __init__(self, retriever: Encoder, class_names: Sequence[str]):
        """Encodes the names once.

        Raises:
          ValueError: the retriever cannot encode text.
        """
        if not isinstance(retriever, TextQueries):
            raise ValueError(
                f"{type(retriever).__name__} cannot encode text: it ranks by sketches "
                "(--config.evaluation.queries=sketch)."
            )
        self.image_size = retriever.image_size
        self.retriever = retriever
        self.names = nnx.data(retriever.encode_classes(class_names))

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Features:
        """A photo's features, or those of the class name that the first pixel spells."""
        if modality == "photo":
            return self.retriever.encode(images, modality)
        digits = images[:, 0, 0].astype(jnp.int32)
        number = digits @ jnp.asarray([1, 256, 256**2])
        return jax.tree.map(lambda feature: feature[number], self.names)

    def embedding(self, features: Features) -> Float[Array, "b d"]:
        """The retriever's own."""
        return self.retriever.embedding(features)


@dataclasses.dataclass(frozen=True, eq=False)
class _Spelled(Items):
    def image(self, i: SupportsIndex, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
        label = int(self.labels[i])
        return np.full((size, size, 3), [label >> shift & 255 for shift in (0, 8, 16)], np.uint8)


def spelled(items: Items) -> Items:
    """The items, with images that spell the class number, whatever their size, for `ByName`."""
    return _Spelled(
        **{field.name: getattr(items, field.name) for field in dataclasses.fields(Items)}
    )
