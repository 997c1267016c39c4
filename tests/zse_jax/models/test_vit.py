"""Vision Transformer blocks and token selection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from tests.zse_jax.random_weights import drawn
from zse_jax.models.layers import linear
from zse_jax.models.lora import AdaptedLinear
from zse_jax.models.vit import (
    Encoder,
    attend,
    merge_heads,
    select_tokens,
    split_heads,
    tokens_after_selection,
)


def encoder(keep_rates=None, depth=3, heads=2, dropout=0.0) -> Encoder:
    return drawn(
        lambda: Encoder(
            width=16,
            depth=depth,
            heads=heads,
            mlp_width=32,
            dropout=dropout,
            keep_rates=keep_rates,
            dtype=jnp.dtype("float32"),
            rngs=nnx.Rngs(params=0, dropout=1),
        )
    )


@nnx.jit
def run(model: Encoder, x):
    return model(x)


def test_attention_agrees_with_that_of_jax():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, 3, 4)) for i in range(3))
    out, weights = attend(*(x.swapaxes(1, 2) for x in (q, k, v)))
    np.testing.assert_allclose(
        out.swapaxes(1, 2), jax.nn.dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_fused_attention_has_the_results_and_gradients_of_the_explicit_form():
    operands = [jax.random.normal(jax.random.key(i), (2, 3, 5, 8)) for i in range(4)]

    def total(fused, q, k, v, w):
        out, weights = attend(q, k, v, fused=fused)
        return (out * w).sum(), (out, weights)

    explicit, fused = (
        jax.value_and_grad(total, argnums=(1, 2, 3), has_aux=True)(form, *operands)
        for form in (None, "xla")
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), explicit, fused
    )


def test_programs_with_fused_attention_do_not_compute_unused_weights():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 3, 5, 8)) for i in range(3))
    program = jax.jit(lambda *x: attend(*x, fused="xla")[0]).lower(q, k, v).compile()
    assert program.as_text().count(" exponential(") == 1


def test_dropout_of_weights_is_not_fused():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 3, 5, 8)) for i in range(3))
    dropped = attend(q, k, v, nnx.Dropout(0.5, rngs=nnx.Rngs(0)), fused="xla")[0]
    assert not np.allclose(dropped, attend(q, k, v)[0])


@pytest.mark.parametrize("adapted", [False, True])
def test_parts_of_a_linear_layer_are_those_of_its_output(adapted):
    layer = linear(6, 9, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    if adapted:
        layer = AdaptedLinear(layer, 2, ["shared"], rngs=nnx.Rngs(1))
        layer.adapters["shared"].up[...] = jnp.ones((2, 9))
    x = jax.random.normal(jax.random.key(0), (2, 4, 6))
    np.testing.assert_allclose(
        jnp.concatenate(layer.parts(x, 3), -1), layer(x), rtol=1e-5, atol=1e-6
    )


def test_heads_split_and_merge_are_inverse():
    x = jax.random.normal(jax.random.key(0), (2, 5, 12))
    np.testing.assert_array_equal(merge_heads(split_heads(x, 3)), x)


def test_without_selection_every_patch_is_kept_in_order():
    out = run(encoder(), jax.random.normal(jax.random.key(0), (2, 10, 16)))
    assert out.tokens.shape == (2, 10, 16)
    np.testing.assert_array_equal(out.kept, np.tile(np.arange(9), (2, 1)))


def test_selection_keeps_the_most_attended_tokens_in_their_original_order():
    tokens = jnp.arange(2 * 6 * 1, dtype=jnp.float32).reshape(2, 6, 1)
    importance = jnp.asarray([[0.1, 0.5, 0.2, 0.4, 0.3], [0.5, 0.1, 0.1, 0.2, 0.3]])
    kept = jnp.asarray([[2, 3, 5, 7, 8], [0, 1, 2, 3, 4]])
    out = select_tokens(tokens, kept, importance, 0.5)
    np.testing.assert_array_equal(out.tokens[..., 0], [[0, 2, 4, 5], [6, 7, 10, 11]])
    np.testing.assert_array_equal(out.kept, [[3, 7, 8], [0, 3, 4]])


@pytest.mark.slow
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.3, 0.5, 0.8, 0.99]))
def test_selection_is_a_sorted_choice_without_repetition(seed, rate):
    importance = jax.random.uniform(jax.random.key(seed), (3, 16))
    tokens, places = jnp.zeros((3, 17, 2)), jnp.tile(jnp.arange(16), (3, 1))
    out = jax.tree.map(np.asarray, select(tokens, places, importance, rate))
    assert (np.diff(out.kept, axis=1) > 0).all()
    dropped = [np.setdiff1d(np.arange(16), row) for row in np.asarray(out.kept)]
    for scores, kept, gone in zip(np.asarray(importance), out.kept, dropped, strict=True):
        assert scores[kept].min() >= scores[gone].max(initial=0)


select = jax.jit(select_tokens, static_argnums=3)


def test_published_rates_keep_144_of_196_tokens():
    rates = {4: 0.9, 7: 0.9, 10: 0.9}
    assert [tokens_after_selection(196, dict(list(rates.items())[:i])) for i in range(4)] == [
        196,
        177,
        160,
        144,
    ]


def test_selection_happens_after_attention_within_its_block():
    """With one block, kept tokens equal those without selection at the same places."""
    x = jax.random.normal(jax.random.key(0), (2, 10, 16))
    plain, selected = run(encoder(depth=1), x), run(encoder({1: 0.5}, depth=1), x)
    plain, selected = jax.tree.map(np.asarray, (plain, selected))
    assert selected.tokens.shape == (2, 6, 16)
    for i in range(2):
        np.testing.assert_allclose(
            selected.tokens[i, 1:], plain.tokens[i, 1:][selected.kept[i]], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(selected.tokens[i, 0], plain.tokens[i, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rates", [{4: 0.5}, {0: 0.5}, {1: 0.0}, {1: 1.5}])
def test_impossible_selection_is_an_error(rates):
    with pytest.raises(ValueError, match="Token selection with rate"):
        encoder(rates)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match="5 attention heads cannot share a width of 16"):
        encoder(heads=5)


def test_dropout_is_off_in_a_deterministic_view():
    model = encoder(depth=1, dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (1, 4, 16))
    assert not np.allclose(run(model, x).tokens, run(model, x).tokens)
    still = nnx.view(model, deterministic=True)
    np.testing.assert_array_equal(run(still, x).tokens, run(still, x).tokens)
