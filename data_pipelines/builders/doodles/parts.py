"""Drawing primitives of `doodles`: parts in vector form and their curves.

x points right and y down. An object spans about [-1, 1] and `generation.py` fits it into the frame.
Curves are sampled so finely that only real corners turn by more than 30 degrees; `sketch.py` relies
on this to separate strokes.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

Curve = Float[np.ndarray, "_ 2"]
Number = float | int
Point = tuple[Number, Number]


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of an object, painted over the parts before it.

    Attributes:
      loops: outlines; a second loop inside the first is a hole. An open line has one loop.
      color: index into the instance's palette.
      width: 0 for a filled part; the thickness of an open line, in object units.
      omit: probability, 0 to 1, that an average sketch omits it.
      solid: whether sketches fill it with ink instead of outlining it (eyes, buttons).
    """

    loops: tuple[Curve, ...]
    color: int = 0
    width: float = 0.0
    omit: float = 0.0
    solid: bool = False


def fill(*loops: Curve, color: int = 0, omit: float = 0.0, solid: bool = False) -> Part:
    """A filled part; loops after the first are holes."""
    return Part(tuple(np.asarray(loop, np.float64) for loop in loops), color, 0.0, omit, solid)


def line(curve: Curve, color: int = 0, width: float = 0.05, omit: float = 0.0) -> Part:
    """An open line of the given thickness."""
    return Part((np.asarray(curve, np.float64),), color, width, omit)


def polygon(*points: Point) -> Curve:
    """Straight edges through the points, corners kept."""
    return np.asarray(points, np.float64)


def box(x: Number, y: Number, half_width: Number, half_height: Number) -> Curve:
    """An upright rectangle around (x, y)."""
    w, h = half_width, half_height
    return polygon((x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h))


def trapezoid(
    x: Number, top: Number, bottom: Number, top_half: Number, bottom_half: Number
) -> Curve:
    """A symmetric trapezoid around the vertical through x."""
    return polygon(
        (x - top_half, top),
        (x + top_half, top),
        (x + bottom_half, bottom),
        (x - bottom_half, bottom),
    )


def ellipse(
    x: Number,
    y: Number,
    rx: Number,
    ry: Number | None = None,
    start: Number = 0.0,
    stop: Number = 360.0,
) -> Curve:
    """An ellipse, or its arc from start to stop in degrees, clockwise from the right."""
    span = abs(stop - start)
    angle = np.radians(np.linspace(start, stop, max(int(span / 10), 4), endpoint=span < 360))
    return np.stack([x + rx * np.cos(angle), y + (ry or rx) * np.sin(angle)], 1)


def smooth(*points: Point, closed: bool = True) -> Curve:
    """A Catmull-Rom spline through the points."""
    p = np.asarray(points, np.float64)
    padded = (
        np.concatenate([p[-1:], p, p[:2]])
        if closed
        else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    )
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, 8, endpoint=False)[:, None]
    curve = b + t * ((c - a) + t * ((2 * a - 5 * b + 4 * c - d) + t * (3 * (b - c) + d - a))) / 2
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def tube(curve: Curve, start: Number, stop: Number | None = None) -> Curve:
    """The outline of a thick stroke along the curve, its half-width going from start to stop."""
    tangent = np.gradient(curve, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    half = np.linspace(start, start if stop is None else stop, len(curve))[:, None]
    side = half * np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    return np.concatenate([curve + side, (curve - side)[::-1]])


def capsule(a: Point, b: Point, radius: Number) -> Curve:
    """A bar from a to b with round ends."""
    turn = float(np.degrees(np.arctan2(b[1] - a[1], b[0] - a[0])))
    ends = (
        ellipse(b[0], b[1], radius, None, turn - 90, turn + 90),
        ellipse(a[0], a[1], radius, None, turn + 90, turn + 270),
    )
    return np.concatenate(ends)


def leaf(x: Number, y: Number, length: Number, half_width: Number, angle: Number) -> Curve:
    """A pointed blade that starts at (x, y) and points at angle (degrees, clockwise)."""
    t = np.linspace(0, 1, 10)
    half = half_width * np.sin(np.pi * t**0.8)
    upper = np.stack([t * length, half], 1)
    blade = np.concatenate([upper, upper[-2:0:-1] * [1, -1]])
    return turned(blade, angle) + [x, y]


def cloud(x: Number, y: Number, rx: Number, ry: Number, bumps: int, depth: Number = 0.16) -> Curve:
    """A round shape with bumps: foliage, petals."""
    angle = np.radians(np.arange(0, 360, 4.0))
    radius = 1 - depth + depth * np.abs(np.sin(bumps * angle / 2)) ** 0.7 * 1.6
    return np.stack([x + rx * radius * np.cos(angle), y + ry * radius * np.sin(angle)], 1)


def turned(curve: Curve, degrees: Number, x: Number = 0.0, y: Number = 0.0) -> Curve:
    """The curve turned clockwise around (x, y)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (curve - [x, y]) @ np.array([[c, s], [-s, c]]) + [x, y]


def mirrored(curve: Curve) -> Curve:
    """The curve reflected in the vertical axis."""
    return curve * [-1, 1]


def wheel(x: Number, y: Number, radius: Number, color: int = 3, hub: int = 4) -> list[Part]:
    """A tyre and its hub."""
    return [
        fill(ellipse(x, y, radius), color=color),
        fill(ellipse(x, y, 0.45 * radius), color=hub, omit=0.25),
    ]
