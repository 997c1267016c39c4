"""Which images are for training, queries and gallery in each zero-shot setting."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import (
    clip_sketchy_split2,
    cross_sketchy_tuberlin,
    default,
    domainnet,
    sketchy,
    sketchy_fine_grained,
    sketchy_generalized,
)
from data_pipelines import loading, prepared, splits
from zse_jax.evaluation import data_selection

PHOTOS, SKETCHES = 10, 4


def items(name, modality, classes, **_):
    """Ten photos a class, eight of them drawn; sketches of the first four, the last unpaired."""
    count = PHOTOS if modality == "photo" else SKETCHES
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), count)
    numbers = np.tile(np.arange(count), len(classes))
    stems = [f"{classes[c]}_{i}" for c, i in zip(labels, numbers, strict=True)]
    if modality == "photo":
        instances = [s if i < 8 else "" for s, i in zip(stems, numbers, strict=True)]
    else:
        instances = [s if i < 3 else "lost" for s, i in zip(stems, numbers, strict=True)]
    names = tuple(f"{modality}/{stem}.png" for stem in stems)
    return loading.Items(
        modality, [], np.arange(len(labels)), labels, tuple(classes), tuple(instances), names
    )


@pytest.fixture(autouse=True)
def _no_files(monkeypatch):
    monkeypatch.setattr(loading, "load_items", items)


def classes_of(found):
    return {found.class_names[label] for label in np.unique(found.labels)}


def test_category_level_trains_on_seen_and_ranks_unseen():
    config = sketchy.get_config()
    split = splits.get("sketchy_split1")
    sketches, photos = data_selection.training_items(config)
    assert classes_of(sketches) == classes_of(photos) == set(split.seen)
    evaluated = data_selection.evaluated_items(config, 1, 1)
    assert classes_of(evaluated.sketches) == classes_of(evaluated.photos) == set(split.unseen)
    assert evaluated.notes == {
        "data": "sketchy", "split": "sketchy_split1", "strides": (1, 1),
        "file_lists": "none, sorted by name",
    }  # fmt: skip


def test_images_are_prepared_for_the_system_of_the_config():
    for made, expected in ((sketchy, "crop"), (clip_sketchy_split2, "pad")):
        config = made.get_config()
        found = [*data_selection.training_items(config)]
        found += data_selection.evaluated_items(config, 1, 1)[:2]
        assert {items.preprocessing for items in found} == {expected}


def test_held_out_classes_neither_train_nor_are_tested():
    config = sketchy.get_config("evaluation.classes=held_out")
    split = splits.get("sketchy_split1")
    trained = classes_of(data_selection.training_items(config)[1])
    selecting = data_selection.evaluated_items(config, 1, 1, selection=True)
    test = data_selection.evaluated_items(config, 1, 1)
    held_out = classes_of(selecting.photos)
    assert len(held_out) == 10 and selecting.notes["classes"] == "validation"
    assert trained | held_out == set(split.seen) and not trained & held_out
    assert classes_of(test.photos) == set(split.unseen) and "classes" not in test.notes
    assert "validation classes" in data_selection.selection_note(config)
    again = sketchy.get_config("evaluation.classes=held_out,data.held_out_seed=1")
    assert (
        classes_of(data_selection.evaluated_items(again, 1, 1, selection=True).photos) != held_out
    )


def test_a_generalized_gallery_has_the_held_out_classes_too():
    config = sketchy_generalized.get_config("evaluation.classes=held_out")
    photos = data_selection.evaluated_items(config, 1, 1).photos
    assert len(photos.class_names) == 125


def test_strides_take_every_nth_in_the_published_order():
    evaluated = data_selection.evaluated_items(sketchy.get_config(), 20, 10)
    every = items("sketchy", "photo", splits.get("sketchy_split1").unseen)
    assert evaluated.photos.names == every.names[::10]
    assert len(evaluated.sketches) == 25 * SKETCHES // 20


def test_held_out_photos_are_in_the_gallery_and_not_trained_on():
    config = sketchy_generalized.get_config()
    _, photos = data_selection.training_items(config)
    evaluated = data_selection.evaluated_items(config, 1, 1)
    gallery = evaluated.photos
    assert classes_of(evaluated.sketches) == set(splits.get("sketchy_split1").unseen)
    assert classes_of(gallery) == set(splits.get("sketchy_split1").classes)
    assert not set(photos.names) & set(gallery.names)
    assert len(gallery) == 25 * PHOTOS + 100 * PHOTOS // 5
    assert len(photos) == 100 * PHOTOS * 4 // 5
    assert gallery.class_names[:25] == evaluated.sketches.class_names
    assert evaluated.notes["held_out"] == 0.2


def test_another_seed_holds_out_other_photos():
    photos = items("sketchy", "photo", ["ant", "zebra"])
    first, again, second = (
        data_selection.held_out_photos(photos, 0.2, s).tolist() for s in (0, 0, 1)
    )
    assert first == again != second
    assert len(first) == 4


def test_a_few_images_of_each_class_train():
    def trained(*changes):
        return data_selection.training_items(sketchy.get_config(",".join(changes)))

    few, more = trained("images_per_class=2"), trained("images_per_class=3")
    for some, others in zip(few, more, strict=True):
        assert np.bincount(some.labels).tolist() == [2] * 100
        assert set(some.names) < set(others.names)
    assert few[1].names == trained("images_per_class=2")[1].names
    assert few[1].names != trained("images_per_class=2", "held_out_seed=1")[1].names
    assert len(trained("images_per_class=7")[0]) == 100 * SKETCHES
    with pytest.raises(ValueError, match="images_per_class=0 must be at least 1"):
        trained("images_per_class=0")


def test_copies_of_a_photo_are_held_out_together():
    photos = items("sketchy", "photo", ["ant"])
    twice = photos.select([*range(PHOTOS), *range(PHOTOS)])
    held_out = set(data_selection.held_out_photos(twice, 0.2, 0).tolist())
    assert {(i + PHOTOS) % (2 * PHOTOS) for i in held_out} == held_out


def test_the_gallery_may_hold_all_seen_photos():
    config = sketchy_generalized.get_config("seen_gallery=all,held_out=0.0")
    assert len(data_selection.evaluated_items(config, 1, 1).photos) == 125 * PHOTOS
    assert len(data_selection.training_items(config)[1]) == 100 * PHOTOS


def test_across_data_sets_no_class_was_trained_on(caplog):
    config = cross_sketchy_tuberlin.get_config()
    evaluated = data_selection.evaluated_items(config, 1, 1)
    seen = {splits.normalised(name) for name in splits.get("sketchy_split1").seen}
    ranked = classes_of(evaluated.sketches)
    assert ranked < set(splits.get("tuberlin").unseen)
    assert not {splits.normalised(name) for name in ranked} & seen
    assert evaluated.notes["excluded"]["hot air balloon"] == "hot-air_balloon"
    assert "hot air balloon (trained on as hot-air_balloon)" in caplog.text
    assert evaluated.notes["trained_on"] == "sketchy_split1"


def test_fine_grained_ranks_sketches_whose_photo_is_there():
    config = sketchy_fine_grained.get_config()
    evaluated = data_selection.evaluated_items(config, 1, 1)
    assert len(evaluated.sketches) == 21 * 3
    assert len(evaluated.photos) == 21 * 8
    assert evaluated.notes["sketches_without_their_photo"] == 21
    queries, gallery = data_selection.instance_numbers(evaluated.sketches, evaluated.photos)
    for number, name in zip(queries, evaluated.sketches.instances, strict=True):
        assert [evaluated.photos.instances[i] for i in np.flatnonzero(gallery == number)] == [name]


def test_a_fine_grained_stride_thins_the_photos_first():
    evaluated = data_selection.evaluated_items(sketchy_fine_grained.get_config(), 1, 4)
    assert set(evaluated.sketches.instances) <= set(evaluated.photos.instances)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.protocol": "fine"}, "protocol='fine': choose one of category, fine_grained"),
        ({"evaluation.seen_gallery": "some"}, "seen_gallery='some': choose one of none, held_out"),
        ({"evaluation.seen_gallery": "held_out"}, "set config.data.held_out to their share"),
        ({"data.split": "tuberlin"}, "'tuberlin' is for the data set 'tuberlin', not for 'ske"),
        ({"data.split": None}, "nothing to evaluate: all classes of 'sketchy'"),
        (
            {"evaluation.seen_gallery": "all", "target.name": "tuberlin"},
            "target.name and config.evaluation.seen_gallery exclude each other",
        ),
    ],
)
def test_invalid_settings_are_an_error_with_the_remedy(changes, message):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        data_selection.evaluated_items(config, 1, 1)


def own_data(monkeypatch, classes, unseen):
    """The config of a folder of a user's own images with these classes."""
    index = SimpleNamespace(class_names=classes)
    monkeypatch.setattr(prepared, "prepare", lambda *args, **kwargs: None)
    monkeypatch.setattr(prepared, "open_split", lambda folder, modality: (None, index))
    config = default.get_config()
    config.update_from_flattened_dict(
        {"data.split": None, "data.name": "folder", "data.unseen": unseen}
    )
    return config


