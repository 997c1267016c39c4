"""Drawings on any plain ground become dark lines on white; clean ones stay as they are."""

import cv2
import numpy as np
import pytest

from tests.benchmarks.distorted_sketches import chalk, photographed
from zse_jax.gallery.sketch_cleaning import WIDTH, clean

SIDE = 400


def drawing(side=SIDE, width=6):
    """A house, with dots for a tree."""
    image = np.full((side, side, 3), 255, np.uint8)
    scale = side / 400
    points = [(100, 320), (100, 180), (200, 90), (300, 180), (300, 320), (100, 320)]
    lines = np.array(points) * scale
    cv2.polylines(image, [lines.astype(np.int32)], False, (0, 0, 0), width)
    cv2.circle(image, (int(200 * scale), int(240 * scale)), int(40 * scale), (0, 0, 0), width)
    for x in range(320, 380, 15):
        cv2.circle(image, (int(x * scale), int(140 * scale)), width, (0, 0, 0), -1)
    return image


def ruled(image, rng):
    """Ink on ruled paper with a margin."""
    del rng
    paper = np.full(image.shape, 244.0)
    paper[15::25] = (150, 170, 220)
    paper[:, 60:62] = (230, 140, 140)
    return np.minimum(paper, image + 20.0).astype(np.uint8)


def overlap(found, wanted):
    """Shares of the wanted ink that was found within 3 pixels, and the reverse."""
    near = np.ones((7, 7), np.uint8)
    one, other = ((x[..., 0] < 128).astype(np.uint8) for x in (found, wanted))
    return tuple(
        (cv2.dilate(a, near) & b).sum() / max(1, b.sum()) for a, b in ((one, other), (other, one))
    )


@pytest.mark.parametrize("width", [4, 6, 12])
def test_a_clean_drawing_is_unchanged(width):
    image = drawing(width=width)
    found = clean(image)
    assert found.pixels is image and not found.changes and not found.doubt
    soft = cv2.GaussianBlur(image, (0, 0), 1)
    assert clean(soft).pixels is soft


@pytest.mark.parametrize(
    ("distort", "change"),
    [(photographed, "the paper was made white"), (chalk, "inverted"), (ruled, "made white"),
     (lambda image, rng: 255 - image, "inverted")],
)  # fmt: skip
def test_strokes_survive_and_the_ground_does_not(distort, change):
    image = drawing()
    found = clean(distort(image, np.random.default_rng(0)))
    assert any(change in one for one in found.changes) and not found.doubt
    assert set(np.unique(found.pixels)) == {0, 255}
    assert min(overlap(found.pixels, image)) > 0.97
    again = clean(found.pixels)
    assert again.pixels is found.pixels or again.changes == ("thin lines were thickened",)


def test_dark_ruled_lines_are_removed_and_strokes_across_them_stay():
    image = drawing(width=8)
    lines = image.copy()
    lines[15::40] = 90
    found = clean(lines)
    assert "ruled lines were removed" in found.changes
    both = overlap(found.pixels, image)
    assert both[0] > 0.9 and both[1] > 0.97


def test_thin_lines_of_a_large_scan_are_visible_at_the_size_of_the_network():
    scan = drawing(3000, width=2)
    found = clean(scan)
    assert found.changes == ("thin lines were thickened",)
    ink = found.pixels[..., 0] < 128
    box = max(np.ptp(np.flatnonzero(ink.any(axis=axis))) + 1 for axis in (0, 1))
    width = 2 * np.median(cv2.distanceTransform(ink.astype(np.uint8), cv2.DIST_L2, 3)[ink])
    assert 0.5 * WIDTH < width / box < 2 * WIDTH
    small = np.full((1000, 1000, 3), 255, np.uint8)
    small[300:500, 300:500] = drawing(200, width=2)  # a small drawing on a large canvas
    assert clean(small).pixels is small


@pytest.mark.parametrize("level", [0, 60, 128, 255])
def test_a_ground_without_strokes_is_doubtful(level):
    image = np.full((90, 120, 3), level, np.uint8)
    found = clean(image)
    assert found.pixels is image and not found.changes
    assert ("No strokes" in found.doubt) == (level != 255)


def test_a_picture_full_of_shades_is_doubtful():
    noise = np.random.default_rng(0).normal(size=(4, 240, 240)).astype(np.float32)
    layers = [cv2.GaussianBlur(x, (0, 0), 2.0**i) * 2.0**i for i, x in enumerate(noise, 1)]
    grey = cv2.normalize(sum(layers), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=2)
    found = clean(image)
    assert "rather than a line drawing" in found.doubt and found.pixels is image
    assert not clean(image[:60, :60]).doubt  # a small picture is no scan


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (2000, 3)])
def test_any_shape_is_handled(shape):
    rng = np.random.default_rng(0)
    found = clean(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).pixels
    assert found.dtype == np.uint8 and found.ndim == 3
