"""A retriever small enough to check by hand, and its batches."""

import itertools
from collections import Counter
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from zse_jax.retrievers.base import Encoder

SIZE, WIDTH, TOKENS = 4, 16, 3
_serial = itertools.count()


class Fake(Encoder):
    """Features: a float32 vector of each image, and bfloat16 tokens made of it.

    `score` is minus the L1 distance of the vectors, which no embedding reproduces. Instances differ
    by `serial`, so jit compiles for each, and `traces` counts the compilations of one test.
    """

    rankings: ClassVar[dict] = {"distance": "score", "cosine": "embedding"}
    traces: ClassVar[Counter] = Counter()
    tiles: ClassVar[list] = []
    pairs: ClassVar[list] = []

    def __init__(self, *, rngs):
        self.image_size = SIZE
        self.projection = nnx.Linear(SIZE * SIZE * 3, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.serial = next(_serial)

    def encode(self, images, modality):
        self.traces["encode", self.serial] += 1
        pixels = images.reshape(len(images), -1).astype(jnp.float32) / 255
        vector = self.dropout(self.projection(pixels)) * (2.0 if modality == "sketch" else 1.0)
        tokens = jnp.repeat(vector[:, None].astype(jnp.bfloat16), TOKENS, axis=1)
        return {"vector": vector, "tokens": tokens}

    def embedding(self, features):
        vector = features["vector"]
        return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)

    def score(self, sketches, photos):
        self.traces["score", self.serial] += 1
        self.tiles.append((len(sketches["vector"]), len(photos["vector"])))
        return -jnp.abs(sketches["vector"][:, None] - photos["vector"]).sum(-1)

    def score_pairs(self, sketches, photos):
        self.traces["score_pairs", self.serial] += 1
        self.pairs.append(len(photos["vector"]))
        return -jnp.abs(sketches["vector"] - photos["vector"]).sum(-1)

    def compilations(self, method):
        return self.traces[method, self.serial]


def fake(seed=0):
    return Fake(rngs=nnx.Rngs(params=seed, dropout=seed + 1))


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def features(count, seed=0):
    vector = np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)
    return {"vector": vector, "tokens": np.zeros((count, TOKENS, WIDTH), jnp.bfloat16)}


def batches(images, labels, size=8):
    """Evaluation batches: the last one padded with zeros that the mask excludes."""
    result = []
    for start in range(0, len(images), size):
        image, label = images[start : start + size], labels[start : start + size]
        missing = size - len(image)
        result.append(
            {
                "image": np.concatenate([image, np.zeros((missing, *image.shape[1:]), np.uint8)]),
                "label": np.concatenate([label, np.zeros(missing, label.dtype)]).astype(np.int32),
                "mask": np.arange(size) < len(image),
            }
        )
    return result


def distances(sketches, photos):
    """The expected `Fake.score`, by numpy."""
    return -np.abs(sketches["vector"][:, None] - photos["vector"]).sum(-1)


def cosines(sketches, photos):
    """The expected embedding ranking of `Fake`, by numpy."""
    sketch, photo = (
        x["vector"] / np.linalg.norm(x["vector"], axis=-1, keepdims=True)
        for x in (sketches, photos)
    )
    return sketch @ photo.T
