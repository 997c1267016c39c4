"""Query expansion: a sketch's embedding moves towards the photos that it finds.

Photos of one class are closer to each other than to sketches of the class, so that the mean of the
first photos is often a better query than the sketch. Each round replaces the query by a blend of
the sketch and the weighted mean of the k photos nearest to the current query. The weight of a photo
is its cosine similarity, to a power (Chum et al., "Total Recall: Automatic Query Expansion with a
Generative Feature Model for Object Retrieval", ICCV 2007, average query expansion; Radenović et
al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, the weights).

The result uses the gallery: it is not comparable with rankings that see one photo at a time.
Another method that does is ICFRR (Hudson and Smith, arXiv 2303.17703): it repeatedly adds to a
photo's score its ranks among the neighbours of the query's first photos. It needs the ranks of all
photos for each other (G x G), this only the embeddings. `tests/benchmarks/expansion.py` compares
both.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EXPANDED = "+expansion"
"""End of the names of rankings by expanded queries, which use the gallery."""

ALPHA = 3.0
"""Power of the similarity in the weight of a photo, as in Radenović et al."""

BLEND = 0.3
"""Share of the sketch's own embedding in the expanded query; our choice."""

ROUNDS = 2
"""How often the query moves; our choice."""


@functools.partial(jax.jit, static_argnames=("k", "rounds", "blend"))
def expand(
    sketches: Float[Array, "q d"],
    photos: Float[Array, "g d"],
    k: int,
    rounds: int = ROUNDS,
    blend: float = BLEND,
) -> Float[Array, "q d"]:
    """The expanded queries, L2-normalised, float32.

    With s a sketch and q_0 = s, round r has q_r = unit(blend * s + (1 - blend) * unit(m_r)), where
    m_r is the mean of the k photos nearest to q_{r-1}, each weighted by max(0, cosine)^`ALPHA`. A
    query without a photo of positive similarity stays as it is.

    Args:
      sketches: L2-normalised embeddings of the queries.
      photos: L2-normalised embeddings of the gallery.
      k: number of photos; at most all are used.
      rounds: repetitions.
      blend: from 0 (the mean of the photos alone) to 1 (the sketch alone, unchanged).

    Raises:
      ValueError: k or rounds is less than 1.
    """
    if k < 1 or rounds < 1:
        raise ValueError(f"k={k} and rounds={rounds} must be at least 1.")
    original = sketches.astype(jnp.float32)
    queries = original
    for _ in range(rounds):
        similarity = jnp.matmul(queries, photos.T, precision="float32")
        nearest, index = jax.lax.top_k(similarity, min(k, len(photos)))
        queries = blended(original, photos[index], nearest, blend)
    return queries


@functools.partial(jax.jit, static_argnames=("blend",))
def blended(
    sketches: Float[Array, "q d"],
    nearest: Float[Array, "q k d"],
    similarity: Float[Array, "q k"],
    blend: float = BLEND,
) -> Float[Array, "q d"]:
    """One round of `expand`, for photos that are already found.

    Args:
      sketches: L2-normalised embeddings of the queries.
      nearest: L2-normalised embeddings of the photos that each query has found.
      similarity: their cosine similarity with the query.
      blend: as in `expand`.
    """
    weights = jnp.maximum(similarity, 0) ** ALPHA
    mean = jnp.einsum("qk,qkd->qd", weights, nearest.astype(jnp.float32), precision="float32")
    moved = _unit(blend * sketches + (1 - blend) * _unit(mean))
    return jnp.where((weights > 0).any(axis=1, keepdims=True), moved, sketches)


def _unit(vectors: Float[Array, "q d"]) -> Float[Array, "q d"]:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
