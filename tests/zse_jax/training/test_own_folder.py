"""Runs on a user's own folder: unseen classes as a share or none, and folders that change."""

import json
import shutil
import zlib

import numpy as np
import pytest

from data_pipelines import loading, prepared
from tests.data_pipelines.conftest import encode
from tests.zse_jax import tiny
from zse_jax.checkpoints import reading
from zse_jax.evaluation import data_selection
from zse_jax.runtime import config_io
from zse_jax.training import loop, profiling

NAMES = [
    f"{modality}/{name}/{i}.png"
    for modality in ("sketch", "photo")
    for name in ("bee", "cat", "dog", "owl", "pig", "yak")
    for i in range(2)
]


def write(root, names):
    """Writes another image for each name; returns `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (8, 8, 3))
        (root / name).write_bytes(encode(pixels.astype(np.uint8)))
    return root


@pytest.fixture(autouse=True)
def real_data(monkeypatch):
    """The system `tiny` on images from files; each preparation compares them, as in a new run."""
    load_items, prepare = loading.load_items, prepared.prepare
    tiny.install(monkeypatch.setattr)
    monkeypatch.setattr(loading, "load_items", load_items)
    monkeypatch.setattr(profiling, "matrix_rate", lambda dtype: 1e11)

    def as_new(*args, **kwargs):
        prepared._folder_version.cache_clear()
        return prepare(*args, **kwargs)

    monkeypatch.setattr(prepared, "prepare", as_new)


@pytest.fixture
def root(tmp_path):
    """A folder that a test may change."""
    return write(tmp_path / "pets", NAMES)


def config(root, **flat):
    """A short run on the folder."""
    found = tiny.config(**{"train.steps": 1, "evaluation.every": 1}).unlock()
    with found.data.ignore_type():
        found.data.update(name="folder", split=None, manual_dir=str(root))
    found.data.data_dir = str(root.parent / "tfds")
    found.update_from_flattened_dict(flat)
    return found.lock()


@pytest.mark.slow
def test_without_unseen_classes_all_train_and_nothing_is_evaluated(root, tmp_path, capsys):
    results = loop.train(config(root), tmp_path / "run")
    assert results["test"] == results["validation"] == results["notes"] == {}
    assert results["step"] == 1
    (sentence,) = [x for x in capsys.readouterr().out.splitlines() if "All classes train" in x]
    assert "no validation and no test evaluation" in sentence
    record = reading.read_record(tmp_path / "run")
    assert record["sources"][-1]["classes"] == ["bee", "cat", "dog", "owl", "pig", "yak"]
    assert record["selection"] is None
    saved = reading.read_config(tmp_path / "run")
    with pytest.raises(ValueError, match=r"nothing to evaluate.*data\.unseen=20%"):
        data_selection.evaluated_items(saved, 1, 1)


@pytest.mark.slow
def test_held_out_classes_validate_where_none_is_unseen(root, tmp_path):
    results = loop.train(config(root, **{"evaluation.classes": "held_out"}), tmp_path / "run")
    assert results["test"] == {}
    assert results["validation"]["token/exact/mAP@all"] > 0
    assert len(reading.read_record(tmp_path / "run")["sources"][-1]["classes"]) == 4


@pytest.mark.slow
def test_a_checkpoint_finds_its_images_after_the_folder_changed(root, tmp_path):
    workdir = tmp_path / "run"
    loop.train(config(root, **{"data.unseen": "34%"}), workdir)
    saved = reading.read_config(workdir)
    unseen = saved.data.unseen.split(",")
    assert len(unseen) == 2

    write(root, [f"{m}/{name}/2.png" for m in ("sketch", "photo") for name in ("ant", "bee")])
    shutil.rmtree(root / "photo" / unseen[0])
    shutil.rmtree(root / "sketch" / unseen[0])
    evaluated = data_selection.evaluated_items(saved, 1, 1)
    assert list(evaluated.photos.class_names) == unseen
    assert len(evaluated.photos) == 4
    with pytest.raises(ValueError, match=r"another config; differing: data\.content"):
        loop.train(config(root, **{"data.unseen": ",".join(unseen[1:])}), workdir)
    again = config(root, **{"data.unseen": "34%", "data.content": saved.data.content})
    assert loop.train(again, workdir)["step"] == 1

    prepared_at = root.parent / "tfds"
    shutil.rmtree(prepared_at)
    with pytest.raises(ValueError, match=r"are not prepared .*--config\.data\.content=present"):
        data_selection.evaluated_items(saved, 1, 1)


def test_a_run_of_an_earlier_version_is_resumed(root):
    """Its config does not record the content, and its data set has no name."""
    run = config(root, **{"data.unseen": "cat,dog"})
    content = data_selection.resolved(run).data.content
    base = root.parent / "tfds/folder"
    (version,) = base.glob("*/1.0.0")
    version.rename(base / "1.0.0")
    version.parent.rmdir()
    (base / "1.0.0/files.json").unlink()
    metadata = json.loads((base / "1.0.0/metadata.json").read_text())
    assert metadata.pop("content") == content
    (base / "1.0.0/metadata.json").write_text(json.dumps(metadata))
    longer = config(root, **{"data.unseen": "cat,dog", "train.steps": 2})
    changed = config_io.check_resumable(run, data_selection.resolved(longer), "run")
    assert changed.keys() == {"train.steps"}
    assert len(data_selection.training_items(longer)[1]) == 8
    assert [path.name for path in base.iterdir()] == ["1.0.0"]
