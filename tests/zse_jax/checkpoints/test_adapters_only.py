"""A model saved without its base weights: small, and loaded only onto the weights it trained on."""

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import zse_jax
from tests.zse_jax import small_systems
from tests.zse_jax.pretrained.test_dinov2 import facebook
from tests.zse_jax.random_weights import drawn
from zse_jax.checkpoints import hub, publishing
from zse_jax.checkpoints.arrays import flat_arrays, split_model
from zse_jax.models.dinov2 import VARIANTS, Variant
from zse_jax.pretrained import dinov2
from zse_jax.retrievers import create


@pytest.fixture(autouse=True)
def two_narrow_blocks(monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", Variant(8, 2, 2, patch=8, grid=4))


def written(path, model, seed=0):
    arrays = facebook(model.backbone, seed)
    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)
    return path


@pytest.fixture
def trained(tmp_path):
    """A trained model on top of the base weights in a file, and its config."""
    config = small_systems.config("cmca").unlock()
    config.init_from = str(tmp_path / "base.safetensors")
    model = drawn(lambda: create(config.model, rngs=nnx.Rngs(0)))
    dinov2.load(model.backbone, load_file(written(config.init_from, model)))
    return model, config


def parameters(model):
    return flat_arrays(split_model(model)[1]["model"])


def test_it_contains_the_adapters_and_loads_onto_the_base_weights(trained, tmp_path):
    model, config = trained
    folder = zse_jax.save_pretrained(model, tmp_path / "model", config=config, adapters_only=True)
    arrays = load_file(f"{folder}/{hub.WEIGHTS}")
    assert len(arrays) == 2 * 6 + 2 * 2 * 6
    assert all("/adapters/" in name for name in arrays)
    loaded = parameters(zse_jax.load(folder))
    for name, array in parameters(model).items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert f"base weights | `{config.init_from}`" in (tmp_path / "model/README.md").read_text()
    again = zse_jax.save_pretrained(folder, tmp_path / "again", adapters_only=True)
    assert load_file(f"{again}/{hub.WEIGHTS}").keys() == arrays.keys()


def test_base_weights_can_be_elsewhere_but_not_others(trained, tmp_path):
    model, config = trained
    folder = zse_jax.save_pretrained(model, tmp_path / "model", config=config, adapters_only=True)
    (tmp_path / "base.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file .*base.safetensors.*base=FILE"):
        zse_jax.load(folder)
    loaded = zse_jax.load(folder, base=tmp_path / "moved.safetensors")
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/again contains only.*base=FILE"):
        zse_jax.save_pretrained(loaded, tmp_path / "again", adapters_only=True)
    assert zse_jax.save_pretrained(
        loaded, tmp_path / "again", adapters_only=True, base=tmp_path / "moved.safetensors"
    )
    with pytest.raises(ValueError, match="base=.* is for adapters_only=True"):
        zse_jax.save_pretrained(loaded, tmp_path / "third", base=tmp_path / "moved.safetensors")
    other = written(tmp_path / "other.safetensors", model, seed=1)
    with pytest.raises(
        ValueError, match=r"other.safetensors has other values in \d+ of \d+ arrays"
    ):
        zse_jax.load(folder, base=other)
    whole = zse_jax.save_pretrained(model, tmp_path / "whole", config=config)
    for path in (whole, tmp_path / "nothing", other):
        with pytest.raises(ValueError, match=f"base=.* is for a model .*{path}.* leave it out"):
            zse_jax.load(path, base=other)


def test_a_model_that_no_reader_could_complete_is_not_written(trained, tmp_path):
    model, config = trained
    target = tmp_path / "model"

    def save():
        publishing.save_pretrained(model, target, config=config, adapters_only=True)

    kernel = model.backbone.blocks[0].query.kernel
    kernel[...] = kernel[...] + 1
    with pytest.raises(ValueError, match="other values in 1 of .*blocks/0/query/kernel"):
        save()
    config.init_from = "random"
    with pytest.raises(ValueError, match="started from random, which is not a publisher's"):
        save()
    model.trainable = "all"
    with pytest.raises(ValueError, match="All parameters of this CMCA train"):
        save()
    assert not target.exists()
