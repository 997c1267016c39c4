"""A photo synthesised from a sketch by universal replacement (ZSE, CVPR 2023, section 4.5).

Each place of the sketch with strokes is replaced by the photo patch that matches it best, from one
photo or from a gallery. Blank places stay paper. The result shows what the system takes the strokes
for, not what the object looks like.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from zse_jax.explain.correspondence import BLANK, grid_side

FEATHER = 0.25
"""How far a blended patch extends into its neighbours, as a share of its side."""


class Synthesis(NamedTuple):
    """A synthesised image and the sources of its patches.

    Attributes:
      image: uint8, of the sketch's size.
      photo: [s], index in the gallery of the photo of each patch; -1 for blank places.
      place: [s], the place of the patch in that photo; -1 for blank places.
      match: [s], similarity of the patch with the sketch place; -inf for blank places.
    """

    image: UInt8[np.ndarray, "h w 3"]
    photo: Int[np.ndarray, "s"]
    place: Int[np.ndarray, "s"]
    match: Float[np.ndarray, "s"]


def synthesise(
    sketch: UInt8[np.ndarray, "h w 3"],
    photo: UInt8[np.ndarray, "v u 3"],
    match: Float[np.ndarray, "q p"],
    ink: Float[np.ndarray, "s"],
    *,
    blend: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
    """The sketch rebuilt from the best-matching patches of one photo.

    Args:
      sketch: prepared.
      photo: prepared, of the same size.
      match: similarity of each sketch place with each photo place (`Explanation.match`).
      ink: share of ink in each sketch place; places below `correspondence.BLANK` stay paper.
      blend: hide the seams: patches overlap and fade into their neighbours.

    Returns:
      The image; only paper if the sketch has no strokes.

    Raises:
      ValueError: images of different sizes, or matches that are not square grids.
    """
    return synthesise_from_gallery(sketch, [(photo, match)], ink, blend=blend).image


def synthesise_from_gallery(
    sketch: UInt8[np.ndarray, "h w 3"],
    gallery: Iterable[tuple[UInt8[np.ndarray, "_ _ 3"], Float[np.ndarray, "_ _"]]],
    ink: Float[np.ndarray, "s"],
    *,
    blend: bool = False,
) -> Synthesis:
    """The sketch rebuilt from the best-matching patches of all photos of a gallery.

    Reads the gallery once, and keeps only the best patches so far.

    Args:
      sketch: prepared.
      gallery: prepared photos, each with its `Explanation.match`; any iterable, such as a
        generator. Of equally good patches, that of the first photo is used.
      ink, blend: as for `synthesise`.

    Raises:
      ValueError: images of different sizes, matches that are not square grids, or no photo.
    """
    side = grid_side(len(ink))
    margin = _reach(sketch.shape[0], side) if blend else 0
    patches: dict[int, np.ndarray] = {}
    best = np.full(len(ink), -np.inf)
    source = np.full((2, len(ink)), -1)
    inked = np.flatnonzero(ink >= BLANK)
    number = -1
    for number, (photo, match) in enumerate(gallery):
        _check(sketch, photo, match, len(ink))
        places = match.argmax(axis=1)
        values = match[np.arange(len(match)), places]
        for cell in inked[values[inked] > best[inked]].tolist():
            best[cell], source[:, cell] = values[cell], (number, places[cell])
            patches[cell] = _cut(photo, int(places[cell]), grid_side(match.shape[1]), margin)
    if number < 0:
        raise ValueError("The gallery contains no photos to take patches from.")
    image = _assembled(sketch, patches, side, margin)
    return Synthesis(image, photo=source[0], place=source[1], match=best)


def _check(sketch: np.ndarray, photo: np.ndarray, match: np.ndarray, places: int) -> None:
    square = sketch.shape[0] == sketch.shape[1]
    if photo.shape != sketch.shape or not square or match.ndim != 2 or len(match) != places:
        raise ValueError(
            f"A photo of shape {photo.shape} with matches of shape {match.shape} cannot replace "
            f"a sketch of shape {sketch.shape} with {places} places: prepare both images to the "
            "same square size, and give the matches as [sketch places, photo places]."
        )


def _reach(size: int, side: int) -> int:
    return max(1, round(FEATHER * size / side))


def _bounds(place: int, side: int, size: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right edge of a place in pixels, bottom and right exclusive."""
    row, column = divmod(place, side)
    top, bottom, left, right = (i * size // side for i in (row, row + 1, column, column + 1))
    return top, bottom, left, right


def _cut(photo: np.ndarray, place: int, side: int, margin: int) -> np.ndarray:
    """A photo's patch with `margin` pixels around it, mirrored at the photo's border."""
    top, bottom, left, right = _bounds(place, side, len(photo))
    if margin:
        photo = cv2.copyMakeBorder(photo, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    return photo[top : bottom + 2 * margin, left : right + 2 * margin].copy()


def _assembled(
    sketch: np.ndarray, patches: dict[int, np.ndarray], side: int, margin: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The patches at their places on the sketch's paper; the weighted mean where they overlap.

    Each patch fades from `margin` inside the edge of its place to `margin` outside. The rest is
    paper.
    """
    size = len(sketch)
    paper = np.median(sketch.reshape(-1, 3), axis=0)
    total = np.zeros((size + 2 * margin, size + 2 * margin, 3), np.float32)
    weight = np.zeros((*total.shape[:2], 1), np.float32)
    for place, patch in patches.items():
        top, bottom, left, right = _bounds(place, side, size)
        view = np.s_[top : bottom + 2 * margin, left : right + 2 * margin]
        height, width = bottom - top + 2 * margin, right - left + 2 * margin
        fade = np.minimum.outer(_ramp(height, margin), _ramp(width, margin))[..., None]
        fitted = cv2.resize(patch, (width, height)) if patch.shape[:2] != (height, width) else patch
        total[view] += fade * fitted
        weight[view] += fade
    inner = np.s_[margin : margin + size, margin : margin + size]
    total, weight = total[inner], weight[inner]
    shown = np.minimum(weight, 1)
    mean = total / np.maximum(weight, 1e-6)
    return np.round(shown * mean + (1 - shown) * paper).astype(np.uint8)


def _ramp(length: int, margin: int) -> Float[np.ndarray, "{length}"]:
    """Weights along a side: they rise to 1 over twice the margin, and fall in the same way."""
    if not margin:
        return np.ones(length, np.float32)
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(1, distance / (2 * margin)).astype(np.float32)
