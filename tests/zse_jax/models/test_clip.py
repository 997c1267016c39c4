"""CLIP's towers at a small size, and its tokenizer; parity is in pretrained/test_openai_clip.py."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.pretrained.weights import GOLDEN
from tests.zse_jax.random_weights import drawn
from zse_jax.models.clip import CLIP, Block, CLIPSizes, quick_gelu, tokenize

TINY = {
    "image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "embed_dim": 12,
    "context_length": 12, "text_width": 8, "text_depth": 2, "text_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    return drawn(lambda: CLIP(CLIPSizes(**TINY), rngs=nnx.Rngs(0)))


@nnx.jit
def encode_text(clip, ids):
    return clip.encode_text(ids)


@nnx.jit
def encode_image(clip, images, prompts=None):
    return clip.encode_image(images, prompts)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_token_ids_are_those_of_clip():
    expected = json.loads((GOLDEN / "clip_token_ids.json").read_text())
    for row, ids in zip(tokenize(list(expected)), expected.values(), strict=True):
        assert row[: len(ids)].tolist() == ids
        assert not row[len(ids) :].any()


def test_a_text_longer_than_the_context_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"context is 5 .*'a very long name' has 6"):
        tokenize(["cat", "a very long name"], context_length=5)


@pytest.mark.slow
def test_a_text_does_not_depend_on_its_padding_or_its_neighbours(clip):
    short, both = tokenize(["cat"]), tokenize(["cat", "a photo of a dog"])
    padded = np.zeros((1, 12), np.int32)
    padded[0, : short.shape[1]] = short
    one = encode_text(clip, short)
    np.testing.assert_allclose(encode_text(clip, padded), one, atol=1e-5)
    np.testing.assert_allclose(encode_text(clip, both)[:1], one, atol=1e-5)


def test_token_ids_beyond_the_context_are_an_error(clip):
    with pytest.raises(ValueError, match="13 token ids do not fit CLIP's context of 12"):
        clip.encode_text(jnp.zeros((1, 13), jnp.int32))


def test_encoding_a_text_without_text_tower_is_an_error():
    clip = drawn(lambda: CLIP(CLIPSizes(**TINY), rngs=nnx.Rngs(0)))
    clip.text = None
    with pytest.raises(ValueError, match="text_tower=True"):
        clip.encode_text(jnp.zeros((1, 3), jnp.int32))


def test_prompts_change_the_embedding_and_have_no_positions(clip):
    images, prompts = normal(2, 16, 16, 3), normal(3, 16, seed=1)
    plain, prompted = encode_image(clip, images), encode_image(clip, images, prompts)
    assert plain.shape == prompted.shape == (2, 12)
    assert np.abs(plain - prompted).max() > 1e-3
    np.testing.assert_allclose(encode_image(clip, images, prompts[::-1]), prompted, atol=1e-5)
    np.testing.assert_allclose(encode_image(clip, images, prompts[:0]), plain, atol=1e-5)


@pytest.mark.slow
def test_a_deep_prompt_replaces_that_of_the_block_before(clip):
    images, prompts = normal(2, 16, 16, 3), normal(2, 3, 16, seed=1)

    @nnx.jit
    def by_hand(clip):
        tower = clip.visual
        tokens, _ = tower.blocks[0](tower._tokens(images, prompts[0]))
        later = jnp.broadcast_to(prompts[1], (2, 3, 16))
        tokens, _ = tower.blocks[1](jnp.concatenate([tokens[:, :5], later], axis=1))
        return tower._project(tokens[:, 0])

    found = encode_image(clip, images, prompts)
    np.testing.assert_allclose(found, by_hand(clip), rtol=1e-5, atol=1e-6)
    local = nnx.jit(lambda clip: clip.visual.local(images, prompts))(clip)
    np.testing.assert_allclose(local.embedding, found, rtol=1e-5, atol=1e-6)


def test_prompts_of_another_width_are_an_error(clip):
    with pytest.raises(ValueError, match="Prompts of width 8 .* width 16"):
        clip.encode_image(normal(1, 16, 16, 3), normal(3, 8))


def test_images_of_another_size_are_an_error(clip):
    with pytest.raises(ValueError, match="Images of 24x24 give 9 patches.*positions for 4"):
        clip.encode_image(normal(1, 24, 24, 3))


def test_a_patch_size_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="image_size=16 is not a multiple of patch_size=5"):
        CLIP(CLIPSizes(**{**TINY, "patch_size": 5}), rngs=nnx.Rngs(0))


def test_the_activation_agrees_with_its_formula():
    x = normal(50)
    np.testing.assert_allclose(quick_gelu(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    sizes, dtype = CLIPSizes(**TINY), jnp.dtype("bfloat16")
    clip = drawn(lambda: CLIP(sizes, dtype=dtype, rngs=nnx.Rngs(0)))
    assert encode_image(clip, normal(1, 16, 16, 3), normal(3, 16)).dtype == jnp.bfloat16
    assert encode_text(clip, jnp.ones((1, 3), jnp.int32)).dtype == jnp.bfloat16
    leaves = [leaf[...] for _, leaf in nnx.to_flat_state(nnx.state(clip, nnx.Param))]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "function"), [("gelu", nnx.gelu), (None, quick_gelu)])
def test_the_activation_and_the_width_of_the_mlp_can_be_chosen(activation, function):
    block = Block(8, 2, 24, activation, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    tokens = jnp.linspace(-2, 2, 24).reshape(1, 3, 8)
    attended = tokens + block.attention(block.norm_attention(tokens), None)[0]
    hidden = block.mlp_in(block.norm_mlp(attended))
    assert hidden.shape == (1, 3, 24)
    exact = {"approximate": False} if activation else {}
    want = attended + block.mlp_out(function(hidden, **exact))
    np.testing.assert_allclose(block(tokens)[0], want, atol=1e-6)
