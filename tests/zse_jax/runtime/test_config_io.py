"""Configs as plain data in a checkpoint, and what may change when resuming."""

import pytest

from configs import efficient_default
from tests.zse_jax import tiny
from zse_jax.runtime import config_io


def test_a_config_survives_json():
    config = tiny.config()
    again = config_io.from_plain(config_io.to_plain(config))
    assert config_io.differences(config, again) == {}
    assert again.data.manual_dir is None
    again.data.manual_dir = "folder"


def test_differences_name_keys_and_values():
    found = config_io.differences(tiny.config(), tiny.config(**{"train.steps": 99}))
    assert found == {"train.steps": (12, 99)}


def test_a_key_added_in_a_later_version_differs_only_if_its_value_is_new():
    old, new = efficient_default.get_config(), efficient_default.get_config()
    del old.model.backbone
    assert config_io.differences(old, new) == {}
    new.model.backbone = "other"
    assert config_io.differences(old, new) == {"model.backbone": ("-", "other")}


def test_length_mesh_and_logging_may_change_when_resuming():
    new = tiny.config(**{"train.steps": 99, "mesh.fsdp": 2, "log.every": 7, "data.workers": 1})
    changed = config_io.check_resumable(tiny.config(), new, "runs/a")
    assert set(changed) == {"train.steps", "mesh.fsdp", "log.every", "data.workers"}


def test_settings_that_affect_results_may_not_change():
    new = tiny.config(**{"optimizer.learning_rate": 0.5, "train.steps": 99})
    with pytest.raises(ValueError, match=r"runs/a .*optimizer.learning_rate 0.001 -> 0.5\. ") as e:
        config_io.check_resumable(tiny.config(), new, "runs/a")
    assert "train.steps 12" not in str(e.value)


def test_the_length_may_change_under_any_schedule():
    old = tiny.config(**{"optimizer.schedule": "cosine"})
    new = tiny.config(**{"optimizer.schedule": "cosine", "train.steps": 99})
    changed = {"train.steps": (12, 99)}
    assert config_io.check_resumable(old, new, "runs/a") == changed


def test_a_config_survives_yaml(tmp_path):
    config = efficient_default.get_config()
    config_io.write_yaml(config, tmp_path / "config.yaml")
    again = config_io.read_yaml(tmp_path / "config.yaml")
    assert config_io.flat(again) == config_io.flat(config)
    again.data.unseen = "cat"


@pytest.mark.parametrize("text", ["a: [", "", "word"])
def test_a_file_that_is_not_a_config_is_named(text, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml is not"):
        config_io.read_yaml(file)


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("train.stepps", "train.steps"),
        ("steps", "train.steps"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("evaluation.photo_strid", "evaluation.photo_stride"),
    ],
)
def test_a_wrong_key_names_the_nearest_right_one(key, right):
    with pytest.raises(
        ValueError, match=f"--config.{key} does not.*Did you mean --config.{right}?"
    ):
        config_io.check_keys(tiny.config(), [key])


def test_a_group_is_not_a_value():
    with pytest.raises(ValueError, match=r"--config.train is a group.*--config.train.steps"):
        config_io.check_keys(tiny.config(), ["train"])


def test_a_renamed_key_is_read_from_old_checkpoints_only():
    plain = config_io.to_plain(tiny.config())
    plain["train"]["vary"] = plain["train"].pop("augment", 0.0)
    old = config_io.from_plain(plain)
    assert old.train.augment == 0.0
    config_io.check_resumable(old, tiny.config(), "runs/a")
    with pytest.raises(ValueError, match=r"train.vary was renamed: write config.train.augment"):
        config_io.check_keys(tiny.config(), ["train.vary"])
