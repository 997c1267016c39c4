"""EfficientNet-Lite: published sizes, folded batch normalisation, frozen statistics, training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.random_weights import drawn
from zse_jax.models.backbone import BACKBONES, Multiscale, create_backbone
from zse_jax.models.efficientnet_lite import (
    VARIANTS,
    Convolution,
    EfficientNetLite,
    Variant,
    stages,
)

PARAMETERS = {"lite0": 4_652_008, "lite1": 5_416_680, "lite2": 6_092_072, "lite3": 8_197_096}
PARAMETERS["lite4"] = 13_006_568


@pytest.fixture
def tiny(monkeypatch):
    """The name of a variant with one block a stage, as narrow as possible."""
    monkeypatch.setitem(VARIANTS, "tiny", Variant(0.1, 0.2, 32))
    return "tiny"


def images(size=32, count=2, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((count, size, size, 3)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lite0", "lite4"])
def test_the_published_variants_have_the_published_numbers_of_parameters(variant):
    name = f"efficientnet_{variant}"
    model = nnx.eval_shape(lambda: create_backbone(name, {}, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert (count, model.features, model.classes) == (PARAMETERS[variant], 1280, 1000)
    assert isinstance(model, Multiscale)


def test_maps_have_the_documented_strides_and_pooling_is_the_mean_of_the_last():
    model = nnx.eval_shape(lambda: EfficientNetLite(rngs=nnx.Rngs(0)))
    shapes = nnx.eval_shape(lambda model, x: model.feature_maps(x), model, images(76))
    assert {stride: x.shape[1:] for stride, x in shapes.items()} == {
        2: (38, 38, 16), 4: (19, 19, 24), 8: (10, 10, 40), 16: (5, 5, 112), 32: (3, 3, 320),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("per_channel", "size"), [(True, 3), (False, 3), (False, 1)])
def test_folding_batch_normalisation_into_a_convolution_changes_nothing(per_channel, size):
    layer = drawn(
        lambda: Convolution(
            4, 4, size, per_channel=per_channel, frozen=False, dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6, 4)), jnp.float32)
    folded = nnx.view(layer, use_running_average=True)(x)
    convolved = layer._convolved(x, layer.kernel[...])
    want = layer.norm(convolved, use_running_average=True)
    np.testing.assert_allclose(folded, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_training_moves_the_running_averages_unless_they_are_frozen(tiny):
    def moved(frozen):
        def make():
            return EfficientNetLite(tiny, frozen_statistics=frozen, rngs=nnx.Rngs(0))

        model = drawn(make)
        before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
        gradients = nnx.jit(nnx.grad(lambda model, x: model(x)[1].sum()))(model, images())
        after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        still = jax.tree.leaves(jax.tree.map(np.array_equal, before, after))
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
        return {not same for same in still}

    assert moved(frozen=False) == {True}
    assert moved(frozen=True) == {False}


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_with_float32_variables_and_outputs(tiny):
    models = [
        drawn(lambda dtype=dtype: EfficientNetLite(tiny, dtype=dtype, rngs=nnx.Rngs(0)))
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    run = nnx.jit(lambda model, x: model(x)[0])
    single, half = (run(nnx.view(x, use_running_average=True), images()) for x in models)
    assert half.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(nnx.state(models[1]))} == {jnp.dtype("float32")}
    assert 0 < jnp.linalg.norm(half - single) < 0.1 * jnp.linalg.norm(single)


def test_an_unknown_variant_or_setting_is_an_error():
    with pytest.raises(ValueError, match="no variant 'lite5': choose one of lite0"):
        stages("lite5")
    with pytest.raises(ValueError, match="'efficientnet_lite0' does not have the settings depths"):
        create_backbone(
            "efficientnet_lite0", {"depths": (1, 1)}, dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
    assert {name for name in BACKBONES if name.startswith("efficientnet_")} == {
        f"efficientnet_{name}" for name in VARIANTS
    }
