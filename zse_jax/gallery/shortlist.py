"""Finds the photos whose embeddings are nearest to a sketch's.

Up to `tables.EXACT_UP_TO` photos, all embeddings are in memory and compared (a matrix-vector
product). Above, Lance's approximate index is used, which needs little memory: it compares codes
of all embeddings, then the embeddings with the nearest codes. A search with a filter is Lance's in
both cases, which ranks only the photos that pass it.
"""

import numpy as np
from jaxtyping import Float, Int

from zse_jax.gallery.tables import Tables
from zse_jax.retrieval import expansion

EXPANDED_AMONG = 2048
"""Number of photos nearest to a sketch among which an expanded query searches, at most.

Comparing all of 100,000 photos again in each round would take three times as long as a search."""

Found = tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]
"""Row numbers of photos and their similarities, nearest first."""


class Shortlister:
    """Finds the nearest photos in one index, at its current commit."""

    def __init__(self, tables: Tables):
        """Reads the embeddings if the search is exact."""
        self._tables = tables
        self._vectors: tuple[np.ndarray, np.ndarray] | None = None
        if not tables.is_approximate:
            vectors, rows = tables.embeddings()
            order = np.argsort(rows)
            self._vectors = vectors, rows
            self._order, self._sorted = order, rows[order]

    def __call__(self, embedding: Float[np.ndarray, " d"], count: int, where: str = "") -> Found:
        """The `count` nearest photos; with a condition `where` in SQL, of those that pass it."""
        if self._vectors is None or where:
            return self._tables.nearest(embedding, count, where)
        vectors, rows = self._vectors
        similarity = vectors @ embedding
        top = _largest(similarity, count)
        return rows[top], similarity[top]

    def expanded(self, embedding: Float[np.ndarray, " d"], found: Found, k: int) -> Found:
        """The photos in a new order: by the query that is expanded by the first `k` of them.

        It is the query of `zse_jax.retrieval.expansion`, whose gallery are the photos `found`.

        Args:
          embedding: of the sketch.
          found: photos nearest to it; `EXPANDED_AMONG` of them, or all.
          k: at least 1.
        """
        rows, similarity = found
        if not len(rows):
            return found
        vectors = self.embeddings_of(rows)
        for _ in range(expansion.ROUNDS):
            top = _largest(similarity, k)
            query = expansion.blended(embedding[None], vectors[top][None], similarity[top][None])
            # Not a product by BLAS, whose threads wait for each other on a busy machine.
            similarity = np.einsum("nd,d->n", vectors, np.asarray(query[0]))
        order = _largest(similarity, len(rows))
        return rows[order], similarity[order]

    def embeddings_of(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        """The embeddings of photos by their row numbers."""
        if self._vectors is None:
            return self._tables.embeddings_of(rows)
        return self._vectors[0][self._order[np.searchsorted(self._sorted, rows)]]


def _largest(similarity: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """The places of the `count` largest values, or of all, largest first."""
    top = np.arange(len(similarity))
    if count < len(similarity):
        top = np.argpartition(-similarity, count)[:count]
    return top[np.argsort(-similarity[top], kind="stable")]
