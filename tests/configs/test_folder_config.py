"""The config for a user's own images: any system, and sizes that follow from the classes."""

import pytest

from configs import folder
from zse_jax.training import step


@pytest.mark.parametrize("name", folder.SYSTEMS)
def test_every_system_trains_on_the_folder(name):
    config = folder.get_config(f"{name},steps=7")
    assert (config.data.name, config.data.split, config.train.steps) == ("folder", None, 7)
    assert (config.model.image_size == 64) == name.endswith("-tiny")
    assert (config.init_from == "random") == name.endswith("-tiny")
    systems = {"zse": "zse", "cnn": "efficient_cnn", "clip": "clip_prompt", "cmca": "cmca"}
    assert config.model.system == systems[name.partition("-")[0]]


def test_the_default_is_the_small_cnn_and_takes_variants_of_its_system():
    assert folder.get_config() == folder.get_config("cnn")
    assert folder.get_config("lite2").model.backbone == "efficientnet_lite2"
    assert folder.get_config("zse,S/16").model.width == 384
    with pytest.raises(ValueError, match="no variant 'S/16'.*lite0"):
        folder.get_config("S/16")


@pytest.mark.parametrize(
    ("classes", "batch", "sampler"),
    [(2, 2, "class_group:24"), (5, 5, "class_group:10"), (48, 48, "class_group:1"),
     (104, 48, "class_group:1")],
)  # fmt: skip
def test_a_batch_has_all_classes_but_at_most_48_and_about_48_sketches(
    classes, batch, sampler, monkeypatch
):
    from zse_jax.evaluation import data_selection

    split = type("Split", (), {"seen": tuple(map(str, range(classes))), "unseen": ()})
    monkeypatch.setattr(data_selection, "split_of", lambda config, data: split)
    config = folder.get_config().lock()
    full = step.complete(config)
    assert (full.train.batch_size, full.train.sampler) == (batch, sampler)
    assert full.model.seen_classes == classes and step.complete(full) is full
    with pytest.raises(ValueError, match=r"Set it, for example --config.train.batch_size=16"):
        step.complete(folder.get_config("zse,batch_size=None"))
