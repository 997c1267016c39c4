"""CLIP: an image and a text tower with one embedding space (Radford et al., arXiv 2103.00020).

The image tower is a Vision Transformer that takes shallow prompts: learned tokens appended to the
patch tokens before its first LayerNorm, as CLIP-AT does (Sain et al., CVPR 2023; published code).
The text tower is a causal transformer; a text's embedding is read at its end-of-text token. Both
have pre-norm blocks with fused qkv, LayerNorm eps 1e-5 and the activation x · sigmoid(1.702 x).
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32

from zse_jax.models.layers import Linear, layer_norm, linear, patches, torch_uniform
from zse_jax.models.rematerialisation import rematerialisable
from zse_jax.models.vit import SelfAttention

VOCABULARY = 49408
"""Size of CLIP's byte-pair vocabulary; its two largest ids mark start and end of a text."""


class Block(nnx.Module):
    """Pre-norm transformer block with CLIP's "quick" GELU; the MLP is four times as wide."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Raises ValueError when `heads` does not divide `width`."""
        self.norm_attention = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.norm_mlp = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp_in = linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.mlp_out = linear(4 * width, width, dtype=dtype, rngs=rngs)

    @rematerialisable
    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "n n"] | None = None
    ) -> Float[Array, "b n d"]:
        """The tokens after attention (where `mask` allows it) and MLP."""
        return self.traced(tokens, mask)[0]

    def traced(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "n n"] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b heads n n"]]:
        """The same, and what each token attended to."""
        attended, weights = self.attention(self.norm_attention(tokens), mask)
        tokens = tokens + attended
        return tokens + self.mlp_out(quick_gelu(self.mlp_in(self.norm_mlp(tokens)))), weights