def test_unseen_classes_are_named_in_any_encoding_and_with_commas(monkeypatch):
    classes = ["Caf\u00e9", "cat", "salt, pepper"]
    config = own_data(monkeypatch, classes, 'Cafe\u0301, "salt, pepper"')
    split = data_selection.split_of(config, config.data)
    assert (split.seen, split.unseen) == (("cat",), ("Caf\u00e9", "salt, pepper"))


@pytest.mark.parametrize(("unseen", "warned"), [("a", True), ("a,b", False)])
def test_a_gallery_of_one_class_is_warned_of(monkeypatch, caplog, unseen, warned):
    data_selection.evaluated_items(own_data(monkeypatch, ["a", "b", "c", "d"], unseen), 1, 1)
    assert ("of one class, a: every ranking of them is perfect" in caplog.text) == warned


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_a_share_must_be_between_0_and_1(share):
    config = default.get_config()
    config.data.held_out = share
    with pytest.raises(ValueError, match="held_out=.* must be a share between 0 and 1"):
        data_selection.training_items(config)


def test_fine_grained_without_pairs_is_an_error(monkeypatch):
    def unpaired(*args, **kwargs):
        found = items(*args, **kwargs)
        return loading.dataclasses.replace(found, instances=("",) * len(found))

    monkeypatch.setattr(loading, "load_items", unpaired)
    with pytest.raises(ValueError, match=r"none of the 84 sketches .* instance pairs"):
        data_selection.evaluated_items(sketchy_fine_grained.get_config(), 1, 1)
    with pytest.raises(ValueError, match="none of the 104 seen classes has 2 pairs"):
        loading.train_batches(
            *data_selection.training_items(sketchy_fine_grained.get_config()),
            kind="instance_quadruplet", image_size=8, batch_size=1, seed=0, workers=0,
        )  # fmt: skip


