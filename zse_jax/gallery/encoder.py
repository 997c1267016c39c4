"""A retriever on prepared images: features and embedding in one compiled call.

Features also travel as bytes, so that an index can keep those of its photos.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from zse_jax.retrieval.encoding import evaluation_state
from zse_jax.retrievers import base
from zse_jax.retrievers.base import Features, Modality

BATCH = 32
"""Images that are encoded at once."""


class Encoded(NamedTuple):
    """Images as the system sees them.

    Attributes:
      features: whose leading axis is the image.
      embedding: [b, d], of length 1.
    """

    features: Features
    embedding: Float[np.ndarray, "b d"]


class Encoder:
    """Encodes and scores with one retriever, in evaluation mode.

    Attributes:
      retriever: the system.
      width: of its embedding.
      item_bytes: what the features of an image take.
    """

    def __init__(self, retriever: base.Encoder):
        """Compiles nothing yet."""
        self.retriever = retriever
        self._graphdef, self._state = evaluation_state(retriever, None)
        side = retriever.image_size
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        features, embedding, _ = jax.eval_shape(
            functools.partial(_encode, self._graphdef, modality="photo"), self._state, image
        )
        self._leaves, self._structure = jax.tree.flatten(features)
        self.width = embedding.shape[1]
        self.item_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in self._leaves)

    def __call__(
        self, images: UInt8[np.ndarray, "b h w 3"], modality: Modality, batch: int = BATCH
    ) -> Encoded:
        """Encodes images; photos in calls of `batch`, filled up, so of one compilation.

        Raises:
          FloatingPointError: the features of one are not finite.
        """
        step = batch if modality == "photo" else len(images)
        parts = [
            self._encoded(images[i : i + step], modality, step) for i in range(0, len(images), step)
        ]
        features, embeddings, finite = zip(*parts, strict=True)
        if not np.concatenate(finite).all():
            raise FloatingPointError(
                f"The features of a {modality} hold NaN or infinity. Most likely the parameters "
                "do: the training diverged, or the checkpoint is damaged. Use another one."
            )
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *features)
        return Encoded(joined, np.concatenate(embeddings))

    def _encoded(
        self, images: UInt8[np.ndarray, "b h w 3"], modality: Modality, step: int
    ) -> tuple[Features, np.ndarray, np.ndarray]:
        filled = np.pad(images, [(0, step - len(images))] + [(0, 0)] * 3, mode="edge")
        made = jax.device_get(_encode(self._graphdef, self._state, filled, modality=modality))
        return jax.tree.map(operator.itemgetter(slice(len(images))), made)

    def score(self, sketch: Features, photos: Features) -> Float[np.ndarray, " n"]:
        """The similarity of one sketch with each photo, larger is better.

        Compiled once for every number of photos.
        """
        return np.asarray(_score(self._graphdef, self._state, sketch, photos))

    def packed(self, features: Features) -> list[bytes]:
        """The features of each image as bytes."""
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(features)]
        return [b"".join(leaf[item].tobytes() for leaf in leaves) for item in range(len(leaves[0]))]

    def unpacked(self, packed: list[bytes]) -> Features:
        """The features that `packed` made these bytes of.

        Raises:
          ValueError: they are of another system or size.
        """
        if any(len(item) != self.item_bytes for item in packed):
            raise ValueError(
                f"The features that the index keeps are not the {self.item_bytes} bytes of this "
                "system's: it is damaged. Build it anew."
            )
        rows = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), self.item_bytes)
        leaves, start = [], 0
        for leaf in self._leaves:
            stop = start + leaf.size * leaf.dtype.itemsize
            values = np.ascontiguousarray(rows[:, start:stop]).view(leaf.dtype)
            leaves.append(values.reshape(len(packed), *leaf.shape[1:]))
            start = stop
        return jax.tree.unflatten(self._structure, leaves)


@functools.partial(jax.jit, static_argnames=("graphdef", "modality"))
def _encode(
    graphdef: nnx.GraphDef[base.Encoder],
    state: nnx.State,
    images: UInt8[Array, "b h w 3"],
    *,
    modality: Modality,
) -> tuple[Features, Float[Array, "b d"], Bool[Array, " b"]]:
    retriever = nnx.merge(graphdef, state)
    features = retriever.encode(images, modality)
    embedding = retriever.embedding(features).astype(jnp.float32)
    return features, embedding, jnp.isfinite(embedding).all(axis=1)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _score(
    graphdef: nnx.GraphDef[base.Encoder], state: nnx.State, sketch: Features, photos: Features
) -> Float[Array, " n"]:
    return nnx.merge(graphdef, state).score(sketch, photos)[0].astype(jnp.float32)
