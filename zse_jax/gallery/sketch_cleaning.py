"""Turns photographed and scanned drawings into dark lines on white, as the systems are trained on.

Paper is flattened, light lines on a dark ground are inverted, ruled lines and specks are removed,
and strokes that would vanish at the size of the network are thickened. Drawings that are dark lines
on white already stay as they are. Our method, from standard parts of OpenCV: the paper is a
morphological closing of the image, the threshold follows Otsu (IEEE Trans. SMC, 1979).
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

CLEAN_PAPER, CLEAN_SHARE = 235, 0.6
"""A drawing is clean if this share of its pixels, and its border, is at least this bright."""

WIDTH = 0.009
"""Width of a stroke as a share of the longer side of what is drawn: about 2 of 224 pixels."""

THICKENED = "thin lines were thickened"

NO_STROKES = "No strokes stand out from the paper."

OTHER = 0.005
"""Share of the pixels of a clean drawing that may be neither paper nor near a line."""

FAINT = 0.06
"""Least contrast of strokes, as a share of the brightness of the paper."""

SPECK = 0.008
"""Longer side of a spot that is not a stroke, as a share of the picture's longer side."""

MOST_INK, SHADED, WIDEST = 0.35, 0.15, 0.05
"""Share of dark pixels, share of pixels that are neither paper nor near a line, and median width as
a share of the longer side, above which a picture is probably not a line drawing."""

SMALLEST = 100
"""Longer side in pixels below which a picture is no scan or photo of a drawing."""

LARGEST = 1600
"""Longer side in pixels to which larger pictures are reduced first."""


