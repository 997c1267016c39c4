"""What a run starts from: named in every config, refused if it cannot be had, and shown."""

import importlib
import json
import pkgutil

import pytest

import configs
from configs import default
from data_pipelines import loading
from tests.zse_jax import small_systems, tiny
from zse_jax.checkpoints import initial_weights, publishing
from zse_jax.evaluation.evaluator import comparison
from zse_jax.pretrained import files, publishers
from zse_jax.retrievers import registry
from zse_jax.runtime import config_io
from zse_jax.training import initialization, loop

NAMES = sorted(
    found.name
    for found in pkgutil.iter_modules(configs.__path__)
    if not found.name.endswith("default")
)


def config_of(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def variants_of(name):
    module = importlib.import_module(f"configs.{name}")
    system = config_of(name).model.system
    shared = importlib.import_module(f"configs.{registry.SYSTEMS[system].config}")
    return [] if name == "demo" else [*getattr(module, "VARIANTS", shared.VARIANTS)]


CASES = [(name, arg) for name in NAMES for arg in ("", *variants_of(name))]


@pytest.mark.parametrize(("name", "arg"), CASES)
def test_a_config_names_the_weights_it_starts_from_and_small_ones_are_random(name, arg):
    config = config_of(name, arg)
    if name == "demo" or arg == "tiny":
        assert config.init_from == "random"
        assert config_of(name, "init_from=x.npz" if name == "demo" else f"{arg},init_from=x.npz")
        initialization.check(config)
        return
    with pytest.raises(FileNotFoundError) as refusal:
        initialization.check(config)
    message = str(refusal.value)
    url = publishers.HUB[config.init_from.removeprefix("hf://")]
    assert url in message
    assert f"--config.init_from={url.rpartition('/')[2]}" in message
    assert "--config.init_from=random" in message
    assert initial_weights.is_weight_file(url)
    initialization.check(config_of(name, f"{arg},init_from=random"))


def test_sizes_have_weights_of_their_own():
    for name, count in (("sketchy", 3), ("clip_sketchy_split2", 4)):
        sizes = [arg for arg in variants_of(name) if "/" in arg]
        assert len({config_of(name, arg).init_from for arg in sizes}) == len(sizes) == count


def test_a_run_is_refused_before_its_data_are_read(tmp_path, monkeypatch):
    tiny.install(monkeypatch.setattr)
    monkeypatch.setattr(loading, "load_items", lambda *_, **__: pytest.fail("read the data"))
    made = tiny.config()
    for value, error, message in (
        ("hf://openai/clip-vit-base-patch32", FileNotFoundError, "Download https://huggingface.co"),
        (str(tmp_path / "none.npz"), FileNotFoundError, r"there is no file.*init_from=random"),
        (str(tmp_path / "none"), FileNotFoundError, r"contains no checkpoint.*init_from=random"),
    ):
        with made.unlocked():
            made.init_from = value
        with pytest.raises(error, match=message):
            loop.train(made, tmp_path / "run")
    unset = config_io.to_plain(made) | {"init_from": None}
    with pytest.raises(ValueError, match=r"init_from is not set.*--config.init_from=FILE"):
        loop.train(config_io.from_plain(unset), tmp_path / "run")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("random", "random values"),
        ("/srv/ann/ViT-B_16.npz", "ViT-B_16.npz"),
        ("gs://bucket/runs/first/", "first"),
        ("hf://openai/clip-vit-base-patch32", "hf://openai/clip-vit-base-patch32"),
        (None, ""),
    ],
)
def test_what_a_run_started_from_is_shown_by_tables_and_cards(value, shown):
    plain = config_io.to_plain(default.get_config()) | {"init_from": value}
    assert initial_weights.started_from(config_io.from_plain(plain)) == shown
    for step in (0, 9):
        about = {
            "version": "0", "step": step, "parameters": 1, "metrics": {}, "measured": "",
            "config": plain,
        }  # fmt: skip
        card = publishing.card(about, name="ann/x")
        if shown:
            assert f"started from {shown}" in card.replace("`", "")
        assert ("untrained network" in card) == (value == "random" and step == 0)
        assert "/srv/ann" not in card


def test_a_run_from_random_values_says_so_in_its_results(reference):
    assert (
        json.loads((reference / "metrics.json").read_text())["notes"]["started_from"]
        == "random values"
    )


def test_the_comparison_names_the_start_and_leaves_out_what_was_not_measured():
    values = {"token/exact/mAP@all": 0.25}
    both = comparison(values, values, 9, "2 x 3", "ViT.npz")
    assert both.title == "Unseen classes: ViT.npz \N{RIGHTWARDS ARROW} step 9"
    after = comparison({}, values, 9, "2 x 3", "random values")
    assert after.title == "Unseen classes: step 9"
    assert "started from random values" in after.caption
    assert list(after.columns[2].cells) == ["25.0"]


def test_runs_of_earlier_versions_resume_and_keep_what_they_started_from():
    new = small_systems.config("zse")
    plain = config_io.to_plain(new) | {"init_from": None}
    assert config_io.differences(config_io.from_plain(plain), new) == {}
    changed = config_io.from_plain(config_io.to_plain(new) | {"init_from": "a.npz"})
    differing = config_io.differences(config_io.from_plain(plain), changed)
    assert differing == {"init_from": ("random", "a.npz")}
    efficient = config_io.to_plain(small_systems.config("efficient_cnn")) | {"init_from": None}
    efficient["teacher"]["weights"] = "resnet50.pth"
    assert config_io.from_plain(efficient).init_from == "resnet50.pth"


def test_files_and_hub_names_are_told_apart():
    assert initial_weights.is_weight_file("a/b.safetensors")
    assert not initial_weights.is_weight_file("hf://timm/x.bin")
    assert not initial_weights.is_weight_file("runs/first")
    assert initial_weights.is_checkpoint("runs/first")
    assert initial_weights.is_checkpoint("hf://ann/sketches")
    for other in ("random", "a.npz", "hf://timm/resnet50.tv_in1k"):
        assert not initial_weights.is_checkpoint(other)
    assert all(url.endswith(files.SUFFIXES) for url in publishers.HUB.values())
