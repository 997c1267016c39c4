"""A user's drawing, made ready for a retrieval system."""

import numpy as np
from jaxtyping import UInt8

from data_pipelines import images
from zse_jax.explain.correspondence import ink_share


def prepared(
    drawing: UInt8[np.ndarray, "h w 3"], size: int, name: str = ""
) -> UInt8[np.ndarray, "s s 3"]:
    """A drawing, prepared for a system that takes images of `size` pixels.

    Args:
      drawing: dark lines on white.
      size: pixels.
      name: what the drawing is called in an error.

    Raises:
      ValueError: it holds no strokes.
    """
    if not ink_share(drawing[None], 1).any():
        raise ValueError(
            f"The sketch {name} holds no strokes: there is nothing to look for. Draw dark lines on "
            "white; lines fainter than a quarter of the way from paper to black do not count."
        )
    return images.prepare_sketch(drawing, size)
