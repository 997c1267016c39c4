"""Finds the photos whose embeddings are nearest to a sketch's.

Up to `tables.EXACT_UP_TO` photos, all embeddings are in memory and compared (a matrix-vector
product). Above, LanceDB's partitioned index is used, which needs little memory.
"""

import numpy as np
from jaxtyping import Float, Int

from zse_jax.gallery.tables import Tables
from zse_jax.retrieval import expansion

PROBES = 256
"""Number of partitions of an approximate index that are searched."""


class Shortlister:
    """Finds the nearest photos in one index, at its current commit."""

    def __init__(self, tables: Tables):
        """Reads the embeddings if the search is exact."""
        self._tables = tables
        self._vectors: tuple[np.ndarray, np.ndarray] | None = None
        if not tables.is_approximate:
            self._vectors = tables.embeddings()

    def __call__(
        self, embedding: Float[np.ndarray, " d"], count: int
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Row numbers and similarities of the `count` nearest photos, nearest first."""
        if self._vectors is None:
            return self._tables.nearest(embedding, count, PROBES)
        vectors, rows = self._vectors
        similarity = vectors @ embedding
        top = np.arange(len(rows))
        if count < len(rows):
            top = np.argpartition(-similarity, count)[:count]
        top = top[np.argsort(-similarity[top], kind="stable")]
        return rows[top], similarity[top]

    def expanded(self, embedding: Float[np.ndarray, " d"], k: int) -> Float[np.ndarray, " d"]:
        """The query moved towards its `k` nearest photos, see `zse_jax.retrieval.expansion`."""
        query = embedding
        for _ in range(expansion.ROUNDS):
            rows, similarity = self(query, k)
            if not len(rows):
                break
            found = self._embeddings(rows)
            moved = expansion.blended(embedding[None], found[None], similarity[None])
            query = np.asarray(moved[0])
        return query

    def _embeddings(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        """The embeddings of photos by their row numbers."""
        if self._vectors is None:
            found = self._tables.rows(rows.tolist(), ["embedding"])
            return np.array([row["embedding"] for row in found], np.float32)
        vectors, numbers = self._vectors
        order = np.argsort(numbers)
        return vectors[order[np.searchsorted(numbers, rows, sorter=order)]]
