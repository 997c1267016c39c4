"""Items, and the streams of batches for training, evaluation and devices."""

import dataclasses
import subprocess
import sys

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from data_pipelines import images, loading, paths, splits
from tests.data_pipelines.conftest import CLASSES, encode

SIZE = 8


def make_items(modality="photo", sizes=(3, 1, 2)):
    """Items in memory whose colour encodes their position and class."""
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    source = [
        encode(np.full((SIZE, SIZE, 3), [150 + i, 150 + label, 255], np.uint8))
        for i, label in enumerate(labels)
    ]
    return loading.Items(
        modality,
        source,
        np.arange(len(labels)),
        labels,
        tuple(f"class {c}" for c in range(len(sizes))),
        tuple("" for _ in labels),
        tuple(f"{i}.png" for i in range(len(labels))),
    )


def train(seed=0, batch_size=3, workers=0, **options):
    return loading.train_batches(
        make_items("sketch"),
        make_items("photo"),
        kind="quadruplet",
        image_size=SIZE,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        **options,
    )


def take(batches, n):
    iterator = iter(batches)
    taken = [next(iterator) for _ in range(n)]
    iterator.close()
    return taken


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Items


def test_every_selects_each_nth_item():
    items = make_items(sizes=(5, 4)).every(4)
    assert items.names == ("0.png", "4.png", "8.png")
    np.testing.assert_array_equal(items.labels, [0, 0, 1])
    assert items.image(1, SIZE)[0, 0, 0] == 154


def test_items_are_preprocessed_for_their_modality():
    drawing = np.full((30, 60, 3), 255, np.uint8)
    drawing[12:18, 12:18] = 0
    for modality in ("sketch", "photo"):
        items = loading.Items(
            modality,
            [encode(drawing)],
            np.zeros(1, np.int64),
            np.zeros(1, np.int32),
            ("a",),
            ("",),
            ("x",),
        )
        for preprocessing in ("crop", "pad"):
            items = dataclasses.replace(items, preprocessing=preprocessing)
            expected = images.PREPARE[modality](drawing, 20, preprocessing)
            np.testing.assert_array_equal(items.image(0, 20), expected)


def test_a_damaged_image_is_named():
    items = make_items()
    items.source[4] = items.source[4][:40]
    with pytest.raises(images.UnreadableImageError, match=r"photo 4\.png cannot be read"):
        items.image(4, SIZE)


def test_triplets_contain_each_sketch_once_per_epoch_in_another_order():
    sketches, photos = make_items("sketch", (3, 1, 4)), make_items("photo", (2, 2, 2))
    batches = loading.train_batches(
        sketches, photos, kind="triplet", image_size=SIZE, batch_size=8, seed=0, workers=0
    )
    first, second = (batch["sketches"][:, 0, 0, 0, 0].tolist() for batch in take(batches, 2))
    assert sorted(first) == sorted(second) == list(range(150, 158))
    assert first != second


# Prepared data sets


def test_items_are_ordered_by_class_then_name(data_dir):
    items = loading.load_items("sketchy", "sketch", ["zebra", "ant"], data_dir=data_dir)
    np.testing.assert_array_equal(items.labels, [0] * 4 + [1] * 4)
    assert list(items.names[:4]) == sorted(items.names[:4])
    assert items.instances[:2] == ("n0124_0", "n0124_0")
    assert [items.image(i, 1)[0, 0, 0] for i in (0, 4)] == [124, CLASSES.index("ant")]


def test_one_prepared_data_set_serves_every_split(data_dir):
    for name in ("sketchy_split1", "sketchy_split2"):
        unseen = splits.get(name).unseen
        photos = loading.load_items("sketchy", "photo", unseen, data_dir=data_dir)
        assert len(photos) == 3 * len(unseen)
        assert photos.class_names == unseen


def test_a_missing_class_suggests_the_nearest(data_dir):
    with pytest.raises(ValueError, match=r"1 of 2 is missing: zebras \(did you mean zebra\?\)"):
        loading.load_items("sketchy", "sketch", ["zebras", "ant"], data_dir=data_dir)


def test_an_unknown_data_set_suggests_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no data set 'sketchi' \(did you mean sketchy\?\)"):
        loading.load_items("sketchi", "sketch", ["ant"], data_dir=tmp_path)


