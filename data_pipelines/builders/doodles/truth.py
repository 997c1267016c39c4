"""Ground-truth correspondence between the sketch and the photo of a doodle.

Both images are drawn from the same parts, so the true correspondence is known: one affine map (the
rotation, stretch and shift of the whole drawing), followed by the crop and scaling of
`prepare_sketch`. Further displacements of about a pixel are ignored.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines import images
from data_pipelines.builders.doodles import generation, sketch

INKED = 0.02
"""Fraction of a cell's pixels that must be ink for the cell to count as inked."""


def true_places(
    class_name: str, index: int, grid: int, *, size: int = generation.SIZE, seed: int = 0
) -> tuple[Float[np.ndarray, "cells 2"], Bool[np.ndarray, "cells"]]:
    """Positions in the prepared photo of the strokes in each cell of a prepared sketch.

    Args:
      class_name, index, seed: the instance; see `generation.render`.
      grid: number of cells per side.
      size: side of the prepared images, in pixels.

    Returns:
      For each cell of the sketch, row by row: the (row, column) of the mean of its ink in the
      photo's grid, in cells, where cell i spans [i, i + 1] (it may be outside of the photo; NaN
      without ink); and whether the cell is inked.
    """
    canvas = generation.render(class_name, index, "sketch", seed)
    rows, columns = np.nonzero(images.ink(images.prepare_sketch(canvas, size)))
    cells = rows * grid // size * grid + columns * grid // size
    count = np.bincount(cells, minlength=grid * grid)
    inked = count >= max(1, INKED * (size / grid) ** 2)
    points = np.stack([columns + 0.5, rows + 0.5], axis=1)
    middle = (
        np.stack(
            [np.bincount(cells, weights=axis, minlength=grid * grid) for axis in points.T], axis=1
        )
        / np.where(inked, count, np.nan)[:, None]
    )
    on_canvas = from_prepared(canvas, middle, size) / generation.SIZE
    in_photo = np.column_stack([on_canvas, np.ones(len(on_canvas))]) @ to_photo(
        class_name, index, seed
    )
    return in_photo[:, ::-1] * grid, inked


def to_photo(class_name: str, index: int, seed: int = 0) -> Float[np.ndarray, "3 2"]:
    """The affine map from the sketch's canvas to the photo, both in units of the frame.

    Multiply (x, y, 1) of the canvas by it to get (x, y) of the photo.
    """
    parts = generation.posed(class_name, index, seed)
    rng = generation.random(seed, class_name, index, "sketch")
    sketch.Hand.sample(rng)  # Advances the generator, as in `sketch.draw`.
    placed = sketch.placed(parts, generation.SIZE, rng)
    photo, canvas = (
        np.concatenate([loop for part in side for loop in part.loops]) for side in (parts, placed)
    )
    known = np.column_stack([canvas / generation.SIZE, np.ones(len(canvas))])
    return np.linalg.lstsq(known, photo, rcond=None)[0]


def from_prepared(
    canvas: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "n 2"], size: int
) -> Float[np.ndarray, "n 2"]:
    """Maps points (x, y) of the prepared sketch back to its canvas, in pixels."""
    rows, columns = images.ink_box(canvas)
    low, high = np.transpose([columns, rows])
    extent = high - low
    scaled = np.maximum(1, (size * (extent / extent.max())).astype(int))
    return (points - (size - scaled) // 2) * extent / scaled + low
