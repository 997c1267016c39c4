"""Reads a user's sketch and prepares it for a retrieval system."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines import images, paths
from data_pipelines.images import Preprocessing, UnreadableImageError
from data_pipelines.terminal import printable
from zse_jax.explain.correspondence import ink_share
from zse_jax.gallery import photos
from zse_jax.gallery.sketch_cleaning import clean

logger = logging.getLogger(__name__)

Sketch = str | os.PathLike | np.ndarray | Image.Image
"""An image file, an image of Pillow, or uint8 [H, W, 3]: dark lines on white."""


DOT, STRAIGHT = 0.025, 0.06
"""A dot's extent as a share of the picture's longer side, and how far a line bends, beyond its
width, as a share of its length, at most: all as standard deviations."""


TOO_LITTLE = "A dot or a single line can be part of anything: draw more of the object."


class SketchError(ValueError):
    """A sketch cannot be used. The message names no file but the sketch."""


def name_of(sketch: Sketch) -> str:
    """The name of a sketch in results and errors: its file name as given, or "drawing"."""
    return printable(sketch) if isinstance(sketch, str | os.PathLike) else "drawing"


def existing(sketch: str | os.PathLike) -> Path:
    """The file of a sketch; raises FileNotFoundError if there is none."""
    file = paths.local(sketch, "--sketch")
    if file.is_dir():
        raise FileNotFoundError(f"The sketch {file} is a folder: give an image file.")
    if not file.is_file():
        raise FileNotFoundError(f"The sketch {file} does not exist: give an image file.")
    return file


class Prepared(NamedTuple):
    """A sketch as a system gets it.

    Attributes:
      pixels: uint8 [s, s, 3].
      changes: what cleaning did, one short phrase each; empty if nothing.
      doubt: a sentence, if it is probably not a line drawing, and was left as it is; else "".
    """

    pixels: UInt8[np.ndarray, "s s 3"]
    changes: tuple[str, ...] = ()
    doubt: str = ""


def read(
    sketch: Sketch, size: int, preprocessing: Preprocessing = "crop", name: str = ""
) -> UInt8[np.ndarray, "s s 3"]:
    """The pixels of `prepare`."""
    return prepare(sketch, size, preprocessing, name).pixels


def prepare(
    sketch: Sketch, size: int, preprocessing: Preprocessing = "crop", name: str = ""
) -> Prepared:
    """A sketch, cleaned (`sketch_cleaning`) and prepared for a system.

    Logs a warning about what cleaning changed in a file.

    Args:
      sketch: a file or an array.
      size: side of the prepared image in pixels.
      preprocessing: that of the system.
      name: the name of the sketch in errors; "": `name_of(sketch)`.

    Raises:
      FileNotFoundError: the file does not exist.
      SketchError: it is not an image, has another shape or type, or contains no strokes.
    """
    name = name or name_of(sketch)
    pixels, changes, doubt = clean(_pixels(sketch))
    if not doubt and says_too_little(pixels):
        doubt = TOO_LITTLE
    if (changes or doubt) and isinstance(sketch, str | os.PathLike):
        logger.warning("The sketch %s: %s", name, doubt or f"{', '.join(changes)}.")
    if not ink_share(pixels[None], 1).any():
        raise SketchError(
            f"The sketch {name} contains no strokes, so there is nothing to search for. Draw lines "
            "that stand out from plain paper."
        )
    return Prepared(images.prepare_sketch(pixels, size, preprocessing), changes, doubt)


def says_too_little(pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether a drawing with strokes is only a dot or one straight line.

    Ink is measured by its principal axes, as standard deviations: that of a dot is short in both
    directions, that of a line in one. Our reading of what is too little.

    Args:
      pixels: dark lines on white.
    """
    points = np.argwhere(pixels @ np.ones(3, np.float32) < 3 * 128).astype(np.float64)
    if len(points) < 2:
        return True
    across, along = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(points.T)), 0))
    if along < DOT * max(pixels.shape):
        return True
    # A line of length l and width w has l = sqrt(12) along, w = ink / l, and w / sqrt(12) across.
    width = len(points) / (12 * along)
    return bool(max(0, across**2 - width**2) < (STRAIGHT * along) ** 2)


def _pixels(sketch: Sketch) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(sketch, Image.Image):
        try:
            return images.as_rgb(sketch, sketch=True)
        except UnreadableImageError as error:
            raise SketchError(
                f"The image of Pillow cannot be used as a sketch: {error}."
            ) from error
    if isinstance(sketch, str | os.PathLike):
        file = existing(sketch)
        try:
            return photos.decoded(file, sketch=True)
        except UnreadableImageError as error:
            raise SketchError(
                f"The sketch {file} cannot be used: {error}. Save it again as PNG or JPEG."
            ) from error
    kind = getattr(sketch, "dtype", type(sketch).__name__)
    shape = [*getattr(sketch, "shape", ())]
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise SketchError(
            "A sketch must be an image file, an image of Pillow, or uint8 [height, width, 3], but "
            f"this one is {kind} {shape}."
        )
    return np.asarray(sketch)
