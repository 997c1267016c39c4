"""Where each place of a doodle's sketch lies in the photo of the same instance.

Both pictures are drawn from the same parts, so the true correspondence is known. The hand puts the
whole drawing on the paper a bit turned, stretched and moved, which is one affine map; beyond it, it
misplaces and trembles by about a pixel, which is not counted. `prepare_sketch` then crops to the
ink and scales.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines import images
from data_pipelines.builders.doodles import generation, sketch

INKED = 0.02
"""Share of a cell's pixels that must be ink for it to count as one with strokes."""


def true_places(
    class_name: str, index: int, grid: int, *, size: int = generation.SIZE, seed: int = 0
) -> tuple[Float[np.ndarray, "cells 2"], Bool[np.ndarray, "cells"]]:
    """Where the strokes in each cell of a prepared sketch lie in the prepared photo.

    Args:
      class_name, index, seed: of the instance; see `generation.render`.
      grid: cells on a side.
      size: of the prepared images, in pixels.

    Returns:
      For each cell of the sketch, row by row: the (row, column) in the photo's grid, in cells, of
      the middle of its ink, where cell i reaches from i to i + 1 (it may fall outside: the object
      does not); and whether it holds strokes. Cells without have NaN.
    """
    canvas = generation.render(class_name, index, "sketch", seed)
    ink = images.prepare_sketch(canvas, size).astype(np.int32).sum(axis=2) <= images.INK_MAX_SUM
    rows, columns = np.nonzero(ink)
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

    (x, y, 1) of the canvas times it is (x, y) of the photo.
    """
    parts = generation.posed(class_name, index, seed)
    rng = generation._random(seed, class_name, index, "sketch")
    sketch.Hand.sample(rng)  # drawn first, as `sketch.draw` does
    placed = sketch._replaced(parts, generation.SIZE, rng)
    photo, canvas = (
        np.concatenate([loop for part in side for loop in part.loops]) for side in (parts, placed)
    )
    known = np.column_stack([canvas / generation.SIZE, np.ones(len(canvas))])
    return np.linalg.lstsq(known, photo, rcond=None)[0]


def from_prepared(
    canvas: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "n 2"], size: int
) -> Float[np.ndarray, "n 2"]:
    """Where (x, y) of the sketch prepared by `prepare_sketch` lie on its canvas, in pixels."""
    ink = canvas.astype(np.int32).sum(axis=2) <= images.INK_MAX_SUM
    bounds = []
    for axis in (0, 1):  # columns, then rows
        found = np.flatnonzero(ink.any(axis=axis))
        low, high = (found[0], found[-1]) if found.size else (0, ink.shape[1 - axis])
        low, high = max(0, low - images.CROP_MARGIN), high + images.CROP_MARGIN
        bounds.append((low, min(high, ink.shape[1 - axis])))
    low = np.array([b[0] for b in bounds])
    extent = np.array([b[1] - b[0] for b in bounds])
    scaled = np.maximum(1, (size * (extent / extent.max())).astype(int))
    return (points - (size - scaled) // 2) * extent / scaled + low