class Cleaned(NamedTuple):
    """A drawing as the system gets it.

    Attributes:
      pixels: uint8 [H, W, 3], dark lines on white; in doubt, those that were given.
      changes: what was done, one short phrase each; empty if nothing.
      doubt: a sentence, if this is probably not a line drawing; else "".
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    changes: tuple[str, ...] = ()
    doubt: str = ""


def clean(pixels: UInt8[np.ndarray, "h w 3"]) -> Cleaned:
    """Dark lines on white from a drawing on any plain ground.

    Args:
      pixels: of the drawing; transparent parts are white already.
    """
    if max(pixels.shape) < SMALLEST:
        return Cleaned(pixels)
    reduced = _reduced(pixels)
    grey = cv2.cvtColor(reduced, cv2.COLOR_RGB2GRAY)
    if _is_clean(grey):
        ink, wider = _thickened(grey < 128)
        return Cleaned(_drawn(ink), (THICKENED,)) if wider else Cleaned(pixels)
    changes = []
    if np.median(_border(grey)) < 128:
        grey = 255 - grey
        changes.append("light lines on a dark ground were inverted")
    contrast = _contrast(grey)
    if contrast.max(initial=0) < FAINT:
        return Cleaned(pixels, doubt=NO_STROKES)
    ink = _inked(contrast)
    near = cv2.dilate(ink.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    shaded = float((~near & (contrast > FAINT)).mean())
    changes.append("the paper was made white")
    if (ruled := _ruled(ink)).any():
        ink = ink & ~ruled
        changes.append("ruled lines were removed")
    ink = _without_specks(ink)
    ink, wider = _thickened(ink)
    if wider:
        changes.append(THICKENED)
    share = float(ink.mean())
    doubt = ""
    if not share:
        doubt = NO_STROKES
    elif shaded > SHADED or share > MOST_INK or _stroke_width(ink) > WIDEST * max(ink.shape):
        doubt = (
            "This looks like a photo or a filled shape rather than a line drawing: draw outlines "
            "on plain paper."
        )
    return Cleaned(pixels, doubt=doubt) if doubt else Cleaned(_drawn(ink), tuple(changes))


def _reduced(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "u v 3"]:
    """The picture with a longer side of at most `LARGEST`; lines stay at least a pixel wide."""
    factor = max(pixels.shape[:2]) / LARGEST
    if factor <= 1:
        return pixels
    # The darkest and the lightest values near each pixel, so that thin lines of either kind stay.
    size = max(1, int(factor)) | 1
    kernel = np.ones((size, size), np.uint8)
    dark = np.median(_border(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))) >= 128
    kept = cv2.erode(pixels, kernel) if dark else cv2.dilate(pixels, kernel)
    shape = (round(pixels.shape[1] / factor), round(pixels.shape[0] / factor))
    return cv2.resize(kept, shape, interpolation=cv2.INTER_AREA)


def _border(grey: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, " n"]:
    margin = max(1, min(grey.shape) // 50)
    rows, columns = grey[[*range(margin), *range(-margin, 0)]], grey[:, [*range(margin)]]
    return np.concatenate([rows.ravel(), columns.ravel(), grey[:, -margin:].ravel()])


def _is_clean(grey: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether it is dark lines on white, and nothing else but soft edges of these lines."""
    dark, paper = grey < 128, grey >= CLEAN_PAPER
    near = cv2.dilate(dark.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    white = np.quantile(_border(grey), 0.3) >= CLEAN_PAPER and paper.mean() >= CLEAN_SHARE
    return bool(white and (~paper & ~near).mean() <= OTHER and not _ruled(dark).any())


def _contrast(grey: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """How much darker each pixel is than the paper around it, as a share of the paper, 0 to 1."""
    side = max(grey.shape)
    size = max(3, side // 16) | 1
    smooth = cv2.medianBlur(grey, 3)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    paper = cv2.GaussianBlur(cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, kernel), (0, 0), size / 4)
    paper = np.maximum(paper, 1).astype(np.float32)
    return np.clip(1 - cv2.GaussianBlur(grey, (0, 0), side / 1500 + 0.3) / paper, 0, 1)


def _inked(contrast: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Otsu's threshold, among pixels that are darker than the grain of the paper."""
    grain = float(np.median(contrast)) + 3 * float(
        np.median(np.abs(contrast - np.median(contrast)))
    )
    darker = contrast[contrast > max(FAINT / 2, grain)]
    if not darker.size:
        return np.zeros(contrast.shape, bool)
    levels = np.clip(darker / max(float(darker.max()), 1e-6) * 255, 0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(levels.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    # Less than Otsu's value: strokes vary in pressure, and the paper has been taken out already.
    threshold = max(FAINT / 2, grain, 0.7 * otsu / 255 * float(darker.max()))
    return contrast > threshold


def _ruled(ink: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Thin straight lines across the paper, if at least three are parallel to one of its sides."""
    found = np.zeros(ink.shape, bool)
    mask = ink.astype(np.uint8)
    for axis in (0, 1):
        length = max(9, int(0.4 * ink.shape[1 - axis]))
        kernel = np.ones((1, length) if axis == 0 else (length, 1), np.uint8)
        # Paper is rarely photographed straight: gaps of a few pixels are closed across the line.
        across = np.ones((3, 1) if axis == 0 else (1, 3), np.uint8)
        lines = cv2.morphologyEx(cv2.dilate(mask, across), cv2.MORPH_OPEN, kernel)
        if not lines.any():
            continue
        count, labels, stats, _ = cv2.connectedComponentsWithStats(lines)
        sides = [cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]
        thick, long = sides if axis == 0 else sides[::-1]
        thin = [
            i
            for i in range(1, count)
            if stats[i, thick] <= 0.02 * max(ink.shape)
            and stats[i, long] >= 0.8 * ink.shape[1 - axis]
        ]
        if len(thin) >= 3:
            found |= np.isin(labels, thin)
    if not found.any():
        return found
    # A stroke that crosses a line stays where it continues on both sides of it.
    rest = (ink & ~found).astype(np.uint8)
    bridged = cv2.morphologyEx(rest, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)).astype(bool)
    return found & ~(bridged & ink)


def _without_specks(ink: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Without spots whose longer side is below `SPECK` of the picture's."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8), connectivity=8)
    if count == 1:
        return ink
    sides = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    kept = sides >= SPECK * max(ink.shape)
    kept[0] = False
    if not kept.any():
        kept[1:] = True
    return kept[labels]


def _stroke_width(ink: Bool[np.ndarray, "h w"]) -> float:
    """The median width of strokes in pixels, from their area and outline; 0 without ink."""
    if not ink.any():
        return 0.0
    distance = cv2.distanceTransform(ink.astype(np.uint8), cv2.DIST_L2, 3)
    ridge = (distance == cv2.dilate(distance, np.ones((3, 3), np.uint8))) & ink
    return float(2 * np.median(distance[ridge]) - 1)


def _thickened(ink: Bool[np.ndarray, "h w"]) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """Strokes below half of `WIDTH` get `WIDTH`; and whether they were so thin."""
    width = _stroke_width(ink)
    if not width:
        return ink, False
    side = max(np.ptp(np.flatnonzero(ink.any(axis=axis))) + 1 for axis in (0, 1))
    if width >= WIDTH * side / 2:
        return ink, False
    size = max(2, round(WIDTH * side - width) + 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.dilate(ink.astype(np.uint8), kernel).astype(bool), True


def _drawn(ink: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(np.where(ink, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
