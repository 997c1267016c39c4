"""Reads a user's sketch and prepares it for a retrieval system."""

import os

import numpy as np
from jaxtyping import UInt8

from data_pipelines import images, paths
from data_pipelines.images import UnreadableImageError
from zse_jax.explain.correspondence import ink_share
from zse_jax.gallery import photos

Sketch = str | os.PathLike | np.ndarray
"""An image file, or uint8 [H, W, 3]: dark lines on white."""


def name_of(sketch: Sketch) -> str:
    """The name of a sketch in results and errors: its file name as given, or "drawing"."""
    return "drawing" if isinstance(sketch, np.ndarray) else os.fspath(sketch)


def read(sketch: Sketch, size: int, name: str = "") -> UInt8[np.ndarray, "s s 3"]:
    """A sketch, prepared for a system that takes images of `size` pixels.

    Args:
      sketch: a file or an array.
      size: side of the prepared image in pixels.
      name: the name of the sketch in errors; "": `name_of(sketch)`.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not an image, has another shape or type, or contains no strokes.
    """
    name = name or name_of(sketch)
    if not isinstance(sketch, np.ndarray):
        file = paths.local(sketch, "--sketch")
        if not file.is_file():
            raise FileNotFoundError(f"The sketch {file} does not exist: give an image file.")
        try:
            sketch = photos.decoded(file)
        except UnreadableImageError as error:
            raise ValueError(
                f"The sketch {file} cannot be used: {error}. Save it again as PNG or JPEG."
            ) from error
    if sketch.dtype != np.uint8 or sketch.ndim != 3 or sketch.shape[2] != 3 or not sketch.size:
        raise ValueError(
            f"A sketch must be uint8 [height, width, 3], but this one is {sketch.dtype} "
            f"{list(sketch.shape)}."
        )
    if not ink_share(sketch[None], 1).any():
        raise ValueError(
            f"The sketch {name} contains no strokes, so there is nothing to search for. Draw dark "
            "lines on white; lines that differ from the paper by less than a quarter of the grey "
            "range do not count."
        )
    return images.prepare_sketch(sketch, size)
