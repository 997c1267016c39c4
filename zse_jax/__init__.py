"""Zero-shot sketch-based image retrieval in JAX: train, evaluate, explain and serve it.

retriever = zse_jax.load("WORKDIR")
sketches = retriever.encode(sketch_images, "sketch")
photos = retriever.encode(photo_images, "photo")
ranking = (-retriever.score(sketches, photos)).argsort(axis=1)
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zse_jax.retrievers.base import Retriever

__version__ = "0.1.0"


def load(path: "str | os.PathLike") -> "Retriever":
    """The trained system in a checkpoint (a workdir, or one step's folder), ready to rank.

    See `zse_jax.checkpoint.load`. Nothing heavy is imported before the first call, and never
    TensorFlow.
    """
    from zse_jax import checkpoint

    return checkpoint.load(path)
