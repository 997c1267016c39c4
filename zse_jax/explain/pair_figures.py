"""Figures of one pair: which strokes met which part of the photo (ZSE, CVPR 2023, section 4.5).

Lines join the places that match, the thicker the more a match contributes; heat maps lie over the
greyed image; the synthesis strip shows what the system takes the strokes for. The pieces without
text (`lines`, `heat_overlay`) serve HTML pages, the figures made of them print and slides.
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
from zse_jax.explain.correspondence import BLANK, Explanation, grid_side
from zse_jax.explain.style import AGAINST, FOR, INK, MARKS, MUTED

SHOWN_SIDE = 256
"""Smallest side of the images that are made here, in pixels."""


class Line(NamedTuple):
    """A sketch place and the photo place that it matches best.

    Attributes:
      sketch, photo: the places, counted row by row.
      weight: what the match contributes, as a share of the most that any match shown does; 0..1.
      mutual: whether each is the other's best match.
    """

    sketch: int
    photo: int
    weight: float
    mutual: bool


class HeatMap(NamedTuple):
    """A heat map over one of the two images.

    Attributes:
      name: what is shown: "relevance", "attention", "importance".
      side: over which image, "sketch" or "photo".
      image: uint8 RGB.
      text: what it means, a sentence for captions.
    """

    name: str
    side: str
    image: UInt8[np.ndarray, "h w 3"]
    text: str


def matched_places(explanation: Explanation, pair: int, most: int = 8) -> list[Line]:
    """The matches of a pair that are worth a line, the weightiest first.

    Only places with strokes count, each with its best match. Mutual best matches come before all
    others, and within both what contributes most to the similarity does. Where nothing contributes
    (every attribution is zero or negative), the similarity of the places decides.

    Args:
      explanation: of some pairs.
      pair: which of them.
      most: lines, at most.

    Returns:
      Fewer lines where the sketch has fewer places with strokes; none for an empty sketch.
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
    """Sketch and photo side by side, joined by numbered lines; no words, transparent behind.

    Solid lines join mutual best matches, dashed ones a sketch place with its best match that
    prefers another. The number stands at both ends, so that no colour needs to be told apart.
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
    """Sketch and photo from (x, y) on, with lines between them."""
    lefts = x, x + _SIDE + _BETWEEN
    for left, image in zip(lefts, images, strict=True):
        style.picture(axes, enlarged(image), left, y, _SIDE, linewidth=0.8)
    found = matched_places(explanation, pair, most)
    cells = [_SIDE / grid_side(explanation.match.shape[i]) for i in (1, 2)]
    grids = [grid_side(explanation.match.shape[i]) for i in (1, 2)]
    for number, line in reversed([*enumerate(found, start=1)]):  # the weightiest on top
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
    """Where the mark at `position` of the `count` that meet in one place stands: in rows of 3."""
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
    """Values of a grid's cells over the greyed image: orange where positive, purple where negative.

    Args:
      image: prepared.
      values: of the cells of a square grid, row by row; shown smoothly between their centres.
      largest: the absolute value that gets the full colour; None: the largest there is.

    Returns:
      The image, enlarged to `SHOWN_SIDE` if it is smaller.

    Raises:
      ValueError: the values are no square grid.
    """
    side = grid_side(len(values))
    largest = float(np.abs(values).max(initial=0)) if largest is None else largest
    image = enlarged(image)
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    base = np.repeat(110 + grey * (145 / 255), 3, axis=2)  # washed out: colours are the values'
    shares = (values / (largest or 1.0)).reshape(side, side).astype(np.float32)
    smooth = cv2.resize(shares, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    smooth = smooth.clip(-1, 1)[..., None]
    paint = np.where(smooth >= 0, to_rgb(FOR), to_rgb(AGAINST)).astype(np.float32) * 255
    alpha = 0.85 * np.abs(smooth) ** 0.8
    # Strokes stay visible under the paint.
    painted = paint * (0.45 + 0.55 * grey / 255)
    return np.round(base * (1 - alpha) + painted * alpha).astype(np.uint8)


def enlarged(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image, scaled up in whole steps until its side is `SHOWN_SIDE` or more."""
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
    """Every heat map that there is of a pair, sketch and photo of each kind together.

    Relevance is signed, one scale for both images; attention is what the strokes of the sketch
    look at in the photo, and what the photo as a whole looks at in the sketch.
    """
    both = {"sketch": sketch, "photo": photo}
    relevance = {
        "sketch": explanation.sketch_relevance[pair],
        "photo": explanation.photo_relevance[pair],
    }
    values = {
        ("relevance", side): (part, "what speaks for (orange) and against (purple) the match")
        for side, part in relevance.items()
    }
    if explanation.sketch_attention is not None and explanation.photo_attention is not None:
        tokens = explanation.sketch_attention.shape[1]
        ink = _spread(explanation.ink[pair], grid_side(tokens))
        weights = ink / ink.sum() if ink.any() else np.full(tokens, 1 / tokens)
        values["attention", "sketch"] = (
            explanation.photo_attention[pair].mean(axis=0),
            "what the photo looks at in the sketch (cross-attention)",
        )
        values["attention", "photo"] = (
            weights @ explanation.sketch_attention[pair],
            "what the strokes look at in the photo (cross-attention)",
        )
    for side, importance in (
        ("sketch", explanation.sketch_importance),
        ("photo", explanation.photo_importance),
    ):
        if importance is not None:
            text = f"how much the {side}'s summary looks at each place"
            values["importance", side] = (importance[pair], text)
    return [
        HeatMap(name, side, heat_overlay(both[side], part - _floor(name, part)), text)
        for (name, side), (part, text) in values.items()
    ]


