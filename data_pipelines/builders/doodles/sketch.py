"""An instance of `doodles` as a sketch: imprecise black lines on white.

The lines follow the same outlines as the photo. Each part is slightly misplaced. Lines
tremble, vary in width and end before or after corners. Some optional parts are omitted.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.builders.doodles.parts import Curve, Part, turned

SCALE = 4
"""Supersampling."""
CORNER = 35.0
"""Degrees; a sharper turn starts a new stroke."""
STEP = 1.0
"""Distance between the points of a stroke, in pixels of the result."""


@dataclasses.dataclass(frozen=True)
class Hand:
    """The drawing style of one person; lengths in pixels of the result."""

    width: float
    wobble: float
    misplace: float
    overshoot: float
    lazy: float
    ink: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Hand":
        """A random drawing style."""
        return cls(
            width=rng.uniform(1.1, 1.8),
            wobble=rng.uniform(0.3, 1.0),
            misplace=rng.uniform(0.3, 1.1),
            overshoot=rng.uniform(0.3, 2.2),
            lazy=rng.uniform(0.4, 1.8),
            ink=int(rng.integers(0, 50)),
        )


def draw(
    parts: Sequence[Part], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Draws the parts, whose coordinates are in units of the frame, back to front."""
    hand = Hand.sample(rng)
    canvas = np.full((size * SCALE, size * SCALE), 255, np.uint8)
    for part in placed(parts, size, rng):
        if rng.random() < part.omit * hand.lazy:
            continue
        _part(canvas, part, hand, rng)
    gray = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return np.repeat(gray[..., None], 3, axis=2)


def placed(parts: Sequence[Part], size: int, rng: np.random.Generator) -> list[Part]:
    """The whole drawing, randomly rotated, stretched and moved on the canvas, in pixels."""
    angle, stretch = rng.uniform(-7, 7), rng.uniform(0.9, 1.1, 2)
    points = np.concatenate([loop for p in parts for loop in p.loops])
    points = turned((points - 0.5) * stretch, angle)
    low, high = points.min(0), points.max(0)
    fit = min(1.0, 0.92 / (high - low).max()) * size
    center = size / 2 + rng.uniform(-1, 1, 2) * np.maximum((size - 4 - fit * (high - low)) / 2, 0)

    def place(loop: Curve) -> Curve:
        return (turned((loop - 0.5) * stretch, angle) - (low + high) / 2) * fit + center

    return [dataclasses.replace(p, loops=tuple(place(loop) for loop in p.loops)) for p in parts]


def _part(canvas: np.ndarray, part: Part, hand: Hand, rng: np.random.Generator) -> None:
    middle = part.loops[0].mean(0)
    angle, grow = rng.normal(0, 2.5), 1 + rng.normal(0, 0.03, 2)
    shift = rng.normal(0, 0.6 * hand.misplace, 2)
    loops = [turned((c - middle) * grow, angle) + middle + shift for c in part.loops]
    strokes = [[_tremble(s, hand, rng) for s in _strokes(c, not part.width, rng)] for c in loops]
    if part.solid:
        cv2.fillPoly(canvas, [_fixed(c) for c in loops], hand.ink, cv2.LINE_AA, 4)
        strokes = strokes[:1]
    elif not part.width:  # A filled part hides the lines behind it.
        outlines = [_fixed(np.concatenate(s)) for s in strokes]
        cv2.fillPoly(canvas, outlines, 255, cv2.LINE_AA, 4)
    for stroke in [s for loop in strokes for s in loop]:
        if rng.random() < 0.025 * hand.lazy and len(strokes[0]) > 2:
            continue
        _ink(canvas, _ends(stroke, hand, rng), hand, rng)


def _strokes(curve: Curve, closed: bool, rng: np.random.Generator) -> list[Curve]:
    """Splits an outline at most of its corners into evenly sampled strokes."""
    if closed:
        edges = np.roll(curve, -1, 0) - curve
        heading = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
        turn = np.abs((heading - np.roll(heading, 1) + 180) % 360 - 180)
        corners = np.flatnonzero(turn > CORNER)
        start = rng.choice(corners) if len(corners) else rng.integers(len(curve))
        curve = np.roll(curve, -start, 0)
        curve = np.concatenate([curve, curve[:1]])
    edges = np.diff(curve, axis=0)
    heading = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    turn = np.abs((np.diff(heading) + 180) % 360 - 180)
    cuts = 1 + np.flatnonzero((turn > CORNER) & (rng.random(len(turn)) < 0.65))
    bounds = [0, *cuts, len(curve) - 1]
    return [_resampled(curve[a : b + 1]) for a, b in itertools.pairwise(bounds)]


def _resampled(curve: Curve) -> Curve:
    """The same path with points `STEP` apart."""
    reach = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    at = np.linspace(0, reach[-1], max(int(reach[-1] / STEP), 1) + 2)
    return np.stack([np.interp(at, reach, axis) for axis in curve.T], 1)


def _tremble(stroke: Curve, hand: Hand, rng: np.random.Generator) -> Curve:
    """Adds slow drift and fast shaking."""
    drift = np.stack([_drift(len(stroke), 9, rng) for _ in "xy"], 1)
    shake = np.stack([_drift(len(stroke), 3, rng) for _ in "xy"], 1)
    return stroke + hand.wobble * (0.75 * drift + 0.25 * shake)


def _drift(count: int, period: int, rng: np.random.Generator) -> Float[np.ndarray, "{count}"]:
    """Smooth noise of unit variance at its knots, which lie `period` points apart."""
    knots = rng.normal(0, 1, count // period + 2)
    at = np.arange(count) / period
    whole = at.astype(int)
    part = (at - whole) ** 2 * (3 - 2 * (at - whole))
    return knots[whole] * (1 - part) + knots[whole + 1] * part


def _ends(stroke: Curve, hand: Hand, rng: np.random.Generator) -> Curve:
    """Shortens or extends both ends of a stroke."""
    for _ in range(2):
        stroke = stroke[::-1]
        miss = rng.normal(0, hand.overshoot) / STEP
        if miss > 0:
            step = stroke[-1] - stroke[-2]
            stroke = np.concatenate([stroke, stroke[-1:] + miss * step])
        elif len(stroke) > 8:
            stroke = stroke[: len(stroke) - min(int(-miss), len(stroke) // 4)]
    return stroke


def _ink(canvas: np.ndarray, stroke: Curve, hand: Hand, rng: np.random.Generator) -> None:
    """Draws the line; its width varies smoothly."""
    pressure = np.clip(1 + 0.22 * _drift(len(stroke), 12, rng), 0.6, 1.5)
    points = _fixed(stroke)
    for a, b, force in zip(points, points[1:], pressure, strict=False):
        thickness = max(round(hand.width * force * SCALE), 1)
        cv2.line(canvas, a.tolist(), b.tolist(), hand.ink, thickness, cv2.LINE_AA, 4)


def _fixed(curve: Curve) -> np.ndarray:
    """OpenCV's fixed-point coordinates."""
    return np.round(curve * SCALE * 16).astype(np.int32)
