"""DomainNet: read in place from the TFDS catalogue, and errors when it cannot be downloaded."""

import socket
import urllib.error

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import loading, prepared, splits
from tests import layouts
from tests.data_pipelines.conftest import encode

CLASSES = ["The_Eiffel_Tower", "t-shirt", "airplane"]
DOMAINS = layouts.DOMAINS


def picture(c: int, number: int) -> bytes:
    """A one-colour image: red encodes the class, green the number."""
    return encode(np.full((12, 10, 3), [100 + 20 * c, 100 + 20 * number, 255], np.uint8))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Makes TFDS download from a folder; yields the requested URLs."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("server")
        yield layouts.serve_domainnet(root, patch.setattr, CLASSES, picture)


@pytest.fixture(scope="module")
def domainnet(server, tmp_path_factory):
    """A data_dir in which the TFDS builders prepared both domains."""
    folder = tmp_path_factory.mktemp("tfds")
    assert prepared.prepare("domainnet", data_dir=folder) == folder / "domainnet"
    return folder


def load(folder, modality, classes=CLASSES):
    return loading.load_items("domainnet", modality, classes, data_dir=folder)


def test_only_sketches_and_real_photos_are_downloaded(server, domainnet):
    assert {address.rsplit("/")[-1] for address in server} == {
        *("sketch.zip", "sketch_train.txt", "sketch_test.txt"),
        *("real.zip", "real_train.txt", "real_test.txt"),
    }
    assert {path.name for path in (domainnet / "domainnet").glob("[!.]*")} == {"sketch", "real"}


def test_a_prepared_data_set_is_not_downloaded_again(server, domainnet):
    count = len(server)
    prepared.prepare("domainnet", data_dir=domainnet)
    assert len(server) == count


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_train_and_test_images_have_their_classes(domainnet, modality):
    items = load(domainnet, modality)
    np.testing.assert_array_equal(items.labels, [0, 0, 1, 1, 2, 2])
    shown = np.array([items.image(i, 1)[0, 0, :2] for i in range(6)])
    np.testing.assert_array_equal(shown[:, 0], 100 + 20 * items.labels)
    assert sorted(shown[:2, 1]) == [100, 120]


def test_the_original_bytes_are_read_in_place(domainnet):
    items = load(domainnet, "photo")
    found = {items.source[row] for row in items.rows.tolist()}
    assert found == {picture(c, number) for c in range(3) for number in range(2)}


def test_names_are_unique_and_the_same_each_time(domainnet):
    items = load(domainnet, "sketch")
    assert len(set(items.names)) == 6
    assert items.names[0].startswith("domainnet/sketch/The_Eiffel_Tower/")
    for index in (domainnet / "domainnet").rglob("index_*.json"):
        index.unlink()
    assert load(domainnet, "sketch").names == items.names
    assert set(items.instances) == {""}


def test_items_of_some_classes_reach_evaluation_batches(domainnet):
    items = load(domainnet, "photo", ["airplane"])
    (batch,) = loading.evaluation_batches(items, image_size=8, batch_size=3)
    assert batch["image"].shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(batch["label"], 0)
    np.testing.assert_array_equal(batch["mask"], [True, True, False])
    assert (batch["image"][:2, :, :, 0] == 140).all()


@pytest.mark.slow
def test_worker_processes_read_it(domainnet):
    items = load(domainnet, "sketch")
    batches = loading.evaluation_batches(items, image_size=8, batch_size=3, workers=1)
    assert sum(batch["mask"].sum() for batch in batches) == 6


def test_an_unknown_class_suggests_the_nearest(domainnet):
    with pytest.raises(ValueError, match=r"t_shirt \(did you mean t-shirt\?\)"):
        load(domainnet, "sketch", ["t_shirt"])


def test_a_missing_file_is_named(domainnet):
    path = next((domainnet / "domainnet/real").rglob("*-test.array_record*"))
    path.rename(path.with_name("away"))
    try:
        with pytest.raises(FileNotFoundError, match=path.name):
            load(domainnet, "photo")
    finally:
        path.with_name("away").rename(path)


def test_another_file_format_is_an_error(server, tmp_path):
    tfds.builder("domainnet/sketch", data_dir=tmp_path).download_and_prepare()
    with pytest.raises(ValueError, match=r"prepared as tfrecord.*--config.data.data_dir"):
        prepared.prepare("domainnet", data_dir=tmp_path)


def test_mocked_data_reaches_evaluation_batches(server, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "write_index", lambda *_: None)  # the mocked folder is no folder
    with tfds.testing.mock_data(num_examples=5, policy=tfds.testing.MockPolicy.USE_CODE):
        _, index = prepared.open_split(prepared.prepare("domainnet", data_dir=tmp_path), "photo")
        items = loading.load_items(
            "domainnet", "photo", sorted(set(index.class_names)), data_dir=tmp_path
        )
        batches = list(loading.evaluation_batches(items, image_size=8, batch_size=4))
    assert sum(batch["mask"].sum() for batch in batches) == len(items) == 5


def test_without_a_network_the_error_gives_a_remedy(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError(socket.gaierror("Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(
        ConnectionError, match=r"domainnet/sketch and .*copy its folder.*--config.data.data_dir"
    ):
        prepared.prepare("domainnet", data_dir=tmp_path)


def test_manual_dir_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'domainnet' .*does not use manual_dir"):
        prepared.prepare("domainnet", data_dir=tmp_path, manual_dir=tmp_path)


def test_the_split_has_the_classes_of_the_catalogue(tmp_path):
    names = tfds.builder("domainnet/real", data_dir=tmp_path).info.features["label"].names
    assert splits.get("domainnet").classes == tuple(sorted(names))
