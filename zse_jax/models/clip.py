"""CLIP: an image and a text tower with one embedding space (Radford et al., arXiv 2103.00020).

The image tower is a Vision Transformer that takes prompts: learned tokens appended to the patch
tokens before its first LayerNorm, as in CLIP-AT (Sain et al., CVPR 2023; published code).
The text tower is a causal transformer; a text's embedding is read at its end-of-text token. Both
have pre-norm blocks with fused qkv, LayerNorm eps 1e-5 and the activation x · sigmoid(1.702 x), or
the exact GELU in most networks of OpenCLIP.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int32

from zse_jax.models.layers import Linear, gelu, layer_norm, linear, patches, torch_uniform
from zse_jax.models.rematerialisation import rematerialisable
from zse_jax.models.vit import SelfAttention, rollout

Prompts = Float[Array, "p d"] | Float[Array, "layers p d"]
"""Learned tokens at the input of the image tower, or of each of its first blocks."""

VOCABULARY = 49408
"""Size of CLIP's byte-pair vocabulary; the two largest ids mark the start and end of a text."""


@dataclasses.dataclass(frozen=True)
class CLIPSizes:
    """Sizes of CLIP; the defaults are ViT-B/32.

    Attributes:
      image_size, patch_size: pixels; ViT-B/16 and L/14 differ from B/32 in the patch size.
      width, depth, heads: of the image tower.
      embed_dim: of the space that images and texts share.
      context_length: maximum number of token ids of a text, including start and end.
      text_width, text_depth, text_heads: of the text tower.
      position_std: standard deviation of the image tower's initial positions; None: width**-0.5 as
        in CLIP, which is too small to train from scratch.
      mlp_width: of the image tower; None: 4 * width.
      activation: a key of `ACTIVATIONS`; None: "quick_gelu", as in OpenAI's CLIP.
    """

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    embed_dim: int = 512
    context_length: int = 77
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    position_std: float | None = dataclasses.field(default=None, compare=False)
    mlp_width: int | None = None
    activation: str | None = dataclasses.field(default=None, compare=False)


class Block(nnx.Module):
    """Pre-norm transformer block; by default the MLP is four times as wide."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int | None = None,
        activation: str | None = None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Raises ValueError when `heads` does not divide `width`, or for another activation."""
        self.activation = activation or "quick_gelu"
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"config.model.activation={activation!r}: choose one of {', '.join(ACTIVATIONS)}."
            )
        mlp_width = mlp_width or 4 * width
        self.norm_attention = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.norm_mlp = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp_in = linear(width, mlp_width, dtype=dtype, rngs=rngs)
        self.mlp_out = linear(mlp_width, width, dtype=dtype, rngs=rngs)

    @rematerialisable
    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "n n"] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b heads n n"]]:
        """The tokens after attention (restricted by `mask`) and MLP, and the attention weights."""
        attended, weights = self.attention(self.norm_attention(tokens), mask)
        tokens = tokens + attended
        hidden = ACTIVATIONS[self.activation](self.mlp_in(self.norm_mlp(tokens)))
        return tokens + self.mlp_out(hidden), weights


def quick_gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """The activation x · sigmoid(1.702 x), which CLIP uses instead of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}
"""OpenAI's, and the exact GELU of most networks of OpenCLIP."""


class LocalImage(NamedTuple):
    """Global and local output of an image tower; places are grid cells, row by row.

    Attributes:
      embedding: [b, e], as returned by `encode_image`.
      places: [b, t, e], the patch tokens of the last block, projected to the joint space. CLIP was
        not trained to align them; that they describe their place is an empirical observation.
      rollout: [b, t], attention of the class token to each patch through all blocks (attention
        rollout: Abnar and Zuidema, ACL 2020), sums to 1.
    """

    embedding: Float[Array, "b e"]
    places: Float[Array, "b t e"]
    rollout: Float[Array, "b t"]


