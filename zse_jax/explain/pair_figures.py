"""Figures of one pair: which strokes match which part of the photo (ZSE, CVPR 2023, section 4.5).

Lines join the places that match; the thicker a line, the more the match contributes. Heat maps are
drawn over the greyed image, and the synthesis strip shows what the system takes the strokes for.
HTML pages use the parts without text (`lines`, `heat_overlay`); `explanation_figure` combines all
parts for print and slides.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zse_jax.explain import style
from zse_jax.explain.correspondence import BLANK, LINE_STYLES, Explanation, grid_side
from zse_jax.explain.style import AGAINST, FOR, INK, MARKS, MUTED

SHOWN_SIDE = 256
"""Minimum side of the images drawn here, in pixels."""


class Line(NamedTuple):
    """A sketch place and its best-matching photo place.

    Attributes:
      sketch, photo: the places, counted row by row.
      weight: contribution of the match relative to the largest one shown, 0..1.
      mutual: whether each is the other's best match.
    """

    sketch: int
    photo: int
    weight: float
    mutual: bool


class HeatMap(NamedTuple):
    """A heat map over one of the two images.

    Attributes:
      name: the kind: "relevance", "attention" or "importance".
      side: the image, "sketch" or "photo".
      image: uint8 RGB.
      text: a description for captions.
    """

    name: str
    side: str
    image: UInt8[np.ndarray, "h w 3"]
    text: str


def matched_places(explanation: Explanation, pair: int, most: int = 8) -> list[Line]:
    """The matches of a pair to draw as lines, largest weight first.

    Only places with strokes are used, each with its best match. Mutual best matches come first, and
    within each group those that contribute most to the similarity. If nothing contributes (no
    attribution is positive), the similarity of the places is used instead.

    Args:
      explanation: an explanation of some pairs.
      pair: the index of the pair.
      most: limit of lines.

    Returns:
      Fewer lines if the sketch has fewer places with strokes; none for an empty sketch.
    """
    places = np.flatnonzero(explanation.ink[pair] >= BLANK)
    if not places.size:
        return []
    best = explanation.best[pair, places]
    weight = np.maximum(explanation.attribution[pair, places, best], 0)
    if not weight.any():
        match = explanation.match[pair, places, best]
        weight = match - explanation.match[pair].min()
    mutual = explanation.mutual[pair, places]
    order = np.lexsort((-weight, ~mutual))[:most]
    largest = float(weight[order].max()) or 1.0
    return [
        Line(int(places[i]), int(best[i]), float(weight[i]) / largest, bool(mutual[i]))
        for i in order
    ]


def lines(
    sketch: UInt8[np.ndarray, "h w 3"],
    photo: UInt8[np.ndarray, "h w 3"],
    explanation: Explanation,
    pair: int,
    *,
    most: int = 8,
) -> Figure:
    """Sketch and photo side by side, joined by numbered lines; without text, on transparent.

    Solid lines are mutual best matches, dashed lines best matches of the sketch place only. The
    number is at both ends of a line, so that readers do not have to distinguish colours.
    """
    figure, axes = style.canvas(2 * _MARGIN + 2 * _SIDE + _BETWEEN, 2 * _MARGIN + _SIDE)
    figure.set_facecolor("none")
    _draw_pair(axes, _MARGIN, _MARGIN, (sketch, photo), explanation, pair, most)
    return figure


# Inches, in figures of a pair.
_MARGIN, _SIDE, _BETWEEN = 0.05, 2.9, 0.5


def _draw_pair(
    axes: Axes,
    x: float,
    y: float,
    images: tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]],
    explanation: Explanation,
    pair: int,
    most: int,
) -> None:
    """Draws sketch and photo from (x, y), with lines between them."""
    lefts = x, x + _SIDE + _BETWEEN
    for left, image in zip(lefts, images, strict=True):
        style.picture(axes, enlarged(image), left, y, _SIDE, linewidth=0.8)
    found = matched_places(explanation, pair, most)
    grids = [grid_side(places) for places in explanation.match.shape[1:]]
    cells = [_SIDE / grid for grid in grids]
    for number, line in reversed([*enumerate(found, start=1)]):  # the largest weight on top
        color = MARKS[(number - 1) % len(MARKS)]
        ends = []
        for left, place, cell, grid in zip(
            lefts, (line.sketch, line.photo), cells, grids, strict=True
        ):
            corner = left + place % grid * cell, y + place // grid * cell
            box = Rectangle(corner, cell, cell, fill=False, edgecolor=color, linewidth=1.2)
            axes.add_patch(box)
            ends.append((corner[0] + cell / 2, corner[1] + cell / 2))
        meeting = [other.photo for other in found]
        ends[1] = _beside(
            ends[1],
            meeting[: number - 1].count(line.photo),
            meeting.count(line.photo),
            cells[1],
        )
        _line(axes, ends, line, color)
        for end in ends:
            _mark(axes, end, number, color)


def _beside(
    center: tuple[float, float], position: int, count: int, cell: float
) -> tuple[float, float]:
    """Position of mark number `position` of the `count` marks in one place, in rows of 3."""
    rows, columns = -(-count // 3), min(count, 3)
    pitch = min(0.2, 0.85 * cell / columns)
    row, column = divmod(position, 3)
    in_row = min(3, count - 3 * row)
    return (
        center[0] + (column - (in_row - 1) / 2) * pitch,
        center[1] + (row - (rows - 1) / 2) * pitch,
    )


def _line(axes: Axes, ends: Sequence[tuple[float, float]], line: Line, color: str) -> None:
    width = 0.8 + 3.2 * line.weight
    halo = patheffects.Stroke(linewidth=width + 1.6, foreground="white", alpha=0.8)
    axes.plot(
        *zip(*ends, strict=True),
        color=color,
        linewidth=width,
        linestyle="-" if line.mutual else (0, (3, 2)),
        path_effects=[halo, patheffects.Normal()],
        zorder=3,
    )


def _mark(axes: Axes, end: tuple[float, float], number: int, color: str) -> None:
    axes.text(
        *end, str(number), color="white", fontsize=7, weight="bold", ha="center", va="center",
        zorder=10, bbox={"boxstyle": "circle,pad=0.22", "facecolor": color, "edgecolor": "white"},
    )  # fmt: skip


def heat_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    values: Float[np.ndarray, "cells"],
    largest: float | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Values of a grid's cells over the greyed image: positive orange, negative purple.

    Args:
      image: prepared.
      values: values of the cells of a square grid, row by row; interpolated between the centres.
      largest: the absolute value with the full colour; None: the largest of `values`.

    Returns:
      The image, enlarged to `SHOWN_SIDE` if it is smaller.

    Raises:
      ValueError: the values do not form a square grid.
    """
    side = grid_side(len(values))
    largest = float(np.abs(values).max(initial=0)) if largest is None else largest
    image = enlarged(image)
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    base = np.repeat(110 + grey * (145 / 255), 3, axis=2)  # pale
    shares = (values / (largest or 1.0)).reshape(side, side).astype(np.float32)
    smooth = cv2.resize(shares, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    smooth = smooth.clip(-1, 1)[..., None]
    paint = np.where(smooth >= 0, to_rgb(FOR), to_rgb(AGAINST)).astype(np.float32) * 255
    alpha = 0.85 * np.abs(smooth) ** 0.8
    # Strokes stay visible under the colour.
    painted = paint * (0.45 + 0.55 * grey / 255)
    return np.round(base * (1 - alpha) + painted * alpha).astype(np.uint8)


def enlarged(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image, scaled up by an integer factor to a side of at least `SHOWN_SIDE`."""
    factor = -(-SHOWN_SIDE // min(image.shape[:2]))
    if factor == 1:
        return image
    size = image.shape[1] * factor, image.shape[0] * factor
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def heat_maps(
    sketch: UInt8[np.ndarray, "h w 3"],
    photo: UInt8[np.ndarray, "h w 3"],
    explanation: Explanation,
    pair: int,
) -> list[HeatMap]:
    """All heat maps of a pair, sketch and photo of each kind together.

    Relevance is signed. Attention is that of the sketch's strokes to the photo, and that of the
    whole photo to the sketch.
    """
    both = {"sketch": sketch, "photo": photo}
    relevance = {
        "sketch": explanation.sketch_relevance[pair],
        "photo": explanation.photo_relevance[pair],
    }
    values = {
        ("relevance", side): (part, "evidence for (orange) and against (purple) the match")
        for side, part in relevance.items()
    }
    if explanation.sketch_attention is not None and explanation.photo_attention is not None:
        tokens = explanation.sketch_attention.shape[1]
        ink = _spread(explanation.ink[pair], grid_side(tokens))
        weights = ink / ink.sum() if ink.any() else np.full(tokens, 1 / tokens)
        values["attention", "sketch"] = (
            explanation.photo_attention[pair].mean(axis=0),
            "cross-attention of the photo to the sketch",
        )
        values["attention", "photo"] = (
            weights @ explanation.sketch_attention[pair],
            "cross-attention of the strokes to the photo",
        )
    for side, importance in (
        ("sketch", explanation.sketch_importance),
        ("photo", explanation.photo_importance),
    ):
        if importance is not None:
            text = f"weight of each place in the summary of the {side}"
            values["importance", side] = (importance[pair], text)
    return [
        HeatMap(name, side, heat_overlay(both[side], part - _floor(name, part)), text)
        for (name, side), (part, text) in values.items()
    ]


def _floor(name: str, values: Float[np.ndarray, "cells"]) -> float:
    """The value to subtract: attention that all places have in common is not informative."""
    return 0.0 if name == "relevance" else float(values.min())


def _spread(values: Float[np.ndarray, "cells"], side: int) -> Float[np.ndarray, "{side*side}"]:
    """Values of a square grid on another square grid."""
    own = grid_side(len(values))
    grid = values.reshape(own, own).astype(np.float32)
    return cv2.resize(grid, (side, side), interpolation=cv2.INTER_NEAREST).ravel()


def explanation_figure(
    sketch: UInt8[np.ndarray, "h w 3"],
    photo: UInt8[np.ndarray, "h w 3"],
    explanation: Explanation,
    pair: int,
    *,
    syntheses: Mapping[str, UInt8[np.ndarray, "h w 3"]],
    title: str | None = None,
    most: int = 8,
) -> Figure:
    """One pair with lines, heat maps, and the synthesis strip.

    Args:
      sketch, photo: prepared.
      explanation: an explanation of some pairs.
      pair: the index of this pair.
      syntheses: images made of patches, by name.
      title: written above.
      most: limit of lines.
    """
    rows = [
        [
            (f"{found.name}, {found.side}", found.image)
            for found in heat_maps(sketch, photo, explanation, pair)
        ],
        [(n, enlarged(i)) for n, i in {"sketch": sketch, "photo": photo, **syntheses}.items()],
    ]
    cell, gap, upper = 1.12, 0.13, 0.45
    width = max(2 * _SIDE + _BETWEEN, max(map(len, rows)) * (cell + gap) - gap) + 2 * gap
    lower = upper + _SIDE + 0.5
    height = lower + len(rows) * (cell + 0.3) + 0.42
    figure, axes = style.canvas(width, height)
    left = gap
    axes.text(left, 0.29, title or "", fontsize=10, color=INK, weight="bold")
    _draw_pair(axes, left, upper, (sketch, photo), explanation, pair, most)
    legend = textwrap.fill(LINE_STYLES, int(width * 18))
    axes.text(left, upper + _SIDE + 0.08, legend, fontsize=7, color=MUTED, va="top")
    for row, images in enumerate(rows):
        y = lower + row * (cell + 0.3)
        for column, (name, image) in enumerate(images):
            x = left + column * (cell + gap)
            style.picture(axes, image, x, y, cell)
            axes.text(x, y + cell + 0.05, name, fontsize=7, color=INK, va="top")
    words = (
        "Heat maps: orange is evidence for the match, purple against. "
        f"Evidence: {explanation.evidence}."
    )
    text = textwrap.fill(words, int(width * 19))
    axes.text(left, height - 0.4, text, fontsize=6.5, color=MUTED, va="top")
    return figure
