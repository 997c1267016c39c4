"""Cross-attention between sketch and photo tokens."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.random_weights import drawn
from zse_jax.models.cross_attention import CrossAttention, UnbiasedNorm
from zse_jax.models.vit import fused_attention

WIDTH, HEADS = 12, 3


def build(value="own") -> CrossAttention:
    """Parameters of a new model are equal; these differ, so that a swap of them is detected."""
    return drawn(
        lambda: CrossAttention(
            WIDTH,
            HEADS,
            20,
            value=value,
            dropout=0.0,
            dtype=jnp.dtype("float32"),
            rngs=nnx.Rngs(params=0, dropout=1),
        )
    )


def oracle(layer, residual, query, key, value):
    """One direction in numpy, following the description in the paper."""
    residual, query, key, value = (np.asarray(x, np.float64) for x in (residual, query, key, value))

    def affine(linear, x):
        return x @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])

    def norm(module, x):
        std = x.std(-1, keepdims=True, ddof=1)
        return np.asarray(module.scale[...]) * (x - x.mean(-1, keepdims=True)) / (
            std + 1e-6
        ) + np.asarray(module.bias[...])

    q, k, v = affine(layer.query, query), affine(layer.key, key), affine(layer.value, value)
    size, outs = WIDTH // HEADS, []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        logits = q[:, part] @ k[:, part].T / np.sqrt(size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        outs.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
    x = norm(layer.norm_attended, residual + affine(layer.out, np.concatenate(outs, -1)))
    hidden = np.maximum(affine(layer.mlp_in, x), 0)
    return norm(layer.norm_mlp, x + affine(layer.mlp_out, hidden))


@pytest.mark.slow
@pytest.mark.parametrize("value", ["own", "other"])
def test_both_directions_agree_with_a_numpy_oracle(value):
    model = build(value)
    s, p = (jax.random.normal(jax.random.key(i), (2, 5, WIDTH)) for i in range(2))
    sketch, photo = nnx.jit(lambda model, s, p: model(s, p))(model, s, p)
    s, p, sketch, photo = (np.asarray(x) for x in (s, p, sketch, photo))
    for i in range(2):
        sv, pv = (s[i], p[i]) if value == "own" else (p[i], s[i])
        np.testing.assert_allclose(
            sketch[i], oracle(model.sketch_layer, s[i], s[i], p[i], sv), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            photo[i], oracle(model.photo_layer, p[i], p[i], s[i], pv), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_unbiased_norm_divides_by_n_minus_one_and_survives_a_constant():
    norm = UnbiasedNorm(4, dtype=jnp.dtype("float32"))
    x = jnp.asarray([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]])
    expected = (np.asarray(x[0]) - 2.5) / (np.std(np.asarray(x[0]), ddof=1) + 1e-6)
    np.testing.assert_allclose(norm(x)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(norm(x)[1], 0)
    assert np.isfinite(jax.grad(lambda x: norm(x).sum())(x)).all()


def test_as_published_all_projections_start_from_one_draw():
    model = CrossAttention(
        WIDTH, HEADS, 20, dropout=0.1, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )
    first = model.sketch_layer.query.kernel[...]
    for layer in (model.sketch_layer, model.photo_layer):
        for name in ("query", "key", "value", "out"):
            np.testing.assert_array_equal(getattr(layer, name).kernel[...], first)
    np.testing.assert_array_equal(
        model.sketch_layer.mlp_in.kernel[...], model.photo_layer.mlp_in.kernel[...]
    )


def test_parameters_that_start_equal_are_still_separate():
    model = CrossAttention(
        WIDTH, HEADS, 20, dropout=0.1, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    linear = WIDTH * WIDTH + WIDTH
    per_layer = 4 * linear + 2 * WIDTH * 20 + 20 + WIDTH + 4 * WIDTH
    assert count == 2 * per_layer


def local(projected):
    """Only local tokens are queries; all tokens are keys and values."""
    return projected._replace(tokens=projected.tokens[:, 1:], query=projected.query[:, :, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("fused", [None, "xla"])
@pytest.mark.parametrize("value", ["own", "other"])
def test_meeting_equals_attending_to_each_photo(value, fused):
    model = build(value)
    s, p = (jax.random.normal(jax.random.key(i), (n, 5, WIDTH)) for i, n in enumerate((1, 4)))

    @nnx.jit
    def both(model, s, p):
        sketch, photos = local(model.project_sketches(s)), local(model.project_photos(p))
        met = model.meeting(photos, fused)(jax.tree.map(lambda x: x[0], sketch))
        return met, model(jnp.broadcast_to(s, p.shape), p)

    met, expected = both(model, s, p)
    for found, whole in zip(met, expected, strict=True):
        np.testing.assert_allclose(found, whole[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "version", "capability", "dtype", "width", "used"),
    [
        ("gpu", "PJRT C API cuda 12090", "9.0", "bfloat16", 96, True),
        ("gpu", "PJRT C API cuda 12090", "8.0", "float16", 96, True),
        ("gpu", "PJRT C API cuda 12090", "7.5", "bfloat16", 96, False),
        ("gpu", "PJRT C API cuda 12090", "9.0", "float32", 96, False),
        ("gpu", "PJRT C API cuda 12090", "9.0", "bfloat16", 12, False),
        ("gpu", "PJRT C API cuda 12090", "9.0", "bfloat16", 192, False),
        ("gpu", "PJRT C API rocm 60000", "gfx942", "bfloat16", 96, False),
        ("cpu", "cpu", None, "bfloat16", 96, False),
        ("tpu", "libtpu", None, "bfloat16", 96, False),
    ],
)
def test_cudnn_is_used_for_half_precision_on_nvidia_gpus_from_ampere_on(
    monkeypatch, platform, version, capability, dtype, width, used
):
    device = SimpleNamespace(compute_capability=capability)
    backend = SimpleNamespace(
        platform=platform, platform_version=version, local_devices=lambda: [device]
    )
    monkeypatch.setattr("jax.extend.backend.get_backend", lambda: backend)
    assert fused_attention(jnp.dtype(dtype), width) is used


def test_unknown_value_is_an_error():
    with pytest.raises(ValueError, match='choose "own" or "other"'):
        build("theirs")
