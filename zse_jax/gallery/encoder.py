"""A retriever on prepared images: features and embedding in one compiled call, and pair scores.

Features can be converted to bytes, so that an index can store those of its photos.
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

PAIRS = 50
"""Pairs that are scored at once."""


def batch_size(photos: int) -> int:
    """Images to encode at once: fewer than `BATCH` for a few photos, as batches are padded."""
    return min(BATCH, 1 << max(0, photos - 1).bit_length())


class Encoded(NamedTuple):
    """Encoded images.

    Attributes:
      features: a pytree whose leaves have the image as leading axis.
      embedding: [b, d], L2-normalised.
    """

    features: Features
    embedding: Float[np.ndarray, "b d"]


class _Graph:
    """The graph definition of a retriever, hashed once: `jax.jit` hashes it at every call."""

    def __init__(self, graphdef: nnx.GraphDef[base.Encoder]):
        self.graphdef, self._hash = graphdef, hash(graphdef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Graph) and self.graphdef == other.graphdef)


class CompiledEncoder:
    """Encodes and scores with one retriever, in evaluation mode.

    Attributes:
      retriever: the system.
      width: the size of its embeddings.
      item_bytes: the size of one image's features in bytes.
    """

    def __init__(self, retriever: base.Encoder):
        """Compiles nothing yet."""
        self.retriever = retriever
        graphdef, self._state = evaluation_state(retriever, None)
        self._graph = _Graph(graphdef)
        side = retriever.image_size
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        # As a search encodes a sketch, so that it need not trace the network again.
        features, embedding, _ = _encode.eval_shape(
            self._graph, self._state, image, modality="sketch"
        )
        leaves, self._structure = jax.tree.flatten(features)
        fields = [(str(i), leaf.dtype, leaf.shape[1:]) for i, leaf in enumerate(leaves)]
        self._dtype = np.dtype(fields)
        self.width, self.item_bytes = embedding.shape[1], self._dtype.itemsize

    def __call__(
        self, images: UInt8[np.ndarray, "b h w 3"], modality: Modality, batch: int = BATCH
    ) -> Encoded:
        """Encodes images in batches of one padded shape, so that one compilation is enough.

        Raises:
          FloatingPointError: the embedding of an image is not finite.
        """
        parts = []
        for start in range(0, len(images), batch):
            some = images[start : start + batch]
            padded = np.pad(some, [(0, batch - len(some))] + [(0, 0)] * 3, mode="edge")
            found = jax.device_get(_encode(self._graph, self._state, padded, modality=modality))
            parts.append(jax.tree.map(operator.itemgetter(slice(len(some))), found))
        features, embedding, finite = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        if not finite.all():
            raise FloatingPointError(
                f"The features of a {modality} contain NaN or infinity. The checkpoint is probably "
                "damaged, or its training diverged: use another one."
            )
        return Encoded(features, embedding)

    def score(self, sketch: Features, photos: Features) -> Float[np.ndarray, " n"]:
        """The score of one sketch with each photo, larger is better.

        Scores `PAIRS` pairs at once; the last ones are padded, so that one compilation is enough.

        Raises:
          FloatingPointError: a score is NaN.
        """
        count = len(jax.tree.leaves(photos)[0])
        scores = []
        for start in range(0, count, PAIRS):
            index = np.minimum(np.arange(start, start + PAIRS), count - 1)
            part = jax.tree.map(lambda leaf, index=index: leaf[index], photos)
            scores.append(_score(self._graph, self._state, sketch, part))
        found = np.concatenate(scores)[:count]
        if np.isnan(found).any():
            raise FloatingPointError(
                "The score of a pair is NaN: the checkpoint is damaged, or its training diverged."
            )
        return found

    def packed(self, features: Features) -> list[bytes]:
        """The features of each image as bytes."""
        leaves = jax.tree.leaves(features)
        rows = np.empty(len(leaves[0]), self._dtype)
        for name, leaf in zip(self._dtype.names or (), leaves, strict=True):
            rows[name] = leaf
        return [row.tobytes() for row in rows]

    def unpacked(self, packed: list[bytes]) -> Features:
        """The inverse of `packed`.

        Raises:
          ValueError: the bytes are those of another system or image size.
        """
        if any(len(item) != self.item_bytes for item in packed):
            raise ValueError(
                f"The features in the index do not have the {self.item_bytes} bytes of this "
                "system's features, so the index is damaged: build it again."
            )
        rows = np.frombuffer(b"".join(packed), self._dtype)
        return jax.tree.unflatten(self._structure, [rows[name] for name in self._dtype.names or ()])


@functools.partial(jax.jit, static_argnames=("graph", "modality"))
def _encode(
    graph: _Graph,
    state: nnx.State,
    images: UInt8[Array, "b h w 3"],
    *,
    modality: Modality,
) -> tuple[Features, Float[Array, "b d"], Bool[Array, " b"]]:
    retriever = nnx.merge(graph.graphdef, state)
    features = retriever.encode(images, modality)
    embedding = retriever.embed(features, modality).astype(jnp.float32)
    return features, embedding, jnp.isfinite(embedding).all(axis=1)


@functools.partial(jax.jit, static_argnames=("graph",))
def _score(
    graph: _Graph, state: nnx.State, sketch: Features, photos: Features
) -> Float[Array, " n"]:
    return nnx.merge(graph.graphdef, state).score(sketch, photos)[0].astype(jnp.float32)
