"""EfficientCNN with another backbone: a small one, registered here, is trained and explained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import efficient_default
from tests.zse_jax.random_weights import drawn_state
from tests.zse_jax.retrievers.test_correspond import correspond
from tests.zse_jax.retrievers.test_efficient_cnn import _encode as encode
from tests.zse_jax.retrievers.test_efficient_cnn import groups, pixels
from zse_jax.checkpoints import arrays
from zse_jax.models.backbone import BACKBONES
from zse_jax.models.resnet import convolution
from zse_jax.pretrained import publishers
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


@pytest.mark.slow
def test_one_training_step_changes_every_parameter():
    config = efficient_default.get_config()
    config.model.update(SETTINGS)
    config.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"})
    config.train.steps = 1
    setup = step.set_up(config, sharding.make_mesh(devices=jax.devices()[:1]))
    state = drawn_state(setup)
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
        ({"depths": (1, 1)}, "'convolutions' does not have.* depths. Set .*depths=.3, 4, 6, 3"),
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
