"""DINOv2: published sizes, interpolation of positions, registers, and what a backbone returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.random_weights import drawn
from zse_jax.models.dinov2 import VARIANTS, DINOv2, Variant, bicubic, interpolated

# Without the mask token.
PARAMETERS = {"vits14": 22_056_192, "vitb14": 86_579_712, "vitl14": 304_367_616}


@pytest.fixture(params=[0, 4])
def tiny(monkeypatch, request):
    """The name of a variant with two narrow blocks, without and with registers."""
    monkeypatch.setitem(VARIANTS, "tiny", Variant(8, 2, 2, registers=request.param))
    return "tiny"


def build(variant, **changes):
    return drawn(lambda: DINOv2(variant, **changes, rngs=nnx.Rngs(0)))


def images(height=28, width=42, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((2, height, width, 3)), jnp.float32)


@pytest.mark.parametrize(
    "variant",
    ["vits14", *(pytest.param(x, marks=pytest.mark.slow) for x in ("vitb14_reg", "vitl14"))],
)
def test_the_published_variants_have_the_published_numbers_of_parameters(variant):
    model = nnx.eval_shape(lambda: DINOv2(variant, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    registers = 4 * model.features if "_reg" in variant else 0
    assert count == PARAMETERS[variant[:6]] + registers


@pytest.mark.parametrize(
    ("count", "smooth", "want"),
    [
        (2, False, [[0.809767, 0.217292, -0.027059], [-0.061498, 0.402241, 0.659257]]),
        (2, True, [[0.65008, 0.390048, -0.040128], [-0.040128, 0.390048, 0.65008]]),
    ],
)
def test_bicubic_interpolation_is_pytorchs(count, smooth, want):
    np.testing.assert_allclose(bicubic(3, count, smooth=smooth), want, atol=1e-5)


def test_positions_of_the_stored_grid_are_not_interpolated():
    positions = jnp.asarray(np.random.default_rng(0).standard_normal((1, 10, 2)), jnp.float32)
    assert interpolated(positions, 3, 3, smooth=False) is positions
    wide = interpolated(positions, 3, 5, smooth=True)
    assert wide.shape == (1, 16, 2)
    np.testing.assert_array_equal(wide[:, 0], positions[:, 0])


def test_the_pooled_vector_is_the_class_token_and_the_mean_of_the_local_features(tiny):
    model = build(tiny)
    run = nnx.jit(lambda m, x: (m.tokens(x), m(x)[0], m.local_features(x), m.feature_maps(x)[14]))
    tokens, pooled, local, patches = run(model, images())
    assert tokens.shape == (2, 1 + VARIANTS[tiny].registers + 6, 8)
    assert local.shape == patches.shape == (2, 2, 3, 8)
    np.testing.assert_array_equal(pooled, tokens[:, 0])
    np.testing.assert_array_equal(patches.reshape(2, 6, 8), tokens[:, -6:])
    np.testing.assert_allclose(local.mean(axis=(1, 2)), pooled, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_with_float32_variables_and_outputs(tiny):
    run = nnx.jit(lambda model, x: model(x)[0])
    single, half = (run(build(tiny, dtype=x), images()) for x in (jnp.float32, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(half - single) < 0.1 * jnp.linalg.norm(single)


def test_other_variants_and_image_sizes_are_errors(tiny):
    with pytest.raises(ValueError, match="no variant 'vitg14': choose one of vits14"):
        DINOv2("vitg14", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="28x40 does not divide into patches of 14x14"):
        nnx.eval_shape(lambda model, x: model(x), build(tiny), images(28, 40))
