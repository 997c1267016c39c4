"""Google's `.npz` files: written in Google's format, loaded into ZSE's encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.random_weights import drawn
from zse_jax.pretrained import files, google_vit
from zse_jax.retrievers import create

SIZES = {
    "image_size": 32, "patch_size": 8, "scale_channels": 4, "width": 12, "depth": 2, "heads": 3,
    "mlp_width": 20, "cross_heads": 2, "cross_mlp_width": 8, "anchors": 4, "anchor_width": 6,
}  # fmt: skip


def zse(seed=0, **changes):
    settings = {"system": "zse"} | SIZES | changes
    return drawn(lambda: create(settings, rngs=nnx.Rngs(params=0, dropout=1)), seed)


def published(seed=0, grid=4, classes=10):
    """The names and shapes of Google's files, with random values."""
    rng = np.random.default_rng(seed)
    width, heads, mlp = SIZES["width"], SIZES["heads"], SIZES["mlp_width"]

    def value(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    arrays = {
        "cls": value(1, 1, width),
        "embedding/kernel": value(8, 8, 3, width),
        "embedding/bias": value(width),
        "Transformer/posembed_input/pos_embedding": value(1, 1 + grid**2, width),
        "Transformer/encoder_norm/scale": value(width),
        "Transformer/encoder_norm/bias": value(width),
        "head/kernel": value(width, classes),
        "head/bias": value(classes),
        "pre_logits/kernel": value(width, width),
        "pre_logits/bias": value(width),
    }
    for i in range(SIZES["depth"]):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}/{norm}/{leaf}": value(width) for leaf in ("scale", "bias")}
        for part in ("query", "key", "value"):
            arrays[f"{attention}/{part}/kernel"] = value(width, heads, width // heads)
            arrays[f"{attention}/{part}/bias"] = value(heads, width // heads)
        arrays[f"{attention}/out/kernel"] = value(heads, width // heads, width)
        arrays[f"{attention}/out/bias"] = value(width)
        arrays[f"{block}/MlpBlock_3/Dense_0/kernel"] = value(width, mlp)
        arrays[f"{block}/MlpBlock_3/Dense_0/bias"] = value(mlp)
        arrays[f"{block}/MlpBlock_3/Dense_1/kernel"] = value(mlp, width)
        arrays[f"{block}/MlpBlock_3/Dense_1/bias"] = value(width)
    return arrays


def norm(x, arrays, name, eps=1e-5):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def block(x, arrays, name):
    """One block of Google's network, head by head, in numpy."""
    attention = f"{name}/MultiHeadDotProductAttention_1"
    y = norm(x, arrays, f"{name}/LayerNorm_0")
    query, key, value = (
        np.einsum("td,dhc->htc", y, arrays[f"{attention}/{part}/kernel"])
        + arrays[f"{attention}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    logits = np.einsum("htc,hsc->hts", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    heads = np.einsum("hts,hsc->thc", weights, value)
    x = x + np.einsum("thc,hcd->td", heads, arrays[f"{attention}/out/kernel"])
    x = x + arrays[f"{attention}/out/bias"]
    mlp = f"{name}/MlpBlock_3"
    y = norm(x, arrays, f"{name}/LayerNorm_2") @ arrays[f"{mlp}/Dense_0/kernel"]
    y = np.asarray(jax.nn.gelu(y + arrays[f"{mlp}/Dense_0/bias"], approximate=False))
    return x + y @ arrays[f"{mlp}/Dense_1/kernel"] + arrays[f"{mlp}/Dense_1/bias"]


@pytest.mark.slow
def test_the_encoder_matches_googles_network(tmp_path):
    arrays = published()
    np.savez(tmp_path / "ViT.npz", **arrays)
    model = zse()
    google_vit.load(model, files.read(tmp_path / "ViT.npz"))
    model = nnx.view(model, deterministic=True)
    tokens = np.random.default_rng(1).standard_normal((5, SIZES["width"]))
    want = tokens
    for i in range(SIZES["depth"]):
        want = block(want, arrays, f"Transformer/encoderblock_{i}")
    want = norm(want, arrays, "Transformer/encoder_norm")
    found = model.encoder(jnp.asarray(tokens, jnp.float32)[None]).tokens[0]
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)


def test_patch_embedding_matches_googles_convolution():
    arrays, model = published(), zse()
    google_vit.load(model, arrays)
    patch = np.random.default_rng(2).standard_normal((8, 8, 3)).astype(np.float32)
    want = np.einsum("hwc,hwcd->d", patch, arrays["embedding/kernel"]) + arrays["embedding/bias"]
    found = model.tokenizer.patch_embedding(jnp.asarray(patch.reshape(1, -1)))[0]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_parameters_without_a_source_keep_their_values():
    model, untouched = zse(), zse()
    google_vit.load(model, published())
    for part in ("cross_attention", "anchors", "relation_network"):
        jax.tree.map(
            np.testing.assert_array_equal,
            nnx.state(getattr(model, part), nnx.Param),
            nnx.state(getattr(untouched, part), nnx.Param),
        )
    scale = model.tokenizer.scale_embedding.convolutions[0].kernel
    other = untouched.tokenizer.scale_embedding.convolutions[0].kernel
    np.testing.assert_array_equal(scale, other)
    np.testing.assert_array_equal(model.tokenizer.retrieval_token[...], published()["cls"])


@pytest.mark.parametrize("grid", [2, 6])
def test_positions_of_another_grid_are_interpolated_between_their_corners(grid):
    arrays, model = published(grid=grid), zse()
    google_vit.load(model, arrays)
    given = arrays["Transformer/posembed_input/pos_embedding"]
    found = np.asarray(model.tokenizer.positions[...])
    np.testing.assert_array_equal(found[:, 0], given[:, 0])
    square, own = (x[0, 1:].reshape(n, n, -1) for x, n in ((given, grid), (found, 4)))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(own[corner], square[corner], rtol=1e-5)
    ramp = np.linspace(0, 3, grid)[:, None, None] * np.ones((grid, grid, 2))
    line = np.concatenate([np.zeros((1, 1, 2)), ramp.reshape(1, -1, 2)], axis=1)
    rows = google_vit.interpolated(line.astype(np.float32), 4)[0, 1:].reshape(4, 4, 2)
    np.testing.assert_allclose(rows[:, 0, 0], np.arange(4), atol=1e-5)


@pytest.mark.slow
def test_weights_of_another_size_are_an_error_that_lists_the_differences():
    with pytest.raises(ValueError, match=r"shape differs: encoder\.\S+norm_mlp\.scale is \(24,\)"):
        google_vit.load(zse(width=24), published())
    with pytest.raises(ValueError, match="not used: .*encoderblock_1"):
        google_vit.load(zse(depth=1), published())
    incomplete = published()
    del incomplete["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/bias"]
    with pytest.raises(ValueError, match=r"missing: .*encoder\.blocks\.0\.attention\.qkv\.bias"):
        google_vit.load(zse(), incomplete)


def test_positions_that_are_not_a_square_grid_are_an_error():
    arrays = published() | {"Transformer/posembed_input/pos_embedding": np.zeros((1, 8, 12))}
    with pytest.raises(ValueError, match=r"pos_embedding is \(1, 8, 12\)"):
        google_vit.load(zse(), arrays)