def quick_gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """The activation x · sigmoid(1.702 x), with which CLIP was trained in place of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


class LocalImage(NamedTuple):
    """An image tower's output with its places: the cells of a square grid, row by row.

    Attributes:
      embedding: [b, e], as `encode_image` gives it.
      places: [b, t, e], the patch tokens of the last block in the space of the embeddings. CLIP
        never trained them there; that they carry the content of their place is observed only.
      rollout: [b, t], attention of the class token traced through all blocks to each patch
        (attention rollout: Abnar and Zuidema, ACL 2020), sums to 1.
    """

    embedding: Float[Array, "b e"]
    places: Float[Array, "b t e"]
    rollout: Float[Array, "b t"]


class VisionTower(nnx.Module):
    """Images to embeddings: patches, class token, positions, prompts, blocks, projection."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        embed_dim: int,
        position_std: float | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Random parameters, spread as in CLIP's own code, but for positions of `position_std`.

        Raises:
          ValueError: sizes that do not fit each other; the message names them.
        """
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(
                f"image_size={image_size} is not a multiple of patch_size={patch_size}: change one."
            )
        self.patch_size, self.dtype = patch_size, dtype
        inputs, scale = 3 * patch_size**2, width**-0.5
        self.patch_embedding = Linear(
            inputs,
            width,
            use_bias=False,
            kernel_init=torch_uniform(inputs),
            dtype=dtype,
            rngs=rngs,
        )
        tokens = (image_size // patch_size) ** 2 + 1
        self.class_token = _normal((width,), scale, rngs)
        self.positions = _normal((tokens, width), position_std or scale, rngs)
        self.norm_pre = layer_norm(width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.norm_post = layer_norm(width, dtype=dtype, rngs=rngs)
        self.projection = _normal((width, embed_dim), scale, rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"], prompts: Float[Array, "p d"] | None = None
    ) -> Float[Array, "b e"]:
        """Embeddings, not normalised; see `CLIP.encode_image`."""
        tokens = self._tokens(images, prompts)
        for block in self.blocks:
            tokens = block(tokens)
        return self._project(tokens[:, 0])

    def local(
        self, images: Float[Array, "b h w 3"], prompts: Float[Array, "p d"] | None = None
    ) -> LocalImage:
        """The embeddings, and what the tower knows of each place; costs little more."""
        tokens, steps = self._tokens(images, prompts), []
        for block in self.blocks:
            tokens, weights = block.traced(tokens)
            steps.append(weights.mean(axis=1))
        count = self.positions.shape[0]
        embedded = self._project(tokens[:, :count])
        # From the class token back to the input; each block passes half on by its residual.
        reached = jnp.zeros(tokens.shape[:2]).at[:, 0].set(1)
        for weights in reversed(steps):
            reached = (reached + jnp.einsum("bn,bnm->bm", reached, weights)) / 2
        rollout = reached[:, 1:count]
        share = rollout / jnp.maximum(rollout.sum(axis=1, keepdims=True), 1e-12)
        return LocalImage(embedded[:, 0], embedded[:, 1:], share)

    def _project(self, tokens: Array) -> Array:
        return self.norm_post(tokens) @ self.projection[...].astype(self.dtype)

    def _tokens(self, images: Array, prompts: Array | None) -> Float[Array, "b n d"]:
        """What enters the blocks: class token, patches, prompts."""
        local = self.patch_embedding(patches(images.astype(self.dtype), self.patch_size))
        b, width = local.shape[0], local.shape[-1]
        first = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (b, 1, width))
        tokens = jnp.concatenate([first, local.reshape(b, -1, width)], axis=1)
        if tokens.shape[1] != self.positions.shape[0]:
            raise ValueError(
                f"Images of {images.shape[1]}x{images.shape[2]} give {tokens.shape[1] - 1} patches,"
                f" but CLIP has positions for {self.positions.shape[0] - 1}: resize the images to "
                "the model's image_size."
            )
        tokens = tokens + self.positions[...].astype(self.dtype)
        if prompts is not None:
            if prompts.shape[-1] != width:
                raise ValueError(
                    f"Prompts of width {prompts.shape[-1]} do not fit CLIP's image tower of width "
                    f"{width}: they are tokens beside its patches."
                )
            learned = jnp.broadcast_to(prompts.astype(self.dtype), (b, *prompts.shape))
            tokens = jnp.concatenate([tokens, learned], axis=1)
        return self.norm_pre(tokens)


class TextTower(nnx.Module):
    """Token ids to embeddings: a causal transformer, read at the end-of-text token."""

    def __init__(
        self,
        *,
        context_length: int,
        width: int,
        depth: int,
        heads: int,
        embed_dim: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Random parameters; those that are no blocks spread as in CLIP's own code."""
        self.dtype = dtype
        self.tokens = _normal((VOCABULARY, width), 0.02, rngs)
        self.positions = _normal((context_length, width), 0.01, rngs)
        self.blocks = nnx.List([Block(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.projection = _normal((width, embed_dim), width**-0.5, rngs)

    def __call__(self, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Embeddings, not normalised; see `CLIP.encode_text`."""
        length, longest = token_ids.shape[1], self.positions.shape[0]
        if length > longest:
            raise ValueError(f"{length} token ids do not fit CLIP's context of {longest}.")
        x = (self.tokens[...][token_ids] + self.positions[:length]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))
        for block in self.blocks:
            x = block(x, causal)
        end = token_ids.argmax(axis=1)[:, None, None]  # the end-of-text id is the largest of all
        last = jnp.take_along_axis(self.norm(x), end, axis=1)[:, 0]
        return last @ self.projection[...].astype(self.dtype)


class CLIP(nnx.Module):
    """Both towers and the scale of their cosines; defaults are ViT-B/32.

    Attributes:
      visual: the image tower.
      text: the text tower, or None where nothing needs it.
      logit_scale: log of the factor from cosines to logits.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        embed_dim: int = 512,
        context_length: int = 77,
        text_width: int = 512,
        text_depth: int = 12,
        text_heads: int = 8,
        position_std: float | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `zse_jax.pretrained.openai_clip.load` fills in the published ones.

        Args:
          image_size, patch_size: pixels; ViT-B/16 and L/14 differ from B/32 in the latter.
          width, depth, heads: of the image tower.
          embed_dim: of the space that images and texts share.
          context_length: token ids of the longest text, its start and end included.
          text_width, text_depth, text_heads: of the text tower.
          position_std: of the image tower's initial positions; None: width**-0.5, CLIP's own, which
            a network trained from scratch can hardly tell places by.
          dtype: of activations; parameters are float32.

        Raises:
          ValueError: sizes that do not fit each other; the message names them.
        """
        dtype = jnp.dtype(dtype)
        self.visual = VisionTower(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            heads=heads,
            embed_dim=embed_dim,
            position_std=position_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.text: TextTower | None = TextTower(
            context_length=context_length,
            width=text_width,
            depth=text_depth,
            heads=text_heads,
            embed_dim=embed_dim,
            dtype=dtype,
            rngs=rngs,
        )
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(
        self, images: Float[Array, "b h w 3"], prompts: Float[Array, "p d"] | None = None
    ) -> Float[Array, "b e"]:
        """Embeddings of images that are already normalised, not L2-normalised.

        Args:
          images: square, of the model's image size.
          prompts: tokens that join every image's patches before the first LayerNorm; they have no
            positions. Their order does not matter.

        Raises:
          ValueError: prompts of another width, or images of another size.
        """
        return self.visual(images, prompts)

    def encode_text(self, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Embeddings of texts, not L2-normalised.

        Args:
          token_ids: of `tokenize`: start, words, end of text, then any number of zeros, which the
            result does not depend on.

        Raises:
          ValueError: texts longer than the context, or a model whose text tower was left out.
        """
        if self.text is None:
            raise ValueError(
                "This CLIP has no text tower; it was left out. Create it with text_tower=True."
            )
        return self.text(token_ids)


def tokenize(texts: Sequence[str], context_length: int = 77) -> Int32[np.ndarray, "n t"]:
    """CLIP's token ids of each text: start, words, end, then zeros up to the longest of them.

    Raises:
      ValueError: texts that do not fit the context; names them and their lengths.
    """
    tokenizer = _tokenizer()
    start, end = (tokenizer.encoder[f"<|{name}oftext|>"] for name in ("start", "end"))
    ids = [[start, *tokenizer.encode(text), end] for text in texts]
    long = [
        f"{text!r} has {len(row)}"
        for text, row in zip(texts, ids, strict=True)
        if len(row) > context_length
    ]
    if long:
        raise ValueError(
            f"CLIP's context is {context_length} token ids, start and end included, but "
            f"{'; '.join(long)}: shorten these texts."
        )
    padded = np.zeros((len(ids), max(map(len, ids), default=0)), np.int32)
    for row, found in zip(padded, ids, strict=True):
        row[: len(found)] = found
    return padded


@functools.cache
def _tokenizer() -> Any:
    """OpenAI's own, which takes half a second to start.

    Its package imports torch for its models; the tokenizer's file, by itself, does not.
    """
    package = importlib.util.find_spec("clip")
    file = Path((package and package.origin) or "clip").with_name("simple_tokenizer.py")
    if not file.is_file():  # or the package is another one of this name
        raise ModuleNotFoundError("CLIP's tokenizer is missing: pip install openai-clip")
    spec = importlib.util.spec_from_file_location("clip_simple_tokenizer", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def _normal(shape: tuple[int, ...], deviation: float, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))