def _floor(name: str, values: Float[np.ndarray, "cells"]) -> float:
    """Attention is spread over everything: what all places have in common says nothing."""
    return 0.0 if name == "relevance" else float(values.min())


def _spread(values: Float[np.ndarray, "cells"], side: int) -> Float[np.ndarray, "{side*side}"]:
    """A square grid's values on another one."""
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
    """Everything about one pair on a page: lines, heat maps, and the synthesis strip.

    Args:
      sketch, photo: prepared.
      explanation: of some pairs.
      pair: which of them this is.
      syntheses: images made of the photo's or a gallery's patches, by what they are called.
      title: written above.
      most: lines, at most.
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
    lower = upper + _SIDE + 0.4
    height = lower + len(rows) * (cell + 0.3) + 0.42
    figure, axes = style.canvas(width, height)
    left = gap
    axes.text(left, 0.29, title or "", fontsize=10, color=INK, weight="bold")
    _draw_pair(axes, left, upper, (sketch, photo), explanation, pair, most)
    axes.text(left, upper + _SIDE + 0.08, LINE_STYLES, fontsize=7, color=MUTED, va="top")
    for row, images in enumerate(rows):
        y = lower + row * (cell + 0.3)
        for column, (name, image) in enumerate(images):
            x = left + column * (cell + gap)
            style.picture(axes, image, x, y, cell)
            axes.text(x, y + cell + 0.05, name, fontsize=7, color=INK, va="top")
    words = f"Heat maps: orange is for the match, purple against. Evidence: {explanation.evidence}."
    text = textwrap.fill(words, int(width * 19))
    axes.text(left, height - 0.4, text, fontsize=6.5, color=MUTED, va="top")
    return figure


LINE_STYLES = (
    "The thicker a line, the more the match contributes. Solid: each is the other's best match; "
    "dashed: the sketch's only."
)
"""What the lines mean, for captions."""


def heat_map_figure(maps: Sequence[HeatMap], *, title: str | None = None) -> Figure:
    """The heat maps of a pair in a row, with what each of them means."""
    cell, gap, upper = 1.9, 0.15, 0.42
    figure, axes = style.canvas(len(maps) * (cell + gap) + gap, upper + cell + 0.62)
    axes.text(gap, 0.28, title or "", fontsize=10, color=INK, weight="bold")
    for column, found in enumerate(maps):
        x, y = gap + column * (cell + gap), upper + cell
        style.picture(axes, found.image, x, upper, cell)
        name = f"{found.name}, {found.side}"
        axes.text(x, y + 0.06, name, fontsize=8, color=INK, va="top")
        axes.text(x, y + 0.22, textwrap.fill(found.text, 42), fontsize=6, color=MUTED, va="top")
    return figure
