"""EfficientCNN with the published kinds of backbones, at a small size: explained and trained."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax import tiny
from tests.zse_jax.random_weights import drawn
from tests.zse_jax.retrievers.test_correspond import correspond
from tests.zse_jax.retrievers.test_efficient_cnn import _encode as encode
from tests.zse_jax.training import test_distillation
from zse_jax.models import dinov2, efficientnet_lite
from zse_jax.models.backbone import BACKBONES
from zse_jax.pretrained import efficientnet_lite as lite_weights
from zse_jax.pretrained import files
from zse_jax.retrievers import create

SETTINGS = {
    "system": "efficient_cnn",
    "image_size": 42,
    "embedding_width": 6,
    "seen_classes": 5,
    "knowledge_weight": 0.0,
}


@pytest.fixture
def small(monkeypatch):
    """Names of the published kinds of backbones at a small size."""
    monkeypatch.setitem(efficientnet_lite.VARIANTS, "tiny", efficientnet_lite.Variant(0.1, 0.2, 32))
    monkeypatch.setitem(dinov2.VARIANTS, "tiny", dinov2.Variant(8, 2, 2, registers=4))
    for name, kind in (
        ("efficientnet_tiny", efficientnet_lite.EfficientNetLite), ("dinov2_tiny", dinov2.DINOv2),
    ):  # fmt: skip
        monkeypatch.setitem(BACKBONES, name, functools.partial(kind, "tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet_tiny", "dinov2_tiny"])
def test_the_match_of_places_of_published_backbones_decomposes_the_cosine(small, backbone):
    settings = {**SETTINGS, "backbone": backbone}
    model = nnx.view(
        drawn(lambda: create(settings, rngs=nnx.Rngs(0))),
        use_running_average=True, raise_if_not_found=False,
    )  # fmt: skip
    sketches, photos = (
        jnp.asarray(np.random.default_rng(i).integers(0, 256, (2, 42, 42, 3)), jnp.uint8)
        for i in range(2)
    )
    found = correspond(model, sketches, photos)
    cosine = (encode(model, sketches) * encode(model, photos)).sum(axis=1)
    np.testing.assert_allclose(found.similarity, cosine, rtol=1e-3, atol=1e-5)


def test_a_backbone_without_a_classifier_cannot_preserve_knowledge(small):
    settings = {**SETTINGS, "backbone": "dinov2_tiny", "knowledge_weight": 1.0}
    with pytest.raises(ValueError, match="'dinov2_tiny' has no ImageNet classifier.*to 0"):
        create(settings, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_efficientnet_lite_is_its_own_teacher_and_trains(small, monkeypatch, tmp_path):
    tiny.install(monkeypatch.setattr)
    network = drawn(lambda: efficientnet_lite.EfficientNetLite("tiny", classes=7, rngs=nnx.Rngs(0)))
    weights = tmp_path / "lite.safetensors"
    files.write(weights, lite_arrays(network))
    settings = test_distillation.config(init_from=str(weights)).unlock()
    del settings.model.depths, settings.model.width
    settings.model.backbone = "efficientnet_tiny"
    model, state, setup = test_distillation.begin(settings.lock(), tmp_path)
    assert np.isfinite(model.knowledge[...]).all()
    np.testing.assert_array_equal(model.backbone.stem.kernel[...], network.stem.kernel[...])
    labels = jnp.repeat(jnp.arange(3)[:, None], 2, axis=1)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16, 3)), jnp.uint8)
    batch = {"sketches": images, "photos": images, "sketch_labels": labels, "photo_labels": labels}
    _, metrics = setup.step(state, batch)
    assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0


def lite_arrays(network):
    """The arrays of a network by the publisher's names."""
    state = dict(nnx.to_flat_state(nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))))
    return {
        source.name: np.asarray(x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T)
        for path, source in lite_weights.table(network).items()
        for x in [state[path][...]]
    }
