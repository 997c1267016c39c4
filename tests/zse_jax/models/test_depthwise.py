"""Depthwise convolutions: the form for CPUs equals XLA's own, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zse_jax.models import depthwise


def arrays(shape, size, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape in (shape, (size, size, 1, shape[3]))
    )


@pytest.mark.slow
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3])
)
@settings(max_examples=12)
def test_values_and_gradients_are_those_of_the_native_operation(height, width, size, stride):
    x, kernel = arrays((2, height, width, 3), size)

    @jax.jit
    def results(x, kernel):
        forms = (depthwise.shifted, depthwise.native)
        pullbacks = [jax.vjp(lambda x, k, f=form: f(x, k, stride), x, kernel) for form in forms]
        weights = jnp.cos(jnp.arange(pullbacks[0][0].size)).reshape(pullbacks[0][0].shape)
        return [(y, *pullback(weights)) for y, pullback in pullbacks]

    for ours, theirs in zip(*results(x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_gives_bfloat16_near_the_result_in_float32(stride):
    x, kernel = arrays((2, 7, 6, 4), 5)

    def loss(x, kernel):
        return (depthwise.depthwise(x, kernel, stride).astype(jnp.float32) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    found = gradient(*(a.astype(jnp.bfloat16) for a in (x, kernel)))
    assert {a.dtype for a in found} == {jnp.dtype(jnp.bfloat16)}
    for ours, exact in zip(found, gradient(x, kernel), strict=True):
        error = jnp.linalg.norm(ours.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 0.03


@pytest.mark.parametrize(("platform", "grouped"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_the_form_is_chosen_for_the_platform_of_the_program(platform, grouped):
    exported = jax.export.export(jax.jit(depthwise.depthwise), platforms=[platform])
    program = exported(*arrays((1, 4, 4, 2), 3)).mlir_module()
    assert ("stablehlo.convolution" in program) == grouped
