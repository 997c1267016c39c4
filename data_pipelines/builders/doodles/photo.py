"""An instance of `doodles` as a photo: lit, textured, with a shadow, on a busy background.

Colours are random per instance and independent of the class. The background has texture, blobs,
stripes and clutter, but less contrast than the object's outline. It is light, like paper, so that a
network learns from the outline instead of the brightness of the background.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.builders.doodles.parts import Curve, Part, cloud, ellipse, leaf, polygon, turned

SCALE = 3
"""Supersampling."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Pixels = Float[np.ndarray, "h w 3"]


def draw(
    parts: Sequence[Part], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Paints the parts, whose coordinates are in units of the frame."""
    side = size * SCALE
    angle = rng.uniform(-2.6, -0.5)
    light = np.array([np.cos(angle), np.sin(angle)])
    ground = _color(rng, (0.62, 0.86), saturation=(0.08, 0.42))
    canvas = _background(side, ground, rng)
    whole = np.zeros((side, side), np.uint8)
    for part in parts:
        whole = np.maximum(whole, _mask(part, side))
    _cast_shadow(canvas, whole, -light * side * rng.uniform(0.03, 0.06), 0.03 * side, 0.5)
    palette = _palette(ground, rng)
    grain = _noise(side, 24, rng) * rng.uniform(0.03, 0.11)
    for part in parts:
        _paint(canvas, part, palette[part.color], light, grain, rng)
    return _expose(canvas, size, rng)


def _paint(
    canvas: Pixels,
    part: Part,
    color: Float[np.ndarray, "3"],
    light: Float[np.ndarray, "2"],
    grain: Float[np.ndarray, "h w"],
    rng: np.random.Generator,
) -> None:
    side = len(canvas)
    mask = _mask(part, side)
    if part.width == 0:
        _cast_shadow(canvas, mask, -light * 0.012 * side, 0.012 * side, 0.35)
    x, y, w, h = cv2.boundingRect(mask)
    if not w:
        return
    view = np.s_[y : y + h, x : x + w]
    v, u = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
    slope = u * light[0] + v * light[1]
    shade = 1 + rng.uniform(0.16, 0.3) * slope + grain[view]
    if rng.random() < 0.3:
        turn, rate = rng.uniform(0, np.pi), rng.uniform(0.1, 0.25) * np.pi / SCALE * 2
        ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
        shade += 0.1 * np.sign(np.sin(rate * (np.cos(turn) * xs + np.sin(turn) * ys)))
    depth = cv2.distanceTransform(cv2.copyMakeBorder(mask[view], 1, 1, 1, 1, 0), cv2.DIST_L2, 3)
    edge = np.clip(depth[1:-1, 1:-1] / (1.5 * SCALE), 0, 1)
    shade *= 0.4 + 0.6 * edge
    shine = np.exp(-((u - 0.45 * light[0]) ** 2 + (v - 0.45 * light[1]) ** 2) / 0.12)
    painted = color * shade[..., None] + rng.uniform(0, 0.25) * shine[..., None]
    alpha = (mask[view] / np.float32(255))[..., None]
    canvas[view] += alpha * (painted - canvas[view])


def _mask(part: Part, side: int) -> UInt8[np.ndarray, "{side} {side}"]:
    mask = np.zeros((side, side), np.uint8)
    loops = [np.round(loop * side * 16).astype(np.int32) for loop in part.loops]
    if part.width:
        thickness = max(round(part.width * side), SCALE)
        cv2.polylines(mask, loops, False, 255, thickness, cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(mask, loops, 255, cv2.LINE_AA, 4)
    return mask


def _cast_shadow(
    canvas: Pixels,
    mask: UInt8[np.ndarray, "h w"],
    shift: Float[np.ndarray, "2"],
    sigma: float,
    strength: float,
) -> None:
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    fallen = cv2.GaussianBlur(cv2.warpAffine(mask, move, mask.shape), (0, 0), sigma)
    canvas *= 1 - (strength / 255) * fallen[..., None].astype(np.float32)


def _background(side: int, ground: Float[np.ndarray, "3"], rng: np.random.Generator) -> Pixels:
    """Gradient, sometimes a horizon, a pattern and clutter; blurred, with similar lightness."""
    full, side = side, side // 2  # Half the resolution is enough: it is blurred.
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    along = math.cos(turn) * (x - 0.5) + math.sin(turn) * (y - 0.5)
    across = math.cos(turn) * y - math.sin(turn) * x
    canvas = ground + (along[..., None] + 0.5) * (_near(ground, 0.25, rng) - ground)
    if rng.random() < 0.5:
        horizon = rng.uniform(0.55, 0.85) + rng.uniform(-0.1, 0.1) * (x - 0.5)
        canvas = np.where((y > horizon)[..., None], _near(ground, 0.2, rng), canvas)
    rate = rng.uniform(5, 14) * math.pi
    match rng.integers(4):
        case 0:
            canvas += rng.uniform(0.02, 0.06) * np.sign(np.sin(rate * across))[..., None]
        case 1:
            checks = np.sign(np.sin(rate * across) * np.sin(rate * along))
            canvas += rng.uniform(0.02, 0.05) * checks[..., None]
        case 2:
            for _ in range(rng.integers(6, 14)):
                spot = ellipse(rng.random(), rng.random(), rng.uniform(0.04, 0.14))
                _clutter(canvas, spot, _near(ground, 0.3, rng), rng.uniform(0.2, 0.6))
        case _:
            canvas += rng.uniform(0.06, 0.12) * _noise(side, 10, rng)[..., None]
    for _ in range(rng.integers(3, 8)):
        _clutter(canvas, _distractor(rng), _near(ground, 0.4, rng), 0.7)
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.9) * SCALE / 2)
    canvas *= 1 + 0.05 * _noise(side, 32, rng)[..., None]
    return cv2.resize(canvas, (full, full), interpolation=cv2.INTER_LINEAR)


def _distractor(rng: np.random.Generator) -> Curve:
    """A small background object, in units of the frame."""
    r = rng.uniform(0.05, 0.12)
    shape = (
        ellipse(0, 0, r, r * rng.uniform(0.5, 1)),
        polygon((-r, -r), (r, -r), (r, r), (-r, r)) * [1, rng.uniform(0.3, 1)],
        polygon((-r, r), (0, -r), (r, r)),
        leaf(0, 0, 3 * r, 0.5 * r, 0),
        cloud(0, 0, r, r, 5, 0.3),
    )[rng.integers(5)]
    return turned(shape, rng.uniform(0, 360)) + rng.random(2)


def _clutter(canvas: Pixels, shape: Curve, color: Float[np.ndarray, "3"], opacity: float) -> None:
    mask = _mask(Part((shape,)), len(canvas))
    x, y, w, h = cv2.boundingRect(mask)
    view = np.s_[y : y + h, x : x + w]
    canvas[view] += mask[view][..., None] * np.float32(opacity / 255) * (color - canvas[view])


def _palette(ground: Float[np.ndarray, "3"], rng: np.random.Generator) -> list[np.ndarray]:
    """Five colours whose lightness differs from the background's and the main colour's."""
    palette: list[np.ndarray] = []
    for _ in range(5):
        tries = np.stack([_color(rng, (0.06, 0.96)) for _ in range(12)])
        apart = np.abs((tries - ground) @ LUMA)
        if palette:
            apart = np.minimum(apart, 1.5 * np.abs((tries - palette[0]) @ LUMA))
        enough = np.flatnonzero(apart > 0.24)
        palette.append(tries[enough[0] if len(enough) else np.argmax(apart)])
    return palette


def _color(
    rng: np.random.Generator,
    lightness: tuple[float, float],
    saturation: tuple[float, float] = (0.25, 0.95),
) -> Float[np.ndarray, "3"]:
    hue, level = rng.uniform(0, 360), rng.uniform(*lightness)
    hls = np.array([[[hue, level, rng.uniform(*saturation)]]], np.float32)
    return cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)[0, 0]


def _near(
    color: Float[np.ndarray, "3"], distance: float, rng: np.random.Generator
) -> Float[np.ndarray, "3"]:
    """Another hue of similar lightness."""
    step = rng.uniform(-distance, distance, 3).astype(np.float32)
    step -= 0.7 * (step @ LUMA)
    return np.clip(color + step, 0.05, 0.95)


def _noise(side: int, cells: int, rng: np.random.Generator) -> Float[np.ndarray, "{side} {side}"]:
    """Smooth noise of about unit range, with `cells` cells per side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def _expose(
    canvas: Pixels, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The camera: a vignette, exposure, a colour cast, sensor noise."""
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    image *= (1 - rng.uniform(0.05, 0.16) * (x * x + y * y))[..., None]
    image = image * rng.uniform(0.9, 1.12) * rng.uniform(0.94, 1.06, 3) + rng.uniform(-0.03, 0.05)
    image += rng.normal(0, rng.uniform(0.008, 0.025), image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
