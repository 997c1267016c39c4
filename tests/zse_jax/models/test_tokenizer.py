"""Tokenizer: two averaged patch embeddings, a retrieval token, positions."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.random_weights import drawn
from zse_jax.models.layers import patches
from zse_jax.models.tokenizer import ScaleEmbedding, Tokenizer


def build(image_size=32, patch_size=8, width=16) -> Tokenizer:
    return drawn(
        lambda: Tokenizer(
            image_size,
            patch_size,
            width,
            scale_channels=4,
            dropout=0.0,
            position_std=1.0,
            dtype=jnp.dtype("float32"),
            rngs=nnx.Rngs(params=0, dropout=1),
        )
    )


def test_patches_are_row_major_and_keep_their_pixels():
    image = np.arange(4 * 6 * 3, dtype=np.float32).reshape(1, 4, 6, 3)
    got = np.asarray(patches(jnp.asarray(image), 2))
    assert got.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(got[0, 1, 2], image[0, 2:4, 4:6].ravel())


def test_patches_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="5x4 does not divide into patches of 2x2"):
        patches(jnp.zeros((1, 5, 4, 3)), 2)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_scale_embedding_has_one_vector_per_patch(patch_size):
    scale = ScaleEmbedding(patch_size, 12, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    assert scale(jnp.zeros((2, 64, 32, 3))).shape == (2, 64 // patch_size, 32 // patch_size, 12)


def test_published_scale_embedding_has_the_published_channels():
    scale = ScaleEmbedding(16, 768, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    shapes = [c.kernel.shape for c in scale.convolutions]
    assert shapes == [(7, 7, 3, 64), (3, 3, 64, 128), (3, 3, 128, 256), (3, 3, 256, 768)]


def test_patch_size_has_to_be_a_power_of_two():
    with pytest.raises(ValueError, match="patch_size=12"):
        ScaleEmbedding(12, 16, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))


def test_tokens_are_the_mean_of_both_embeddings_plus_positions():
    tokenizer = build()
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)
    tokens = tokenizer(images)
    assert tokens.shape == (2, 17, 16)
    plain = tokenizer.patch_embedding(patches(images, 8)).reshape(2, 16, 16)
    scale = tokenizer.scale_embedding(images).reshape(2, 16, 16)
    positions = tokenizer.positions[...]
    np.testing.assert_allclose(tokens[:, 1:], (plain + scale) / 2 + positions[:, 1:], rtol=1e-5)
    expected = np.broadcast_to(tokenizer.retrieval_token[...] + positions[:, :1], (2, 1, 16))
    np.testing.assert_allclose(tokens[:, :1], expected)


def test_images_of_another_size_are_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"\(64, 64, 3\).*\(32, 32, 3\)"):
        build()(jnp.zeros((1, 64, 64, 3)))