def test_sketches_of_one_photo_are_known():
    sketches = items("sketchy", "sketch", ["ant", "bee"])
    named = loading.dataclasses.replace(
        sketches, instances=("a", "a", "", "", *sketches.instances[4:])
    )
    drawn = data_selection.photos_drawn(named.select([0, 1, 2, 3, SKETCHES, SKETCHES + 1]))
    assert drawn.tolist() == [0, 0, 1, 2, 3, 4]
    assert data_selection.photos_drawn(named.select([0, 2, 3])) is None


@pytest.fixture
def lists(tmp_path):
    """Published lists of Sketchy's split 1, shuffled within a class; some images are in none."""
    folder = tmp_path / "zeroshot1"
    folder.mkdir()
    split = splits.get("sketchy_split1")
    rng = np.random.default_rng(0)
    for part, classes, left_out in (("train", split.seen, 1), ("zero", split.unseen, 0)):
        for modality, name in (("sketch", "sketch_tx_000000000000_ready"), ("photo", "all_photo")):
            lines = []
            for number, class_name in enumerate(classes):
                count = len(items("sketchy", modality, [class_name]))
                lines += [
                    f"any/{modality}_ready/{class_name}/{class_name}_{i}.png {number}"
                    for i in rng.permutation(count)[left_out:]
                ]
            (folder / f"{name}_filelist_{part}.txt").write_text("\n".join(lines) + "\n")
    (folder / "photo_tx_000000000000_ready_filelist_train.txt").write_text("")  # not the extended
    return folder


