"""Ground-truth correspondence of doodles."""

import cv2
import numpy as np
import pytest

from data_pipelines.builders.doodles import generation, truth
from data_pipelines.builders.doodles.classes import SEEN, UNSEEN
from data_pipelines.images import prepare_sketch

INSTANCES = [(UNSEEN[0], 3), (UNSEEN[4], 0), (SEEN[7], 11)]


@pytest.mark.parametrize("canvas", [(64, 64), (90, 150), (200, 80)])
@pytest.mark.parametrize("size", [64, 224])
def test_points_of_a_prepared_sketch_map_back_to_the_canvas(canvas, size):
    """Dots on the canvas are mapped back from the prepared sketch to their position."""
    rng = np.random.default_rng(size + canvas[0])
    image = np.full((*canvas, 3), 255, np.uint8)
    corners = rng.integers(8, np.array(canvas) - 8, (2, 2))
    for row, column in corners:
        image[row - 2 : row + 3, column - 2 : column + 3] = 0
    prepared = prepare_sketch(image, size)
    count, _, _, centres = cv2.connectedComponentsWithStats((prepared[..., 0] < 128).astype("u1"))
    back = truth.from_prepared(image, centres[1:] + 0.5, size)
    assert count == 3
    for row, column in corners:
        far = np.abs(back - [column + 0.5, row + 0.5]).max(axis=1).min()
        assert far < 0.75


@pytest.mark.parametrize("instance", INSTANCES)
def test_strokes_lie_on_the_objects_outline_in_the_photo(instance):
    """Most ink maps to within 3 of 64 pixels of an outline of the posed parts."""
    canvas = generation.render(*instance, "sketch")
    rows, columns = np.nonzero(canvas.sum(axis=2) <= 300)
    points = np.stack([columns + 0.5, rows + 0.5, np.full(len(rows), 64)], axis=1) / 64
    traced = points @ truth.to_photo(*instance)
    outlines = np.full((64, 64), 255, np.uint8)
    for part in generation.posed(*instance):
        for loop in part.loops:
            closed = not part.width
            cv2.polylines(outlines, [np.round(loop * 64).astype(np.int32)], closed, 0)
    distance = cv2.distanceTransform(outlines, cv2.DIST_L2, 5)
    at = np.clip((traced * 64).astype(int), 0, 63)
    assert np.mean(distance[at[:, 1], at[:, 0]] <= 3) > 0.9


def test_only_inked_cells_have_a_position_in_the_photo():
    places, inked = truth.true_places(*INSTANCES[0], 8)
    assert places.shape == (64, 2)
    ink = prepare_sketch(generation.render(*INSTANCES[0], "sketch"), 64).sum(axis=2) <= 300
    cells = ink.reshape(8, 8, 8, 8).sum(axis=(1, 3)).reshape(-1)
    np.testing.assert_array_equal(inked, cells >= 1.28)
    assert 5 < inked.sum() < 64
    assert np.isfinite(places[inked]).all()
    assert np.isnan(places[~inked]).all()
    assert (np.abs(places[inked] - 4) < 4.5).all()


def test_positions_do_not_depend_on_the_image_size():
    fine, inked = truth.true_places(*INSTANCES[1], 2, size=64)
    large, _ = truth.true_places(*INSTANCES[1], 2, size=128)
    np.testing.assert_allclose(fine[inked], large[inked], atol=0.1)
