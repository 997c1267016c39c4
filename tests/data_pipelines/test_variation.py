"""Variants of training images: the same for the same number, of their size, on their ground."""

import numpy as np
import pytest

from data_pipelines.variation import variant


@pytest.fixture(scope="module")
def drawing():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[20:44, 30:32] = image[20:22, 20:44] = 0
    return image


def varied(image, modality, number):
    return variant(image, modality, np.random.default_rng(number))


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_a_variant_depends_on_image_and_generator_alone(drawing, modality):
    kept = drawing.copy()
    found = [varied(drawing, modality, number) for number in (1, 1, 2)]
    assert {x.shape for x in found} == {(64, 64, 3)} and found[0].dtype == np.uint8
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2]) and not np.array_equal(found[0], drawing)
    np.testing.assert_array_equal(drawing, kept)


def test_sketches_keep_their_strokes_on_white_without_colour(drawing):
    for number in range(40):
        image = varied(drawing, "sketch", number)
        assert np.ptp(image, axis=2).max() == 0
        ink = (255 - image[..., 0].astype(float)).sum() / (255.0 - drawing[..., 0]).sum()
        assert 0.4 < ink < 4
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert border.min() == 255


def test_photos_keep_a_part_of_the_scene():
    # A ramp: a crop of it is a ramp, which no border of one colour breaks.
    ramp = np.repeat(np.linspace(40, 200, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    for number in range(40):
        row = varied(ramp, "photo", number)[32, :, 0].astype(int)
        assert (np.diff(row) >= -1).all() and row[-1] - row[0] > 30
