"""EfficientCNN with other backbones: small ones, registered here, are trained and explained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import efficient_default
from tests.zse_jax import tiny
from tests.zse_jax.random_weights import drawn
from tests.zse_jax.retrievers.test_correspond import correspond
from tests.zse_jax.retrievers.test_efficient_cnn import _encode as encode
from tests.zse_jax.retrievers.test_efficient_cnn import groups, pixels
from tests.zse_jax.training import test_distillation
from zse_jax.checkpoints import arrays
from zse_jax.models import dinov2, efficientnet_lite
from zse_jax.models.backbone import BACKBONES
from zse_jax.models.resnet import convolution
from zse_jax.pretrained import efficientnet_lite as lite_weights
from zse_jax.pretrained import files, publishers
from zse_jax.retrievers import create
from zse_jax.runtime import sharding
from zse_jax.training import step

SETTINGS = {
    "backbone": "convolutions",
    "image_size": 16,
    "embedding_width": 6,
    "seen_classes": 5,
    "knowledge_weight": 0.0,
}


class Convolutions(nnx.Module):
    """Two convolutions without a classifier, for images of 16 x 16 pixels."""

    image_size = 16
    mean = std = (0.5, 0.5, 0.5)
    publishers = ()
    features, classes = 8, 0

    def __init__(self, *, dtype, rngs):
        self.first = convolution(3, 4, 3, 2, dtype=dtype, rngs=rngs)
        self.second = convolution(4, 8, 3, 2, dtype=dtype, rngs=rngs)

    def local_features(self, images):
        return jax.nn.relu(self.second(jax.nn.relu(self.first(images)))).astype(jnp.float32)

    def __call__(self, images):
        return self.local_features(images).mean(axis=(1, 2)), None


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(BACKBONES, "convolutions", Convolutions)


def build(**changes):
    return create({"system": "efficient_cnn", **SETTINGS, **changes}, rngs=nnx.Rngs(0))


def test_one_training_step_changes_every_parameter():
    config = efficient_default.get_config()
    config.model.update(SETTINGS)
    config.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"})
    config.train.steps = 1
    setup = step.set_up(config, sharding.make_mesh(devices=jax.devices()[:1]))
    state = setup.init()
    before = {name: np.array(x) for name, x in arrays.flat_arrays(state["model"]).items()}
    state, metrics = setup.step(state, groups())
    assert np.isfinite(metrics["loss"])
    after = arrays.flat_arrays(state["model"])
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


def test_pixels_are_normalised_with_the_statistics_of_the_backbone():
    model = build()
    features, _ = model.backbone(pixels(3).astype(jnp.float32) / 127.5 - 1)
    embedding = model.projection(features)
    want = embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(model, pixels(3)), want, rtol=1e-4, atol=1e-6)


def test_the_match_of_places_decomposes_the_cosine():
    model = build()
    sketches, photos = pixels(3), pixels(3, seed=1)
    found = correspond(model, sketches, photos)
    assert found.match.shape == (3, 16, 16)
    cosine = (encode(model, sketches) * encode(model, photos)).sum(axis=1)
    np.testing.assert_allclose(found.similarity, cosine, rtol=1e-4)
    np.testing.assert_allclose(model.similarity_of(found.match), cosine, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet51"}, "backbone='resnet51' is unknown: .*resnet50, .*convolutions"),
        ({"depths": (1, 1)}, "'convolutions' does not have the settings depths"),
        ({"image_size": 24}, "takes images of 16 pixels: set config.model.image_size"),
        ({"knowledge_weight": 1.0}, "no ImageNet classifier.*set config.model.knowledge_weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_the_backbone_does_not_support_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_weights_of_a_publisher_that_the_backbone_does_not_accept_are_an_error():
    weights = {"layer1.0.conv3.weight": np.zeros((1, 1, 1, 1), np.float32)}
    with pytest.raises(ValueError, match="torchvision_resnet, but the backbone Convolutions"):
        publishers.fill(build(), weights, "w.safetensors", "efficient_cnn")


@pytest.fixture
def small(monkeypatch):
    """Names of the published kinds of backbones at a small size."""
    monkeypatch.setitem(efficientnet_lite.VARIANTS, "tiny", efficientnet_lite.Variant(0.1, 0.2, 32))
    monkeypatch.setitem(dinov2.VARIANTS, "tiny", dinov2.Variant(8, 2, 2, registers=4))
    for name, kind in (
        ("efficientnet_tiny", efficientnet_lite.EfficientNetLite), ("dinov2_tiny", dinov2.DINOv2),
    ):  # fmt: skip
        monkeypatch.setitem(BACKBONES, name, functools.partial(kind, "tiny"))


@pytest.mark.parametrize("backbone", ["efficientnet_tiny", "dinov2_tiny"])
def test_the_match_of_places_of_published_backbones_decomposes_the_cosine(small, backbone):
    settings = {"system": "efficient_cnn", **SETTINGS, "backbone": backbone, "image_size": 42}
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
    changes = {"backbone": "dinov2_tiny", "image_size": 42, "knowledge_weight": 1.0}
    with pytest.raises(ValueError, match="'dinov2_tiny' has no ImageNet classifier.*to 0"):
        build(**changes)


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
