"""Golden parity of CMCA: features, loss, gradients of every adapter, and merging."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.compiled import compiled
from tests.zse_jax.pretrained.test_torchvision_resnet import relative_error
from tests.zse_jax.pretrained.weights import GOLDEN, draw
from tests.zse_jax.random_weights import drawn
from zse_jax.models import lora
from zse_jax.pretrained import cmca
from zse_jax.retrievers import create

SETTINGS = {"system": "cmca", "backbone": "dinov2_vits14"}


@pytest.fixture(scope="module")
def published():
    model = drawn(lambda: create(SETTINGS, rngs=nnx.Rngs(0)))
    cmca.load(model, draw("cmca"))
    return model


@pytest.fixture(scope="module")
def inputs():
    """Sketches, photos and small photos, normalised."""
    rng = np.random.default_rng(17)
    return [
        jnp.asarray(rng.standard_normal((2, 3, *sides), dtype=np.float32).transpose(0, 2, 3, 1))
        for sides in ((224, 224), (224, 224), (98, 126))
    ]


@nnx.jit
def loss_and_gradients(model, batch):
    """The loss, and the gradients of the adapters alone."""
    wrt = nnx.DiffState(0, lambda path, _: lora.is_adapter(path))
    return nnx.value_and_grad(lambda model: model.loss(batch)[0], argnums=wrt)(model)


@pytest.mark.slow
def test_golden_features_with_and_without_merging(golden, published, inputs):
    expected = golden("cmca")
    cases = zip(
        inputs, ("sketch", "photo", "photo"), ("sketch", "photo", "small_photo"), strict=True
    )
    merge = nnx.jit(lambda model, x, modality: lora.merged(model.backbone, modality)(x)[0],
                    static_argnums=2)  # fmt: skip
    for images, modality, name in cases:
        found = compiled(published.features)(images, modality)
        assert relative_error(found, expected[name]) < 1e-4
        assert relative_error(merge(published, images, modality), found) < 1e-5


@pytest.mark.slow
def test_golden_loss_and_gradient_norms_of_every_adapter(golden, published, inputs):
    sketches, photos, _ = inputs
    pairs = jnp.stack([photos, photos[::-1]], axis=1)
    loss, gradients = loss_and_gradients(
        published, {"sketches": sketches[:, None], "photos": pairs}
    )
    assert abs(loss - golden("cmca")["loss"]) < 1e-4 * abs(golden("cmca")["loss"])
    names = cmca.table(published.backbone)
    found = {
        names[path[1:]].name: np.linalg.norm(value) for path, value in nnx.to_flat_state(gradients)
    }
    expected = json.loads((GOLDEN / "cmca_gradient_norms.json").read_text())
    assert found.keys() == expected.keys()
    assert len(found) == 156
    for name, norm in expected.items():
        assert found[name] == pytest.approx(norm, rel=2e-3), name