class VisionTower(nnx.Module):
    """Images to embeddings: patches, class token, positions, prompts, blocks, projection."""

    def __init__(self, sizes: CLIPSizes, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Random parameters with the deviations of CLIP's code, except for `position_std`.

        Raises:
          ValueError: `image_size` is not a multiple of `patch_size`, or `width` of `heads`.
        """
        patch, width = sizes.patch_size, sizes.width
        if patch < 1 or sizes.image_size % patch:
            raise ValueError(
                f"image_size={sizes.image_size} is not a multiple of patch_size={patch}: change "
                "one of them."
            )
        self.patch_size, self.dtype = patch, dtype
        inputs, scale = 3 * patch**2, width**-0.5
        self.patch_embedding = Linear(
            inputs,
            width,
            use_bias=False,
            kernel_init=torch_uniform(inputs),
            dtype=dtype,
            rngs=rngs,
        )
        tokens = (sizes.image_size // patch) ** 2 + 1
        self.class_token = _normal((width,), scale, rngs)
        self.positions = _normal((tokens, width), sizes.position_std or scale, rngs)
        self.norm_pre = layer_norm(width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(
                    width,
                    sizes.heads,
                    sizes.mlp_width,
                    sizes.activation,
                    dtype=self.dtype,
                    rngs=rngs,
                )
                for _ in range(sizes.depth)
            ]
        )
        self.norm_post = layer_norm(width, dtype=dtype, rngs=rngs)
        self.projection = _normal((width, sizes.embed_dim), scale, rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"], prompts: Prompts | None = None
    ) -> Float[Array, "b e"]:
        """Embeddings, not normalised; see `CLIP.encode_image`."""
        tokens, _ = self._blocks(images, prompts)
        return self._project(tokens[:, 0])

    def local(self, images: Float[Array, "b h w 3"], prompts: Prompts | None = None) -> LocalImage:
        """The embeddings with local features and attention rollout, at little extra cost."""
        tokens, attention = self._blocks(images, prompts)
        count = self.positions.shape[0]
        embedded = self._project(tokens[:, :count])
        reached = rollout([weights.mean(axis=1) for weights in attention])[:, 1:count]
        share = reached / jnp.maximum(reached.sum(axis=1, keepdims=True), 1e-12)
        return LocalImage(embedded[:, 0], embedded[:, 1:], share)

    def _blocks(self, images: Array, prompts: Array | None) -> tuple[Array, list[Array]]:
        """The tokens after the last block, and the attention weights of each."""
        if prompts is not None and prompts.ndim == 2:
            prompts = prompts[None]
        tokens, attention = self._tokens(images, None if prompts is None else prompts[0]), []
        for i, block in enumerate(self.blocks):
            if prompts is not None and 0 < i < len(prompts):
                own = tokens[:, : self.positions.shape[0]]
                tokens = jnp.concatenate([own, self._learned(prompts[i], len(own))], axis=1)
            tokens, weights = block(tokens)
            attention.append(weights)
        return tokens, attention

    def _learned(self, prompt: Array, count: int) -> Array:
        return jnp.broadcast_to(prompt.astype(self.dtype), (count, *prompt.shape))

    def _project(self, tokens: Array) -> Array:
        return self.norm_post(tokens) @ self.projection[...].astype(self.dtype)

    def _tokens(self, images: Array, prompts: Array | None) -> Float[Array, "b n d"]:
        """Input of the blocks: class token, patches, prompts."""
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
                    f"{width}."
                )
            tokens = jnp.concatenate([tokens, self._learned(prompts, b)], axis=1)
        return self.norm_pre(tokens)


def with_own_norms(tower: VisionTower) -> VisionTower:
    """A tower with LayerNorms of its own, equal at first; it shares all other parameters.

    Shared parameters are the same objects, so they are stored, trained and saved once.
    """
    own = nnx.clone(tower)
    for copy, original in [(own, tower), *zip(own.blocks, tower.blocks, strict=True)]:
        for name, value in vars(original).items():
            kept = name == "blocks" or name.startswith("norm")
            if isinstance(value, nnx.Module | nnx.Variable) and not kept:
                setattr(copy, name, value)
    return own


class TextTower(nnx.Module):
    """Token ids to embeddings: a causal transformer, read at the end-of-text token."""

    def __init__(self, sizes: CLIPSizes, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Random parameters; outside the blocks with the deviations of CLIP's code.

        Raises:
          ValueError: `text_width` is not a multiple of `text_heads`.
        """
        width = sizes.text_width
        self.dtype = dtype
        self.tokens = _normal((VOCABULARY, width), 0.02, rngs)
        self.positions = _normal((sizes.context_length, width), 0.01, rngs)
        self.blocks = nnx.List(
            [
                Block(width, sizes.text_heads, None, sizes.activation, dtype=dtype, rngs=rngs)
                for _ in range(sizes.text_depth)
            ]
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.projection = _normal((width, sizes.embed_dim), width**-0.5, rngs)

    def __call__(self, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Embeddings, not normalised; see `CLIP.encode_text`."""
        length, longest = token_ids.shape[1], self.positions.shape[0]
        if length > longest:
            raise ValueError(f"{length} token ids do not fit CLIP's context of {longest}.")
        x = (self.tokens[...][token_ids] + self.positions[:length]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))
        for block in self.blocks:
            x, _ = block(x, causal)
        end = token_ids.argmax(axis=1)[:, None, None]  # the end-of-text id is the largest
        last = jnp.take_along_axis(self.norm(x), end, axis=1)[:, 0]
        return last @ self.projection[...].astype(self.dtype)


class CLIP(nnx.Module):
    """Both towers and the scale of their cosines.

    Attributes:
      sizes: of both towers.
      dtype: of activations.
      visual: the image tower.
      text: the text tower, or None after it was removed.
      logit_scale: log of the factor from cosines to logits.
    """

    def __init__(
        self,
        sizes: CLIPSizes = CLIPSizes(),
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `zse_jax.pretrained.openai_clip.load` loads the published ones.

        Args:
          sizes: ViT-B/32 by default.
          dtype: of activations; parameters are float32.

        Raises:
          ValueError: sizes that do not fit together; the message names them.
        """
        self.sizes, self.dtype = sizes, jnp.dtype(dtype)
        self.visual = VisionTower(sizes, dtype=self.dtype, rngs=rngs)
        self.text: TextTower | None = TextTower(sizes, dtype=self.dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(
        self, images: Float[Array, "b h w 3"], prompts: Prompts | None = None
    ) -> Float[Array, "b e"]:
        """Embeddings of normalised images; the embeddings are not L2-normalised.

        Args:
          images: square, of the model's image size.
          prompts: tokens that are appended to every image's patches before the first LayerNorm.
            They have no positions, so their order does not matter. With an axis of layers, the
            prompts of layer i replace those of the layer before it at the input of block i (deep
            prompts: Jia et al., ECCV 2022).

        Raises:
          ValueError: prompts of another width, or images of another size.
        """
        return self.visual(images, prompts)

    def encode_text(self, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Embeddings of texts, not L2-normalised.

        Args:
          token_ids: from `tokenize`: start, words, end of text, then any number of zeros, which do
            not change the result.

        Raises:
          ValueError: texts longer than the context, or a model without text tower.
        """
        if self.text is None:
            raise ValueError("This CLIP has no text tower. Create the model with text_tower=True.")
        return self.text(token_ids)


def tokenize(texts: Sequence[str], context_length: int = 77) -> Int32[np.ndarray, "n t"]:
    """CLIP's token ids for each text: start, words, end, then zeros up to the longest text.

    Raises:
      ValueError: texts that are longer than the context, listed with their lengths.
      ModuleNotFoundError: the package openai-clip is not installed.
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
            f"CLIP's context is {context_length} token ids, including start and end, but "
            f"{'; '.join(long)}: shorten these texts."
        )
    padded = np.zeros((len(ids), max(map(len, ids), default=0)), np.int32)
    for row, found in zip(padded, ids, strict=True):
        row[: len(found)] = found
    return padded


@functools.cache
def _tokenizer() -> Any:
    """OpenAI's tokenizer; creating it takes half a second.

    It is loaded from its file, because importing the package would import torch.
    """
    package = importlib.util.find_spec("clip")
    file = Path((package and package.origin) or "clip").with_name("simple_tokenizer.py")
    if not file.is_file():  # or another package has this name
        raise ModuleNotFoundError("CLIP's tokenizer is missing: pip install openai-clip")
    spec = importlib.util.spec_from_file_location("clip_simple_tokenizer", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def _normal(shape: tuple[int, ...], deviation: float, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))
