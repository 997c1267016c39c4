"""P x K batches: each class at most once in a batch, with both sketches and photos."""

import jax
import numpy as np
import pytest

from data_pipelines import loading
from tests.data_pipelines.test_loading import SIZE, assert_same, make_items, take


def group_batches(sizes=(3, 1, 2, 4, 2), batch_size=4, **options):
    return loading.train_batches(
        make_items("sketch", sizes),
        make_items("photo", sizes),
        kind="class_group:2",
        image_size=SIZE,
        batch_size=batch_size,
        seed=0,
        workers=0,
        **options,
    )


def test_the_class_groups_of_a_batch_differ_in_class():
    for batch in take(group_batches(), 5):
        assert batch["sketches"].shape == batch["photos"].shape == (4, 2, SIZE, SIZE, 3)
        np.testing.assert_array_equal(batch["sketch_labels"], batch["photo_labels"])
        assert len(set(batch["sketch_labels"].ravel().tolist())) == 4


def test_concatenated_class_groups_of_two_processes_equal_one_batch():
    whole = take(group_batches(), 3)
    halves = [take(group_batches(batch_size=2, shard_index=i, shard_count=2), 3) for i in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        assert_same(batch, joined)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_a_wrong_number_of_class_groups_is_an_error(batch_size):
    with pytest.raises(ValueError, match=f"batch of {batch_size} groups.* from 2 to 5"):
        group_batches(batch_size=batch_size)


def test_a_class_without_photos_cannot_be_grouped():
    with pytest.raises(ValueError, match="1 of 3 seen classes have no photo: class 1"):
        loading.train_batches(
            make_items("sketch", (2, 2, 2)), make_items("photo", (2, 0, 2)),
            kind="class_group", image_size=SIZE, batch_size=2, seed=0, workers=0,
        )  # fmt: skip
