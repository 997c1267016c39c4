"""The model that the package contains: complete, small, and as its card says."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import zse_jax
from data_pipelines import class_names
from zse_jax.checkpoints import hub, initial_weights, reading
from zse_jax.pretrained import sources


def test_it_has_a_name_everywhere_and_no_folder_shadows_it(tmp_path, monkeypatch):
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.find("default") == hub.DEFAULT_FOLDER and hub.find("./default") is None
    assert hub.is_model("default") and not hub.is_weights("default")
    assert sources.is_remote("default") and str(reading.absolute("default")) == "default"
    initial_weights.check("default")
    assert reading.read_config("default").model.backbone == "efficientnet_lite0"


def test_it_is_small_and_trained_on_every_class_of_sketchy():
    folder = Path(hub.DEFAULT_FOLDER)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12_000_000
    about = json.loads((folder / hub.CONFIG).read_text())
    [source] = about["training_data"]["sources"]
    assert source["data"] == "sketchy" and set(source["classes"]) == set(class_names.SKETCHY)
    card = (folder / hub.CARD).read_text()
    assert 'license: "apache-2.0"' in card and "Sketchy" in card
    assert str(folder) not in card + json.dumps(about) and "/tmp" not in json.dumps(about)


@pytest.mark.slow
def test_its_weights_are_whole_and_its_means_were_measured():
    retriever = zse_jax.load("default")
    assert retriever.means is not None
    norms = np.linalg.norm(np.asarray(retriever.means[...]), axis=-1)
    assert ((norms > 0.1) & (norms < 1)).all()


def test_loading_compiles_no_program_for_each_shape():
    """That took half of the time, and half of the memory that a loaded model needs."""
    programs = []

    def count(event: str, seconds: float, **given: object) -> None:
        if "backend_compile" in event:
            programs.append(seconds)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        zse_jax.load("default")
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(programs) < 5