def test_a_missing_data_set_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config.data.manual_dir=DIR"):
        loading.load_items("sketchy", "sketch", ["ant"], data_dir=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(sketchy_source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"Cannot prepare .*--config.data.data_dir"):
        loading.load_items(
            "sketchy", "sketch", ["ant"], data_dir=tmp_path / "file", manual_dir=sketchy_source
        )


def test_a_damaged_index_is_rewritten(data_dir):
    index = data_dir / "sketchy/1.0.0/index_sketch.json"
    loading.load_items("sketchy", "sketch", ["ant"], data_dir=data_dir)
    whole = index.read_text()
    index.write_text('{"format": 1, "rows": [0]}')
    loading.load_items("sketchy", "sketch", ["ant"], data_dir=data_dir)
    assert index.read_text() == whole


def test_a_data_set_on_a_read_only_disk_can_be_read(data_dir, monkeypatch):
    def refuse(path, text):
        raise PermissionError(path)

    monkeypatch.setattr(paths, "replace", refuse)
    (data_dir / "sketchy/1.0.0/index_photo.json").unlink(missing_ok=True)
    assert len(loading.load_items("sketchy", "photo", ["ant"], data_dir=data_dir)) == 3


def test_manual_dir_of_a_generated_data_set_is_an_error(sketchy_source, tmp_path):
    with pytest.raises(ValueError, match="'doodles' .*does not use manual_dir"):
        loading.load_items(
            "doodles", "sketch", ["fish"], data_dir=tmp_path, manual_dir=sketchy_source
        )


@pytest.mark.slow
def test_loading_does_not_import_tensorflow(data_dir):
    program = (
        "import sys; from data_pipelines import loading;"
        f"items = loading.load_items('sketchy', 'photo', ['ant'], data_dir={str(data_dir)!r});"
        "batches = loading.evaluation_batches(items, image_size=8, batch_size=2);"
        "assert len(list(batches)) == 2; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Training


def test_a_training_batch_contains_pairs_and_their_labels():
    batch = next(iter(train()))
    assert batch["sketches"].shape == batch["photos"].shape == (3, 2, SIZE, SIZE, 3)
    assert batch["sketches"].dtype == np.uint8
    assert batch["sketch_labels"].dtype == batch["photo_labels"].dtype == np.int32
    for modality in ("sketch", "photo"):
        images_name = "sketches" if modality == "sketch" else "photos"
        shown = batch[images_name][:, :, 0, 0, 1].astype(int) - 150
        np.testing.assert_array_equal(shown, batch[f"{modality}_labels"])
    np.testing.assert_array_equal(batch["sketch_labels"][:, 0], batch["photo_labels"][:, 0])
    assert (batch["photo_labels"][:, 0] != batch["photo_labels"][:, 1]).all()


def test_batches_are_a_function_of_the_seed():
    assert_same(take(train(seed=3), 3), take(train(seed=3), 3))
    assert any(
        (a["sketches"] != b["sketches"]).any()
        for a, b in zip(take(train(seed=3), 3), take(train(seed=4), 3), strict=True)
    )


def test_a_restored_state_continues_with_the_same_batches():
    iterator = iter(train())
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(2)]
    resumed = iter(train())
    next(resumed)
    resumed.set_state(state)
    assert_same([next(resumed) for _ in range(2)], expected)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_worker_processes_give_the_same_batches_and_resume_the_state_of_threads(workers):
    expected = take(train(), 6)
    iterator = iter(train(workers=workers))
    iterator.set_state({"next_index": 2})
    assert_same([next(iterator) for _ in range(4)], expected[2:])
    iterator.close()


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3))
def test_concatenated_shards_equal_the_batch_of_one_process(shard_count, batch_size):
    whole = take(train(batch_size=shard_count * batch_size), 2)
    shards = [
        take(train(batch_size=batch_size, shard_index=s, shard_count=shard_count), 2)
        for s in range(shard_count)
    ]
    for batch, parts in zip(whole, zip(*shards, strict=True), strict=True):
        assert_same(batch, jax.tree.map(lambda *a: np.concatenate(a), *parts))


@pytest.mark.slow
def test_a_worker_process_names_a_damaged_image():
    sketches, photos = make_items("sketch"), make_items("photo")
    photos.source[:] = [encoded[:40] for encoded in photos.source]
    batches = loading.train_batches(
        sketches, photos, kind="quadruplet", image_size=8, batch_size=1, seed=0, workers=1
    )
    with pytest.raises(images.UnreadableImageError, match=r"photo \d\.png cannot be read"):
        next(iter(batches))


@pytest.mark.parametrize(
    ("sketch_sizes", "photo_sizes", "message"),
    [
        ((3,), (3,), "at least two seen classes"),
        ((2, 0, 1), (1, 1, 1), "1 of 3 seen classes have no sketch: class 1"),
        ((2, 1), (1, 0), "1 of 2 seen classes have no photo: class 1"),
        ((2, 1), (1, 1, 1), "class 2"),
    ],
)
def test_classes_that_cannot_train_are_named(sketch_sizes, photo_sizes, message):
    with pytest.raises(ValueError, match=message):
        loading.train_batches(
            make_items("sketch", sketch_sizes),
            make_items("photo", photo_sizes),
            kind="quadruplet",
            image_size=SIZE,
            batch_size=1,
            seed=0,
            workers=0,
        )


