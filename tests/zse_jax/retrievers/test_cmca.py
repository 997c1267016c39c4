"""CMCA at a small size: features by modality, loss, what trains, explanation, invalid settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax import abstract, shared_steps, small_systems
from tests.zse_jax.compiled import compiled
from tests.zse_jax.random_weights import drawn, drawn_state
from tests.zse_jax.training.test_step import one_device
from zse_jax import losses
from zse_jax.models import lora
from zse_jax.models.dinov2 import VARIANTS, Variant
from zse_jax.retrievers import create
from zse_jax.training import step

SMALL = {"system": "cmca", **small_systems.CMCA}
MCC = {"mcc_weights": (4.0, 8.0), "mcc_targets": (0.1, 0.0)}


@pytest.fixture(autouse=True)
def two_narrow_blocks(monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", Variant(8, 2, 2, patch=8, grid=4))


def build(seed=0, **changes):
    return drawn(lambda: create({**SMALL, **changes}, rngs=nnx.Rngs(0)), seed)


def images(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return jnp.asarray(generator.integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8))


def triplets(count=3):
    return {"sketches": images(count, 1, seed=1), "photos": images(count, 2, seed=2)}


def normalised(model, x):
    mean, std = jnp.asarray(model.backbone.mean), jnp.asarray(model.backbone.std)
    return (x / 255.0 - mean) / std


def test_pixels_are_normalised_and_encoded_with_the_adapters_of_their_modality():
    model = build()
    sketch, photo = (compiled(model.encode)(images(2), x) for x in ("sketch", "photo"))
    assert sketch.shape == (2, 8)
    assert jnp.linalg.norm(sketch - photo) > 0.01
    features = compiled(model.features)(normalised(model, images(2)), "photo")
    np.testing.assert_allclose(photo, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(model.embedding(photo), axis=1), 1, rtol=1e-5)


def test_only_the_last_block_has_adapters_by_modality():
    model = abstract.retriever({"system": "cmca", "backbone": "dinov2_vits14"})
    pairs = [
        {
            name: sorted(getattr(block, name).adapters)
            for name in lora.LAYERS
            if hasattr(block, name)
        }
        for block in model.backbone.blocks
    ]
    layers = {"query", "key", "value", "out", "mlp_in", "mlp_out"}
    assert all(block == {key: ["shared"] for key in layers} for block in pairs[:-1])
    assert pairs[-1] == {key: ["photo", "sketch"] for key in layers}
    factors = nnx.to_flat_state(nnx.state(model, lambda path, _: lora.is_adapter(path)))
    assert len(factors) == 156
    assert {x.shape for path, x in factors if path[-1] == "up"} == {(64, 384), (64, 1536)}


def test_only_adapters_have_gradients_and_moments():
    setup = shared_steps.set_up(small_systems.config("cmca"), one_device())
    adapters = {
        path for path, _ in nnx.to_flat_state(setup.abstract["model"]) if "adapters" in path
    }
    _, groups = step.trainable(setup.model)
    assert {*groups} == {"/".join(map(str, path)) for path in adapters}
    assert {*groups.values()} == {"adapter"}
    moments = [path for path, x in nnx.to_flat_state(setup.abstract["optimizer"]) if x.shape]
    assert len(moments) == 2 * len(adapters)
    assert all("adapters" in path for path in moments)
    everything = abstract.retriever({**SMALL, "trainable": "all"})
    assert {*step.trainable(everything)[1].values()} == {"adapter", "backbone"}


@pytest.mark.slow
def test_training_changes_the_adapters_and_nothing_else():
    config, batch = small_systems.config("cmca"), small_systems.batch("cmca")
    setup = shared_steps.set_up(config, one_device())
    before = drawn_state(setup)["model"]
    _, state = small_systems.steps(config, one_device(), batch)
    found = nnx.to_flat_state(
        jax.tree.map(lambda x, y: bool((x != y).any()), before, state["model"])
    )
    assert all(changed.get_value() == ("adapters" in path) for path, changed in found)


def test_the_loss_is_the_triplet_of_cosine_distances_and_mcc():
    model, batch = build(triplet_margin=0.7, **MCC), triplets()
    loss, terms = compiled(model.loss)(batch)
    sketch = compiled(model.encode)(batch["sketches"][:, 0], "sketch")
    photos = compiled(model.encode)(batch["photos"].reshape(-1, 32, 32, 3), "photo")
    triplet = losses.cosine_triplet(sketch, photos[::2], photos[1::2], margin=0.7)
    assert float(terms["triplet"]) == pytest.approx(float(triplet), rel=1e-3)
    cosines = {"sketch": losses.unit(sketch), "photo": losses.unit(photos)}
    for (modality, unit), target in zip(cosines.items(), (0.1, 0.0), strict=True):
        expected = abs(float((unit @ unit.T).mean()) - target)
        assert float(terms[f"mcc_{modality}"]) == pytest.approx(expected, rel=1e-3)
    total = terms["triplet"] + 4 * terms["mcc_sketch"] + 8 * terms["mcc_photo"]
    assert float(loss) == pytest.approx(float(total), rel=1e-5)
    assert model.across_samples == ("mcc",)
    assert build().across_samples == ()


def test_an_explanation_shows_patches_of_the_last_block_and_attention_rollout():
    model = build()
    found = compiled(model.correspond)(images(2), images(2, seed=1))
    encode = compiled(model.encode)
    sketch, photo = encode(images(2), "sketch"), encode(images(2, seed=1), "photo")
    np.testing.assert_allclose(found.similarity, jnp.diag(model.score(sketch, photo)), atol=1e-5)
    assert found.match.shape == (2, 16, 16)
    assert jnp.abs(found.match).max() <= 1.0001
    for importance in (found.sketch_importance, found.photo_importance):
        assert importance.shape == (2, 16)
        np.testing.assert_allclose(importance.sum(axis=1), 1, rtol=1e-5)
    assert "never trained to match" in model.local_evidence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet50"}, "backbone='resnet50': choose one of dinov2_vits14"),
        ({"image_size": 36}, "image_size=36 must be a multiple of 8, the side of the patches"),
        ({"trainable": "norms"}, "trainable='norms': choose one of adapters, all"),
        ({"mcc_weights": (1.0,)}, "must have two numbers each: of sketches and of photos"),
        ({"rank": 0}, "config.model.rank=0: .* must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: create({**SMALL, **changes}, rngs=nnx.Rngs(0)))
