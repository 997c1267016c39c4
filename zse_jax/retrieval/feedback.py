"""Relevance feedback: a query moves towards photos a user likes, and away from those disliked.

Rocchio's method ("Relevance feedback in information retrieval", in Salton, The SMART Retrieval
System, 1971), as in Manning, Raghavan and Schütze, Introduction to Information Retrieval, 2008,
section 9.1.1, equation 9.3, with the weights that section calls reasonable.
"""

import numpy as np
from jaxtyping import Float

ALPHA, BETA, GAMMA = 1.0, 0.75, 0.15
"""Weights of the query, of the mean of the liked photos, and of that of the disliked ones."""


def rocchio(
    query: Float[np.ndarray, " d"],
    liked: Float[np.ndarray, "n d"],
    disliked: Float[np.ndarray, "m d"],
) -> Float[np.ndarray, " d"]:
    """The moved query, L2-normalised: `ALPHA` query + `BETA` mean(liked) - `GAMMA` mean(disliked).

    A part without photos is left out; without any photo, the query stays as it is.

    Args:
      query: L2-normalised embedding.
      liked: L2-normalised embeddings of photos, or none.
      disliked: the same.
    """
    if not len(liked) + len(disliked):
        return query
    moved = ALPHA * query
    for weight, photos in ((BETA, liked), (-GAMMA, disliked)):
        if len(photos):
            moved = moved + weight * photos.mean(axis=0)
    return (moved / max(float(np.linalg.norm(moved)), 1e-12)).astype(query.dtype)
