"""Domain means: those of the training images, subtracted from every embedding, saved with it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zse_jax
from tests.zse_jax import small_systems, tiny
from tests.zse_jax.random_weights import drawn
from zse_jax.evaluation import data_selection, text_baseline
from zse_jax.losses import unit
from zse_jax.retrievers import create
from zse_jax.retrievers.base import evaluation_view
from zse_jax.training import loop


def centred(system):
    settings = small_systems.config(system).model.to_dict() | {"centred": True}
    return drawn(lambda: create(settings, rngs=nnx.Rngs(0, dropout=1)))


def images(seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["efficient_cnn", "zse", "clip_prompt"])
def test_every_embedding_can_be_centred(system):
    model = centred(system)
    width = model.means.shape[1]
    model.means[...] = jnp.zeros_like(model.means)
    embed = nnx.jit(lambda m, x, y: (m.embedding(m.encode(x, y)), m.embed(m.encode(x, y), y)),
                    static_argnums=2)  # fmt: skip
    plain, zero = embed(model, images(1), "photo")
    assert plain.shape == (2, width)
    np.testing.assert_allclose(plain, zero, atol=1e-6)
    means = 0.1 * np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    model.means[...] = jnp.asarray(means)
    for index, modality in enumerate(("sketch", "photo")):
        plain, moved = embed(model, images(1), modality)
        np.testing.assert_allclose(moved, unit(plain - means[index]), atol=1e-6)


@pytest.mark.parametrize("system", ["efficient_cnn", "clip_prompt"])
def test_explanations_show_the_centred_similarity(system):
    model = centred(system)
    model.means[...] = 0.2 * jax.random.normal(jax.random.key(0), model.means.shape)

    @nnx.jit
    def both(model, sketches, photos):
        features = model.encode(sketches, "sketch"), model.encode(photos, "photo")
        return model.correspond(sketches, photos), model.score_pairs(*features)

    found, score = both(evaluation_view(model), images(1), images(2))
    np.testing.assert_allclose(found.similarity, score, atol=1e-5)
    if system == "efficient_cnn":
        np.testing.assert_allclose(found.match.mean(axis=(1, 2)), score, atol=1e-5)


def test_texts_have_no_mean_of_sketches():
    with pytest.raises(ValueError, match="centred"):
        text_baseline.class_queries(centred("clip_prompt"), tiny.load_items("", "sketch", ["cat"]))


@pytest.mark.slow
def test_a_run_measures_saves_and_resumes_the_means_of_its_training_images(tmp_path, monkeypatch):
    tiny.install(monkeypatch.setattr)
    changes = {"model.centred": True, "evaluation.classes": "held_out"}
    changes |= {"train.steps": 4, "evaluation.every": 2, "checkpoint.every": 1}
    config = tiny.config(**changes)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.train(config, whole)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "4")
    (parts / "metrics.json").unlink()
    loop.train(config, parts)  # from step 3
    one, other = (zse_jax.load(workdir) for workdir in (whole, parts))
    states = (nnx.to_pure_dict(nnx.state(x, nnx.Not(nnx.RngState))) for x in (one, other))
    assert jax.tree.all(jax.tree.map(np.array_equal, *states))
    assert jnp.abs(one.means[...]).max() > 0.01
    photos = data_selection.training_items(config)[1]
    pixels = jnp.asarray(np.stack([photos.image(i, tiny.SIZE) for i in range(len(photos))]))
    expected = one.embedding(one.encode(pixels, "photo")).mean(axis=0)
    np.testing.assert_allclose(one.means[...][1], expected, atol=1e-5)
