"""Anchors, their cosine matrix, and the perceptron that computes the score from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from zse_jax.models.relation_network import (
    Anchors,
    RelationNetwork,
    cosine_matrix,
    default_anchors,
)

F32 = jnp.dtype("float32")


def anchors(tokens, count, anchor_map="spatial", width=6, out=5) -> Anchors:
    return Anchors(tokens, width, count, out, anchor_map=anchor_map, dtype=F32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("tokens", "count"), [(196, 49), (144, 144), (64, 64), (16, 16), (256, 64)]
)
def test_the_default_number_is_the_published_one(tokens, count):
    assert default_anchors(tokens) == count
    anchors(tokens, count)  # is possible


def convolve(grid, kernel, bias):
    """2x2 convolution of stride 2 of a [d, side, side] map by loops; kernel [2, 2, d, out]."""
    side = grid.shape[1]
    out = np.zeros((side // 2, side // 2, kernel.shape[-1]))
    for y in range(side // 2):
        for x in range(side // 2):
            window = grid[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            out[y, x] = np.einsum("dyx,yxdo->o", window, kernel) + bias
    return out.reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("anchor_map", ["published", "spatial"])
def test_merging_is_a_convolution_of_the_chosen_map(anchor_map):
    model = anchors(16, 4, anchor_map)
    tokens = np.random.default_rng(0).standard_normal((2, 16, 6)).astype(np.float32)
    kernel = np.asarray(model.merge.kernel[...]).reshape(2, 2, 6, 5)
    for got, matrix in zip(model(jnp.asarray(tokens)), tokens, strict=True):
        # The published code views the [tokens, d] memory as [d, side, side].
        grid = (matrix if anchor_map == "published" else matrix.T).reshape(6, 4, 4)
        want = convolve(grid, kernel, np.asarray(model.merge.bias[...]))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_spatial_anchor_depends_on_its_own_four_tokens_only():
    model = anchors(16, 4)
    tokens = jax.random.normal(jax.random.key(0), (1, 16, 6))
    moved = model(tokens.at[0, 15].add(1.0)) - model(tokens)
    assert np.abs(moved[0, 3]).max() > 0
    np.testing.assert_array_equal(moved[0, :3], 0)


def test_as_many_anchors_as_tokens_are_the_tokens():
    model = anchors(144, 144)
    tokens = jax.random.normal(jax.random.key(0), (1, 144, 6))
    np.testing.assert_array_equal(model(tokens), tokens)


@pytest.mark.parametrize(("tokens", "count"), [(144, 49), (196, 50), (177, 44), (25, 6)])
def test_impossible_number_of_anchors_is_an_error(tokens, count):
    with pytest.raises(ValueError, match=f"{count} anchors cannot be made from {tokens}"):
        anchors(tokens, count)


def test_unknown_anchor_map_is_an_error():
    with pytest.raises(ValueError, match="anchor_map='round'"):
        anchors(16, 4, "round")


@given(st.integers(0, 10**6))
def test_cosine_is_bounded_scale_free_and_symmetric(seed):
    p, q = jax.random.normal(jax.random.key(seed), (2, 1, 7, 5))
    cosine = cosine_matrix(p, q)
    assert np.abs(cosine).max() <= 1 + 1e-5
    np.testing.assert_allclose(cosine_matrix(3 * p, 0.1 * q), cosine, atol=1e-5)
    np.testing.assert_allclose(cosine_matrix(q, p), cosine.swapaxes(1, 2), atol=1e-6)


@pytest.mark.slow
def test_a_zero_anchor_has_cosine_zero_and_a_finite_gradient():
    p = jnp.zeros((1, 2, 3)).at[0, 0].set(1.0)
    np.testing.assert_allclose(cosine_matrix(p, p)[0], [[1, 0], [0, 0]], atol=1e-6)
    assert np.isfinite(jax.grad(lambda p: cosine_matrix(p, p).sum())(p)).all()


@pytest.mark.parametrize(("count", "hidden"), [(49, 343), (144, 1728), (196, 2744), (16, 64)])
def test_hidden_widths_are_the_published_ones(count, hidden):
    shapes = nnx.eval_shape(
        lambda: RelationNetwork(count, dropout=0.1, dtype=F32, rngs=nnx.Rngs(0))
    )
    assert [layer.kernel.shape for layer in shapes.layers] == [
        (count**2, hidden),
        (hidden, count),
        (count, 1),
    ]


@pytest.mark.slow
def test_the_matrix_is_read_sketch_major():
    network = nnx.view(
        RelationNetwork(2, dropout=0.1, dtype=F32, rngs=nnx.Rngs(0)), deterministic=True
    )
    cosine = jnp.asarray([[[0.1, 0.2], [0.3, 0.4]]])
    x = np.array([[0.1, 0.2, 0.3, 0.4]])
    for i, layer in enumerate(network.layers):
        x = x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        x = np.maximum(x, 0) if i < 2 else x
    np.testing.assert_allclose(network(cosine), x[:, 0], rtol=1e-5)


@pytest.mark.slow
def test_logits_keep_float32_resolution_in_bfloat16():
    model = RelationNetwork(4, dropout=0.0, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
    logits = model(jax.random.uniform(jax.random.key(0), (400, 4, 4)))
    assert logits.dtype == jnp.float32
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    assert len(np.unique(logits)) > 1.5 * len(np.unique(rounded))
