"""Losses against formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zse_jax.losses import euclidean_triplet, relation_mse


@given(st.integers(0, 10**6), st.floats(0, 3))
def test_triplet_agrees_with_its_formula(seed, margin):
    a, p, n = np.random.default_rng(seed).standard_normal((3, 4, 6), np.float32)
    near = np.sqrt(((a.astype(np.float64) - p + 1e-6) ** 2).sum(-1))
    far = np.sqrt(((a.astype(np.float64) - n + 1e-6) ** 2).sum(-1))
    want = np.maximum(near - far + margin, 0).mean()
    np.testing.assert_allclose(
        euclidean_triplet(*map(jnp.asarray, (a, p, n)), margin=margin), want, rtol=1e-5, atol=1e-6
    )


def test_triplet_at_equal_distances_is_the_margin_with_a_finite_gradient():
    x = jnp.ones((3, 4))
    assert euclidean_triplet(x, x, x, margin=0.7) == np.float32(0.7)
    assert np.isfinite(jax.grad(euclidean_triplet)(x, x, x)).all()


def test_relation_targets_are_clamped():
    score, target = jnp.asarray([0.99, 0.01, 0.5]), jnp.asarray([1.0, 0.0, 1.0])
    np.testing.assert_allclose(relation_mse(score, target), (0.49**2) / 3, rtol=1e-5)
