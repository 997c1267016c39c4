"""Losses against formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zse_jax import losses
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


def unit_rows(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@given(st.integers(0, 10**6), st.floats(0, 2))
def test_cosine_triplet_agrees_with_its_formula(seed, margin):
    a, p, n = np.random.default_rng(seed).standard_normal((3, 4, 6), np.float32)
    near, far = (1 - (unit_rows(a) * unit_rows(x)).sum(-1) for x in (p, n))
    want = np.maximum(near - far + margin, 0).mean()
    found = losses.cosine_triplet(*map(jnp.asarray, (a, p, n)), margin=margin)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_cosine_triplet_at_equal_distances_is_the_margin_with_a_finite_gradient():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4), np.float32))
    for positive in (x, -x, jnp.zeros_like(x)):
        loss, gradient = jax.value_and_grad(losses.cosine_triplet)(
            x, positive, positive, margin=0.7
        )
        np.testing.assert_allclose(loss, 0.7, rtol=1e-5)
        assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(losses.cosine_triplet)(jnp.zeros_like(x), x, -x)).all()


@given(st.integers(0, 10**6), st.floats(0.1, 50))
def test_text_classification_agrees_with_its_formula(seed, scale):
    rng = np.random.default_rng(seed)
    x, texts = rng.standard_normal((4, 6), np.float32), rng.standard_normal((3, 6), np.float32)
    labels = rng.integers(0, 3, 4).astype(np.int32)
    logits = scale * unit_rows(x.astype(np.float64)) @ unit_rows(texts.astype(np.float64)).T
    want = np.mean(
        [np.log(np.exp(row - row[i]).sum()) for row, i in zip(logits, labels, strict=True)]
    )
    found = losses.text_classification(*map(jnp.asarray, (x, texts, labels)), scale=scale)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def divergence(delta, labels):
    p = np.exp(delta.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    pairs = [
        (p[i] * np.log(p[i] / p[j])).sum()
        for i in range(len(p))
        for j in range(len(p))
        if labels[i] != labels[j]
    ]
    return np.mean(pairs) if pairs else 0.0


@given(st.integers(0, 10**6))
def test_relative_distance_divergence_is_the_mean_kl_of_pairs_of_different_classes(seed):
    rng = np.random.default_rng(seed)
    delta = rng.standard_normal((4, 3), np.float32)
    labels = rng.integers(0, 3, 4).astype(np.int32)
    found = losses.relative_distance_divergence(jnp.asarray(delta), jnp.asarray(labels))
    np.testing.assert_allclose(found, divergence(delta, labels), rtol=1e-3, atol=1e-5)
    order = rng.permutation(4)
    again = losses.relative_distance_divergence(
        jnp.asarray(delta[order]), jnp.asarray(labels[order])
    )
    np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-6)


def test_relative_distance_divergence_is_zero_when_classes_agree():
    row = np.random.default_rng(0).standard_normal((1, 5)).astype(np.float32)
    labels = jnp.arange(4, dtype=jnp.int32)
    agreeing = jnp.asarray(row + np.arange(4, dtype=np.float32)[:, None])  # equal by softmax
    found = losses.relative_distance_divergence(agreeing, labels)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    alone = jnp.asarray(np.random.default_rng(1).standard_normal((4, 5)), jnp.float32)
    assert losses.relative_distance_divergence(alone, jnp.zeros(4, jnp.int32)) == 0


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_shuffling_patches_is_a_bijection(seed, grid):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 6, 12, 3), dtype=np.uint8)
    order = np.stack([rng.permutation(grid**2) for _ in range(2)]).astype(np.int32)
    shuffled = losses.shuffle_patches(jnp.asarray(images), jnp.asarray(order))
    h, w = 6 // grid, 12 // grid
    for image, given_order, found in zip(images, order, np.asarray(shuffled), strict=True):
        for place, source in enumerate(given_order):
            (y, x), (v, u) = divmod(place, grid), divmod(int(source), grid)
            np.testing.assert_array_equal(
                found[y * h : (y + 1) * h, x * w : (x + 1) * w],
                image[v * h : (v + 1) * h, u * w : (u + 1) * w],
            )
    back = losses.shuffle_patches(shuffled, jnp.asarray(np.argsort(order, axis=1), jnp.int32))
    np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize(("size", "patches"), [(7, 4), (6, 3)])
def test_images_that_do_not_divide_into_patches_are_an_error(size, patches):
    with pytest.raises(ValueError, match=f"{size}x{size} do not divide into .* {patches} patches"):
        losses.shuffle_patches(
            jnp.zeros((1, size, size, 3)), jnp.arange(patches, dtype=jnp.int32)[None]
        )


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_mean_similarity_is_the_distance_of_the_mean_cosine_from_its_target(seed, target):
    x = np.random.default_rng(seed).standard_normal((5, 3), np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = losses.mean_similarity(jnp.asarray(x), target)
    assert float(found) == pytest.approx(abs((unit @ unit.T).mean() - target), abs=1e-5)
