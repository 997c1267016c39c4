"""Binary codes: an embedding as 64 signs, ranked by Hamming distance, a few bytes per image.

Iterative quantisation (ITQ; Gong and Lazebnik, CVPR 2011): embeddings are centred, projected to as
many principal components as there are bits, and rotated by the orthogonal matrix R with the
smallest quantisation error |B - V R|; given R, B = sign(V R), and given B, R solves the orthogonal
Procrustes problem. Centre and projection are learned on embeddings of seen classes only.

Codes are packed into words of 32 bits: a million codes of 64 bits take 8 MB. They are searched on
the host by XOR and popcount.
"""

import io
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt32

from data_pipelines import paths
from zse_jax.retrievers.base import Encoder, Features, Modality

WORD = 32


class Projection(NamedTuple):
    """Maps an embedding to signs: sign((x - mean) @ matrix), with shapes [d] and [d, bits]."""

    mean: Float[np.ndarray, "d"]
    matrix: Float[np.ndarray, "d bits"]

    @property
    def bits(self) -> int:
        """Length of the codes."""
        return self.matrix.shape[1]


def learn(
    embeddings: Float[np.ndarray, "n d"], bits: int = 64, *, iterations: int = 50, seed: int = 0
) -> Projection:
    """The ITQ projection for embeddings, which should be of seen classes and of both modalities.

    Raises:
      ValueError: `bits` is not a multiple of 32 or larger than the embedding's width, or there are
        not more embeddings than bits, or they vary in fewer directions than bits.
    """
    count, width = embeddings.shape
    if bits < WORD or bits % WORD or bits > width or count <= bits:
        raise ValueError(
            f"{bits} bits cannot be learned from {count} embeddings of width {width}: choose a "
            f"multiple of {WORD} of at most {width}, and pass more embeddings than bits."
        )
    x = embeddings.astype(np.float64)
    mean = x.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    if variances[-bits] <= 1e-12 * variances[-1]:
        raise ValueError(
            f"The {count} embeddings vary in {(variances > 1e-12 * variances[-1]).sum()} "
            f"directions only, fewer than {bits} bits: choose fewer bits or a wider embedding."
        )
    components = directions[:, : -bits - 1 : -1]
    projected = (x - mean) @ components
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    for _ in range(iterations):
        signs = np.where(projected @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(projected.T @ signs)
        rotation = left @ right
    return Projection(mean.astype(np.float32), (components @ rotation).astype(np.float32))


def save(projection: Projection, path: str | os.PathLike) -> None:
    """Writes a projection to an .npz file."""
    with io.BytesIO() as stream:
        np.savez(stream, **projection._asdict())
        paths.replace(path, stream.getvalue())


def load(path: str | os.PathLike) -> Projection:
    """Reads what `save` wrote."""
    with paths.located(path).open("rb") as stream, np.load(stream) as arrays:
        return Projection(arrays["mean"], arrays["matrix"])


def quantisation_error(projection: Projection, embeddings: Float[np.ndarray, "n d"]) -> float:
    """Mean squared distance of the projected embeddings from their signs; ITQ minimises it."""
    turned = (embeddings - projection.mean) @ projection.matrix
    return float(np.square(np.where(turned >= 0, 1, -1) - turned).mean())


def pack(
    embeddings: Float[Array, "n d"], mean: Float[Array, "d"], matrix: Float[Array, "d bits"]
) -> UInt32[Array, "n words"]:
    """The codes of embeddings: bit i of word w is 1 if component 32 w + i is not negative."""
    positive = jnp.matmul(embeddings - mean, matrix, precision="float32") >= 0
    groups = positive.reshape(len(positive), -1, WORD).astype(jnp.uint32)
    return (groups << jnp.arange(WORD, dtype=jnp.uint32)).sum(axis=-1, dtype=jnp.uint32)


def hamming(
    queries: UInt32[np.ndarray, "q words"], gallery: UInt32[np.ndarray, "g words"]
) -> Int[np.ndarray, "q g"]:
    """Number of differing bits of each pair, on the host."""
    return np.stack(list(_distances(queries, gallery)))


def search(
    queries: UInt32[np.ndarray, "q _"], gallery: UInt32[np.ndarray, "g _"], k: int
) -> tuple[Int[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The `k` nearest codes of each query: distances, and positions in the gallery.

    Exhaustive and exact: every code is compared; equal distances keep the gallery's order. Queries
    are spread over the cores.

    Raises:
      ValueError: codes of different lengths, or `k` not between 1 and the size of the gallery.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"The queries' codes have {WORD * queries.shape[1]} bits, the gallery's "
            f"{WORD * gallery.shape[1]}: use the same projection for both."
        )
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k={k} must be between 1 and the gallery's {len(gallery)} codes.")
    columns = _columns(gallery)

    def nearest(query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distance = _distance(query, columns)
        # Distances are small integers: counting them gives the radius that contains k codes.
        within = np.cumsum(np.bincount(distance))
        inside = np.flatnonzero(distance <= np.searchsorted(within, k))
        order = inside[np.argsort(distance[inside], kind="stable")[:k]]
        return distance[order].astype(np.int32), order

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(nearest, _columns(queries).T))
    return np.stack([d for d, _ in found]), np.stack([i for _, i in found])


class BinaryCodes(Encoder):
    """Any system's embedding as binary codes, ranked by "hamming".

    Attributes:
      retriever: the system; shared, not copied.
    """

    rankings: ClassVar[Mapping[str, Literal["embedding", "score"]]] = {"hamming": "score"}

    def __init__(self, retriever: Encoder, projection: Projection):
        """Codes of the embeddings of `retriever` by a projection that was learned for it."""
        self.retriever = retriever
        self.image_size = retriever.image_size
        if retriever.preprocessing != self.preprocessing:
            self.preprocessing = retriever.preprocessing
        self.mean = nnx.Variable(jnp.asarray(projection.mean))
        self.matrix = nnx.Variable(jnp.asarray(projection.matrix))

    def encode(
        self, images: UInt8[Array, "b h w 3"], modality: Modality
    ) -> UInt32[Array, "b words"]:
        """The code of each image."""
        embedding = self.retriever.embed(self.retriever.encode(images, modality), modality)
        if embedding.shape[1] != len(self.mean[...]):
            raise ValueError(
                f"The codes were learned for embeddings of width {len(self.mean[...])}, and these "
                f"have width {embedding.shape[1]}: learn the codes for this system."
            )
        return pack(embedding.astype(jnp.float32), self.mean[...], self.matrix[...])

    def embedding(self, features: Features) -> Float[Array, "b d"]:
        """The signs as a unit vector: the cosine of two is 1 - 2 · distance / bits."""
        bits = features[..., None] >> jnp.arange(WORD, dtype=jnp.uint32) & 1
        signs = 2 * bits.reshape(len(features), -1).astype(jnp.float32) - 1
        return signs / jnp.sqrt(float(signs.shape[1]))

    def score(self, sketches: Features, photos: Features) -> Float[Array, "q g"]:
        """Minus the Hamming distance of every pair, by popcount."""
        differing = jax.lax.population_count(sketches[:, None] ^ photos[None])
        return -differing.sum(axis=-1, dtype=jnp.int32).astype(jnp.float32)


def _columns(codes: np.ndarray) -> np.ndarray:
    """The codes as contiguous columns [w, n], of 64-bit words if the number of words is even."""
    wide = codes.shape[1] % 2 == 0
    rows = np.ascontiguousarray(codes)
    return np.ascontiguousarray((rows.view(np.uint64) if wide else rows).T)


def _distance(query: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Distances of a query [w] to codes [w, n]; uint8 for codes of up to 255 bits, else uint16."""
    small = columns.shape[0] * columns.itemsize * 8 < 256
    total = np.bitwise_count(columns[0] ^ query[0])
    total = total if small else total.astype(np.uint16)
    for column, word in zip(columns[1:], query[1:], strict=True):
        total += np.bitwise_count(column ^ word)
    return total


def _distances(queries: np.ndarray, gallery: np.ndarray) -> Iterator[np.ndarray]:
    columns = _columns(gallery)
    return (_distance(query, columns).astype(np.int32) for query in _columns(queries).T)