def in_folders(*args, **kwargs):
    """Items whose class is the folder of their name, as in the data sets."""
    found = items(*args, **kwargs)
    names = tuple(
        name.replace("/", f"/{found.class_names[label]}/")
        for name, label in zip(found.names, found.labels, strict=True)
    )
    return loading.dataclasses.replace(found, names=names)


def test_published_lists_decide_membership_and_order(monkeypatch, lists):
    monkeypatch.setattr(loading, "load_items", in_folders)
    config = sketchy.get_config()
    config.data.lists = str(lists)
    evaluated = data_selection.evaluated_items(config, 20, 1)
    assert evaluated.notes["file_lists"] == "zeroshot1"

    def listed(name):
        return [x.rpartition(" ")[0].split("/")[-1] for x in (lists / name).read_text().split("\n")]

    found = [name.split("/")[-1] for name in evaluated.sketches.names]
    assert found == listed("sketch_tx_000000000000_ready_filelist_zero.txt")[:-1:20]
    sketches, photos = data_selection.training_items(config)
    assert (len(sketches), len(photos)) == (100 * (SKETCHES - 1), 100 * (PHOTOS - 1))
    config.evaluation.seen_gallery = "all"
    gallery = data_selection.evaluated_items(config, 1, 1).photos
    assert len(gallery) == 25 * PHOTOS + 100 * (PHOTOS - 1)
    config.evaluation.seen_gallery = "none"
    config.data.split = "sketchy_split2"
    with pytest.raises(ValueError, match="Use the lists of this data set and split"):
        data_selection.evaluated_items(config, 1, 1)
    config.data.split = "sketchy_split1"
    (lists / "all_photo_filelist_zero.txt").unlink()
    with pytest.raises(FileNotFoundError, match="one list of photo images for the part 'zero'"):
        data_selection.evaluated_items(config, 1, 1)


def test_checkpoints_are_selected_by_the_validation_classes_of_the_protocol():
    config, split = domainnet.get_config(), splits.get("domainnet")
    sketches, photos = data_selection.training_items(config)
    assert classes_of(sketches) == classes_of(photos) == set(split.seen)
    selecting = data_selection.evaluated_items(config, 1, 1, selection=True)
    tested = data_selection.evaluated_items(config, 1, 1)
    assert classes_of(selecting.photos) == set(split.validation)
    assert classes_of(tested.photos) == set(split.unseen)
    assert "on the validation classes" in data_selection.selection_note(config)


def test_selection_on_the_unseen_classes_is_stated():
    config = sketchy.get_config()
    config.train.steps, config.evaluation.every = 2000, 667
    expected = "best of 3 evaluations after step 0 by relation/exact/mAP@all on the unseen classes"
    assert data_selection.selection_note(config) == expected
    config.evaluation.every = 0
    assert data_selection.selection_note(config) is None


@pytest.mark.parametrize(
    ("unseen", "count"), [("1%", 1), ("20%", 2), (" 34.5 % ", 3), ("99%", 10), ('"20%"', 1)]
)
def test_a_share_of_the_classes_is_unseen(monkeypatch, unseen, count):
    names = [*"abcdefghi", "20%"]
    config = own_data(monkeypatch, names, unseen)
    split = data_selection.split_of(config, config.data)
    assert len(split.unseen) == count
    assert {*split.seen, *split.unseen} == {*names}
    assert [*split.unseen] == sorted(split.unseen)
    names.reverse()
    assert data_selection.split_of(config, config.data) == split
    config.data.held_out_seed = 1
    assert (data_selection.split_of(config, config.data) == split) == (
        count == 10 or "2" in unseen[1]
    )


@pytest.mark.parametrize("share", ["0%", "100%", "120 %"])
def test_a_share_of_classes_must_be_between_0_and_100(share):
    with pytest.raises(ValueError, match=r"must be between 0% and 100%"):
        splits.share_of(share)