def test_an_unknown_sampler_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"no sampler 'pair'.*quadruplet"):
        loading.train_batches(
            make_items("sketch"),
            make_items("photo"),
            kind="pair",
            image_size=SIZE,
            batch_size=1,
            seed=0,
            workers=0,
        )


def instance_items(modality, sizes):
    """Items with one instance each."""
    items = make_items(modality, sizes)
    return dataclasses.replace(items, instances=tuple(f"i{n}" for n in range(len(items))))


def test_instance_groups_of_a_batch_differ_in_class():
    batches = loading.train_batches(
        instance_items("sketch", (3, 4, 5)),
        instance_items("photo", (3, 4, 5)),
        kind="instance_group:3",
        image_size=SIZE,
        batch_size=2,
        seed=0,
        workers=0,
    )
    for _, batch in zip(range(5), batches, strict=False):
        assert batch["sketches"].shape == batch["photos"].shape == (2, 3, SIZE, SIZE, 3)
        np.testing.assert_array_equal(batch["sketch_labels"], batch["photo_labels"])
        assert (batch["photo_labels"] == batch["photo_labels"][:, :1]).all()
        assert len(set(batch["photo_labels"][:, 0].tolist())) == 2


def test_a_class_with_too_few_pairs_for_a_group_is_named():
    with pytest.raises(ValueError, match=r"Groups of 4 .* 1 class has fewer: class 0 \(3\)"):
        loading.train_batches(
            instance_items("sketch", (3, 4)),
            instance_items("photo", (3, 4)),
            kind="instance_group",
            image_size=SIZE,
            batch_size=2,
            seed=0,
            workers=0,
        )


# Evaluation


def test_evaluation_pads_the_last_batch_and_masks_it():
    batches = loading.evaluation_batches(make_items(), image_size=SIZE, batch_size=4)
    assert len(batches) == 2
    first, last = batches
    assert first["image"].shape == last["image"].shape == (4, SIZE, SIZE, 3)
    np.testing.assert_array_equal(first["mask"], [True] * 4)
    np.testing.assert_array_equal(last["mask"], [True, True, False, False])
    assert not last["image"][2:].any()
    assert (last["label"].dtype, last["mask"].dtype) == (np.int32, np.bool_)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 4))
def test_concatenated_shards_contain_every_item_once_in_order(sizes, batch_size, shard_count):
    items = make_items(sizes=[*sizes, 1])
    shards = [
        list(
            loading.evaluation_batches(
                items, image_size=1, batch_size=batch_size, shard_index=s, shard_count=shard_count
            )
        )
        for s in range(shard_count)
    ]
    batches = [batch for step in zip(*shards, strict=True) for batch in step]
    mask = np.concatenate([batch["mask"] for batch in batches])
    seen = np.concatenate([batch["image"] for batch in batches])[mask, 0, 0, 0] - 150
    np.testing.assert_array_equal(seen, np.arange(len(items)))
    labels = np.concatenate([batch["label"] for batch in batches])[mask]
    np.testing.assert_array_equal(labels, items.labels)


def test_evaluating_on_no_items_is_an_error():
    with pytest.raises(ValueError, match="no photo to evaluate on"):
        loading.evaluation_batches(make_items().select([]), image_size=SIZE, batch_size=4)


# Devices


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def test_batches_on_the_devices_are_the_same_and_sharded(sharding):
    batches = train(batch_size=8)
    moved = take(loading.to_device(batches, sharding), 2)
    assert_same(moved, take(batches, 2))
    assert moved[0]["photos"].sharding == sharding


def test_a_finite_stream_keeps_its_length_on_the_devices(sharding):
    batches = loading.evaluation_batches(make_items(sizes=(9,)), image_size=SIZE, batch_size=8)
    moved = loading.to_device(batches, sharding)
    assert len(moved) == len(list(moved)) == 2


def test_prefetched_batches_are_not_lost_by_a_restart(sharding, tmp_path):
    iterator = iter(loading.to_device(train(batch_size=8), sharding, buffer_size=2))
    next(iterator)
    assert iterator.get_state() == {"next_index": 1}
    handler = grain.checkpoint.CheckpointHandler()
    handler.save(tmp_path, iterator)
    expected = next(iterator)
    restarted = iter(loading.to_device(train(batch_size=8), sharding))
    assert_same(next(handler.restore(tmp_path, restarted)), expected)
    restarted.close()
    iterator.close()
