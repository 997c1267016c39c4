"""What a checkpoint was trained on, compared with what an evaluation ranks."""

import dataclasses

import numpy as np
import pytest

from configs import default, sketchy_generalized
from data_pipelines import loading, splits
from zse_jax.evaluation import data_selection, training_record
from zse_jax.evaluation.training_record import TrainedError
from zse_jax.training import step

EACH = 10
FOLDER = ("apple", "boat", "car", "door", "eye", "fish")


def items(name, modality, classes, **_):
    """A few images of each class of a folder: their content is their name."""
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), EACH)
    names = tuple(f"{modality}/{classes[x]}/{i % EACH}" for i, x in enumerate(labels))
    rows = np.arange(len(labels))
    encoded = [name.encode() for name in names]
    return loading.Items(modality, encoded, rows, labels, tuple(classes), names, names)


@pytest.fixture(autouse=True)
def _no_files(monkeypatch):
    def split_of(config, data):
        if data.split is not None:
            return splits.get(data.split)
        unseen = tuple(data.unseen.split(","))
        return splits.Split(data.name, tuple(x for x in FOLDER if x not in unseen), unseen)

    monkeypatch.setattr(loading, "load_items", items)
    monkeypatch.setattr(data_selection, "split_of", split_of)


def folder(**changes):
    """The config of a user's folder."""
    config = default.get_config()
    config.data.update(name="folder", split=None, unseen="apple,fish")
    config.init_from = "random"
    config.update_from_flattened_dict(changes)
    return config


def compared(record, config, evaluated=None):
    evaluated = evaluated or data_selection.evaluated_items(config, 1, 1)
    notes = training_record.compare(record, evaluated, config)
    assert "best of" in notes.pop("selected_as")
    return notes


def renamed(evaluated, *names):
    sketches, photos = (
        dataclasses.replace(x, class_names=names) for x in (evaluated.sketches, evaluated.photos)
    )
    return data_selection.Evaluated(sketches, photos, {})


def test_the_own_setting_is_zero_shot():
    assert compared(training_record.of_run(folder(), None), folder()) == {}


@pytest.mark.parametrize("unseen", ["boat", "apple,boat,fish"])
def test_other_unseen_classes_of_a_folder_are_compared(unseen):
    record, config = training_record.of_run(folder(), None), folder(**{"data.unseen": unseen})
    with pytest.raises(TrainedError, match=r"1 of \d classes \(boat\), 10 of .* sketches"):
        compared(record, config)
    config.evaluation.allow_trained = True
    assert "(boat)" in compared(record, config)["not_zero_shot"]


def test_a_class_is_recognised_under_another_name_by_its_name_and_by_its_images():
    record = training_record.of_run(folder(), None)
    evaluated = data_selection.evaluated_items(folder(**{"data.unseen": "boat"}), 1, 1)
    without_images = {"sources": [record["sources"][0] | {"images": ""}], "unknown": []}
    with pytest.raises(TrainedError, match="Boat as boat"):
        training_record.compare(without_images, renamed(evaluated, "Boat"), folder())
    with pytest.raises(TrainedError, match="trained on 10 of 10 sketches, 10 of 10 photos"):
        training_record.compare(record, renamed(evaluated, "ship"), folder())


def test_a_few_duplicates_are_counted():
    record = training_record.of_run(folder(), None)
    evaluated = data_selection.evaluated_items(folder(), 1, 1)
    many = evaluated.photos.select(np.repeat(np.arange(20), 10))
    twin = dataclasses.replace(many, source=[b"photo/boat/0", *many.source[1:]])  # its name: 0
    few = dataclasses.replace(twin, rows=np.r_[0, np.full(199, 5)])
    notes = compared(record, folder(), evaluated._replace(photos=few))
    assert notes == {"trained_duplicates": {"photos": "1 of 200"}}


@pytest.mark.parametrize("change", [{"data.held_out_seed": 1}, {"data.held_out": 0.4}])
def test_other_held_out_photos_trained(change):
    config = sketchy_generalized.get_config()
    config.init_from = "random"
    record = training_record.of_run(config, None)
    assert compared(record, config) == {}
    config.update_from_flattened_dict(change)
    with pytest.raises(TrainedError, match=r"trained on \d+ of \d+ photos"):
        compared(record, config)
    config.evaluation.seen_gallery = "all"  # ranks the seen photos as such
    assert compared(record, config) == {}


def test_the_training_data_of_the_initial_weights_are_recorded(monkeypatch):
    first = training_record.of_run(folder(), None)
    monkeypatch.setattr(training_record.reading, "read_record", lambda path: first)
    config = folder(**{"data.unseen": "boat", "init_from": "runs/first"})
    record = training_record.of_run(config, None)
    assert [source["classes"] for source in record["sources"]] == [
        ["boat", "car", "door", "eye"], ["apple", "car", "door", "eye", "fish"],
    ]  # fmt: skip
    with pytest.raises(TrainedError, match="boat"):
        compared(record, config)
    assert training_record.of_run(config, record) == record  # resumed


@pytest.mark.parametrize(
    ("unseen", "start"), [("car,boat", "runs/first"), ("car,door", "package:other")]
)
def test_a_run_starts_from_the_first_alternative_without_its_unseen_classes(
    unseen, start, monkeypatch, caplog
):
    first = training_record.of_run(folder(**{"data.unseen": "car,boat"}), None)
    monkeypatch.setattr(training_record.reading, "read_record", lambda path: first)
    config = folder(**{"data.unseen": unseen, "init_from": "runs/first or package:other"})
    assert step.complete(config).init_from == start
    assert ("runs/first" in caplog.text and "door" in caplog.text) == (start == "package:other")
    assert config.init_from == "runs/first or package:other"
    config.init_from = "runs/first"  # an only source is not judged here
    assert step.complete(config) is config


@pytest.mark.parametrize("key", ["init_from", "teacher"])
def test_weights_without_a_record_are_named(key):
    config = folder()
    with config.unlocked():
        config[key] = {"weights": "weights/vit.npz"} if key == "teacher" else "weights/vit.npz"
    record = training_record.of_run(config, None)
    assert compared(record, config) == {"training_data_unknown": ["vit.npz"]}


def test_a_checkpoint_without_a_record_is_compared_by_its_config(monkeypatch):
    reading = training_record.reading
    monkeypatch.setattr(reading, "read_record", lambda path: None)
    monkeypatch.setattr(reading, "read_config", lambda path: folder())
    monkeypatch.setattr(reading, "step_of", lambda path: 9)
    record = training_record.of_checkpoint("runs/old")
    assert compared(record, folder()) == {"training_data_unknown": ["the images of old"]}
    with pytest.raises(TrainedError, match="boat"):
        compared(record, folder(**{"data.unseen": "boat"}))
    monkeypatch.setattr(reading, "step_of", lambda path: 0)
    assert training_record.of_checkpoint("runs/old")["unknown"] == ["old"]
