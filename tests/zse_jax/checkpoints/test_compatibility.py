"""Checkpoints, prepared data and indexes written before the modules were regrouped still work."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import zse_jax
from data_pipelines import loading, prepared
from zse_jax.checkpoints import reading
from zse_jax.evaluation import data_selection
from zse_jax.gallery import index, search
from zse_jax.runtime import config_io
from zse_jax.runtime.metrics_file import read_metrics
from zse_jax.training import loop

FOLDER = Path(__file__).parents[2] / "compatibility"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
CLASSES = ("bell", "cat", "cup", "dog")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with the workdir `run`, the data set `prepared` and the `index` of that version."""
    folder = tmp_path_factory.mktemp("old")
    for name in ("checkpoint", "prepared", "index"):
        with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def items(old, modality):
    return loading.load_items("folder", modality, CLASSES, data_dir=old / "prepared")


def test_prepared_data_is_read(old):
    photos = items(old, "photo")
    assert [*photos.names] == EXPECTED["names"]
    assert photos.labels.tolist() == EXPECTED["labels"]
    assert [int(photos.image(i, 32).sum()) for i in range(12)] == EXPECTED["image_sums"]


def test_a_checkpoint_names_its_prepared_data_although_the_folder_is_gone(old):
    config = reading.read_config(old / "run")
    config.data.data_dir = str(old / "prepared")
    assert config.data.manual_dir == "/tmp/album/images"
    photos = data_selection.evaluated_items(config, 1, 1).photos
    assert set(photos.class_names) == {"cup", "bell"}
    resolved = data_selection.resolved(config)
    assert set(config_io.differences(config, resolved)) == set()
    version = prepared.prepare("folder", data_dir=old / "prepared", content=resolved.data.content)
    assert version == old / "prepared/folder/1.0.0"


def test_a_checkpoint_is_loaded_with_its_old_config_key(old):
    photos = items(old, "photo")
    images = np.stack([photos.image(i, 32) for i in range(len(photos))])
    retriever = zse_jax.load(old / "run")
    embed = nnx.jit(lambda retriever, x: retriever.embedding(retriever.encode(x, "photo")))
    embeddings = embed(retriever, images)
    np.testing.assert_allclose(embeddings[:, :4], EXPECTED["embeddings"], atol=2e-5)
    config = reading.read_config(old / "run")
    assert config.train.augment == 0.05
    assert "vary" not in config.train


@pytest.mark.slow
def test_an_index_is_searched(old):
    sketches = items(old, "sketch")
    row = sketches.rows[[*sketches.names].index("sketch/cup/cup0.png")]
    sketch = old / "cup0.png"
    sketch.write_bytes(sketches.source[int(row)])
    found = search.Searcher(index.open(old / "index"), old / "run")
    hits = found(sketch, 12).hits
    expected = {hit["path"]: hit["similarity"] for hit in EXPECTED["hits"]}
    assert {hit.path for hit in hits} == expected.keys()
    similarity = [hit.similarity for hit in hits]
    np.testing.assert_allclose(similarity, [expected[hit.path] for hit in hits], atol=2e-5)
    assert hits[0].path == EXPECTED["hits"][0]["path"]


@pytest.mark.slow
def test_training_resumes_from_a_checkpoint(old):
    config = reading.read_config(old / "run")
    config.data.data_dir = str(old / "prepared")
    config.train.steps, config.evaluation.every = 3, 0
    assert loop.train(config, old / "run")["step"] == 2  # the only evaluated one
    lines = read_metrics(old / "run/metrics.jsonl")
    (loss,) = (x["train/loss"] for x in lines if x["step"] == 3)
    np.testing.assert_allclose(loss, EXPECTED["losses"]["3"], rtol=2e-5)
