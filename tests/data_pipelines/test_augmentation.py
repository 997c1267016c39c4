"""Augmentation of training batches: pairs are mirrored and shifted together."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import loading
from tests.data_pipelines.conftest import encode
from tests.data_pipelines.test_loading import SIZE, assert_same, instance_items, take, train


def pictures(modality):
    """Ten instances of each of two classes: left half dark, a bar of the instance's brightness."""
    items = instance_items(modality, (10, 10))
    drawn = []
    for i in range(20):
        image = np.full((SIZE, SIZE, 3), 200, np.uint8)
        image[:, : SIZE // 2] = 5 * i
        drawn.append(encode(image))
    return dataclasses.replace(items, source=drawn)


def test_augmented_pairs_change_equally_and_the_samples_stay_the_same():
    def batches(**options):
        made = loading.train_batches(
            pictures("photo"), pictures("photo"), kind="instance_group:4", image_size=SIZE,
            batch_size=2, seed=0, workers=0, **options,
        )  # fmt: skip
        return take(made, 4)

    plain, augmented = batches(), batches(augment=0.25)
    assert_same(augmented, batches(augment=0.25))
    sides = []
    for before, after in zip(plain, augmented, strict=True):
        np.testing.assert_array_equal(before["sketch_labels"], after["sketch_labels"])
        sides.append(after["photos"][..., SIZE // 2, 0, 0] < 150)
        darkest = [x["photos"].min(axis=(2, 3, 4)) for x in (before, after)]
        np.testing.assert_array_equal(*darkest)
        np.testing.assert_array_equal(
            after["sketches"], after["photos"]
        )  # equal before, equal after
        assert (before["photos"] != after["photos"]).any()
    assert 0 < np.mean(sides) < 1


@pytest.mark.parametrize("augment", [-0.1, 0.6])
def test_augment_must_be_a_fraction_of_the_side(augment):
    with pytest.raises(ValueError, match=f"augment={augment} must be a fraction"):
        train(augment=augment)
