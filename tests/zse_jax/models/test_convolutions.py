"""Convolutions: the form for CPUs equals XLA's own, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zse_jax.models import convolutions


def arrays(shape, size, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape in (shape, (size, size, 1, shape[3]))
    )


FORMS = {True: convolutions.shifted, False: convolutions.of_patches}
"""By whether each channel has its own kernel."""


@pytest.mark.parametrize("per_channel", FORMS)
@pytest.mark.slow
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3])
)
@settings(max_examples=8)
def test_values_and_gradients_are_those_of_the_native_operation(
    per_channel, height, width, size, stride
):
    x, kernel = arrays((2, height, width, 3), size)
    if not per_channel:  # [size, size, 3, 3], from one kernel per channel
        kernel = kernel * jnp.arange(1.0, 4.0)[:, None] + jnp.cos(jnp.arange(9.0)).reshape(3, 3)

    @jax.jit
    def results(x, kernel):
        forms = (FORMS[per_channel], convolutions.native)
        pullbacks = [jax.vjp(lambda x, k, f=form: f(x, k, stride), x, kernel) for form in forms]
        weights = jnp.cos(jnp.arange(pullbacks[0][0].size)).reshape(pullbacks[0][0].shape)
        return [(y, *pullback(weights)) for y, pullback in pullbacks]

    for ours, theirs in zip(*results(x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_gives_bfloat16_near_the_result_in_float32(stride):
    x, kernel = arrays((2, 7, 6, 4), 5)

    def loss(x, kernel):
        return (convolutions.depthwise(x, kernel, stride).astype(jnp.float32) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    found = gradient(*(a.astype(jnp.bfloat16) for a in (x, kernel)))
    assert {a.dtype for a in found} == {jnp.dtype(jnp.bfloat16)}
    for ours, exact in zip(found, gradient(x, kernel), strict=True):
        error = jnp.linalg.norm(ours.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 0.03


@pytest.mark.parametrize("form", [convolutions.depthwise, convolutions.convolution])
@pytest.mark.parametrize(("platform", "native"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_the_form_is_chosen_for_the_platform_of_the_program(platform, native, form):
    exported = jax.export.export(jax.jit(form), platforms=[platform])
    channels = 2 if form is convolutions.depthwise else 1
    program = exported(*arrays((1, 4, 4, channels), 3)).mlir_module()
    assert ("stablehlo.convolution" in program) == native
