"""Vision Transformer blocks (pre-norm, fused qkv, exact GELU) with optional token selection.

Token selection is the second part of ZSE's learnable tokenizer (CVPR 2023, section 3.1): between
attention and MLP of chosen blocks, only the local tokens to which the retrieval token attends most
are kept. The published code discards the attention output there by mistake; here the selection
follows the attention, as the paper describes.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zse_jax.models.layers import gelu, layer_norm, linear
from zse_jax.models.rematerialisation import rematerialisable

Fused = Literal["cudnn", "xla"]
"""Implementations of `jax.nn.dot_product_attention`; "xla" is for tests."""


class Encoded(NamedTuple):
    """Output of an encoder; explanations use it to trace tokens back to patches.

    Attributes:
      tokens: [b, n, d], the retrieval token first.
      kept: [b, n - 1], index of each local token's patch, row-major over the grid, ascending.
      importance: [b, n - 1], attention of the retrieval token to each local token in the last
        block, mean over the heads; the sum is below 1, because it also attends to itself.
    """

    tokens: Float[Array, "b n d"]
    kept: Int[Array, "b t"]
    importance: Float[Array, "b t"] | None = None


def attend(
    query: Float[Array, "b heads t d"],
    key: Float[Array, "b heads s d"],
    value: Float[Array, "b heads s d"],
    dropout: nnx.Dropout | None = None,
    mask: Bool[Array, "t s"] | None = None,
    fused: Fused | None = None,
) -> tuple[Float[Array, "b heads t d"], Float[Array, "b heads t s"]]:
    """softmax(q kᵀ / sqrt(d)) v and its weights; softmax in float32, heads before tokens.

    Queries ignore keys where `mask` is False.

    Without a mask or dropout, cuDNN computes the product if `fused_attention` allows it, or
    `fused`. It does not store the weights. They are then computed separately, which compilation
    removes from programs that do not use them.

    With heads before tokens, both products are batched matrix products, which are faster on XLA's
    CPU backend than `jax.nn.dot_product_attention` with its token-major layout.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bhtd,bhsd->bhts", query * scale, key, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    plain = mask is None and (dropout is None or dropout.deterministic or dropout.rate == 0)
    if plain and (fused or fused_attention(query.dtype, query.shape[-1])):
        operands = (x.swapaxes(1, 2) for x in (query, key, value))
        return fused_product(*operands, fused or "cudnn").swapaxes(1, 2), weights
    used = weights if dropout is None else dropout(weights)
    return jnp.einsum("bhts,bhsd->bhtd", used.astype(value.dtype), value), weights


def fused_attention(dtype: jnp.dtype, head_width: int) -> bool:
    """Whether cuDNN's fused attention supports such heads on the default device.

    It requires an NVIDIA GPU of compute capability 8 (Ampere) or newer, half precision, and a width
    that is a multiple of 8 up to 128.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    if not half or head_width % 8 or head_width > 128:
        return False
    backend = jax.extend.backend.get_backend()
    if backend.platform != "gpu" or "cuda" not in backend.platform_version.lower():
        return False
    return float(backend.local_devices()[0].compute_capability) >= 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fused_product(
    query: Float[Array, "b t heads d"],
    key: Float[Array, "b s heads d"],
    value: Float[Array, "b s heads d"],
    implementation: Fused,
) -> Float[Array, "b t heads d"]:
    """softmax(q kᵀ / sqrt(d)) v by `jax.nn.dot_product_attention`; tokens before heads.

    Where a gradient is needed, XLA computes both: cuDNN's gradient refuses odd numbers of tokens,
    and has not been tried on a GPU here.
    """
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def _forward(query: Array, key: Array, value: Array, _: Fused) -> tuple[Array, Any]:
    by_xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    return jax.vjp(by_xla, query, key, value)


def _backward(_: Fused, transposed: Any, gradient: Array) -> Any:
    return transposed(gradient)


fused_product.defvjp(_forward, _backward)


def split_heads(x: Float[Array, "b t d"], heads: int) -> Float[Array, "b heads t c"]:
    """Splits the last axis into heads, and moves them before the tokens."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "b heads t d"]) -> Float[Array, "b t c"]:
    """Inverse of `split_heads`."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def rollout(steps: Sequence[Float[Array, "b n n"]]) -> Float[Array, "b n"]:
    """Attention rollout (Abnar and Zuidema, ACL 2020): how much of each token is in the first one.

    From the first token of the last block back to the input of the first block; half of each
    block's output is its residual. The result sums to 1.

    Args:
      steps: the attention weights of each block, mean over the heads; rows sum to 1.
    """
    reached = jnp.zeros(steps[0].shape[:2]).at[:, 0].set(1)
    for weights in reversed(steps):
        reached = (reached + jnp.einsum("bn,bnm->bm", reached, weights)) / 2
    return reached


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused projection to query, key and value."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Raises ValueError when `heads` does not divide `width`."""
        check_heads(width, heads)
        self.heads = heads
        self.qkv = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "t t"] | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b heads t t"]]:
        """The attended tokens and the attention weights; `mask` as for `attend`."""
        # cuDNN reads whole arrays: parts of one product would be copied.
        apart = fused_attention(x.dtype, x.shape[-1] // self.heads)
        parts = self.qkv.parts(x, 3) if apart else jnp.split(self.qkv(x), 3, axis=-1)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        attended, weights = attend(query, key, value, mask=mask)
        return self.out(merge_heads(attended)), weights


class Block(nnx.Module):
    """Pre-norm transformer block; with `keep_rate` below 1 it selects tokens after attention."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        dropout: float,
        keep_rate: float = 1.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`keep_rate` in (0, 1]: the fraction of local tokens that is kept for the MLP."""
        self.keep_rate = keep_rate
        self.norm_attention = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.dropout_attention = nnx.Dropout(dropout, rngs=rngs)
        self.norm_mlp = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp_in = linear(width, mlp_width, dtype=dtype, rngs=rngs)
        self.dropout_hidden = nnx.Dropout(dropout, rngs=rngs)
        self.mlp_out = linear(mlp_width, width, dtype=dtype, rngs=rngs)
        self.dropout_mlp = nnx.Dropout(dropout, rngs=rngs)

    @rematerialisable
    def __call__(self, tokens: Float[Array, "b n d"], kept: Int[Array, "b t"]) -> Encoded:
        """The tokens after attention, selection and MLP, and their patches."""
        attended, weights = self.attention(self.norm_attention(tokens))
        x = tokens + self.dropout_attention(attended)
        importance = weights[:, :, 0, 1:].mean(axis=1)
        if self.keep_rate < 1:
            x, kept, importance = select_tokens(x, kept, importance, self.keep_rate)
        hidden = gelu(self.mlp_in(self.norm_mlp(x)))
        x = x + self.dropout_mlp(self.mlp_out(self.dropout_hidden(hidden)))
        return Encoded(x, kept, importance)


def select_tokens(
    tokens: Float[Array, "b n d"],
    kept: Int[Array, "b t"],
    importance: Float[Array, "b t"],
    rate: float,
) -> Encoded:
    """Keeps the ceil(rate · t) most important local tokens, in their original order.

    `importance` is the head-averaged attention from the retrieval token to each local token.
    """
    count = math.ceil(rate * importance.shape[1])
    index = jnp.sort(jax.lax.top_k(importance, count)[1], axis=1)
    local = jnp.take_along_axis(tokens[:, 1:], index[..., None], axis=1)
    return Encoded(
        jnp.concatenate([tokens[:, :1], local], axis=1),
        jnp.take_along_axis(kept, index, axis=1),
        jnp.take_along_axis(importance, index, axis=1),
    )


class Encoder(nnx.Module):
    """A stack of blocks and a final LayerNorm."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        dropout: float,
        keep_rates: Mapping[int, float] | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`keep_rates`: block (counting from 1) -> fraction of local tokens that it keeps.

        Raises:
          ValueError: a rate outside (0, 1], or for a block that does not exist.
        """
        keep_rates = dict(keep_rates or {})
        for block, rate in keep_rates.items():
            if not (1 <= block <= depth and 0 < rate <= 1):
                raise ValueError(
                    f"Token selection with rate {rate} in block {block} is impossible: blocks "
                    f"count from 1 to {depth} and rates lie in (0, 1]."
                )
        self.blocks = nnx.List(
            [
                Block(
                    width,
                    heads,
                    mlp_width,
                    dropout=dropout,
                    keep_rate=keep_rates.get(i + 1, 1.0),
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(depth)
            ]
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "b n d"]) -> Encoded:
        """The encoded tokens, and the patch and importance of each local token."""
        b, t = tokens.shape[0], tokens.shape[1] - 1
        kept = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
        importance = None
        for block in self.blocks:
            tokens, kept, importance = block(tokens, kept)
        return Encoded(self.norm(tokens), kept, importance)


def tokens_after_selection(tokens: int, rates: Mapping[int, float]) -> int:
    """How many of `tokens` local tokens remain after an encoder with these rates."""
    for _, rate in sorted(rates.items()):
        tokens = math.ceil(rate * tokens)
    return tokens


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless `heads` divides `width`."""
    if heads < 1 or width % heads:
        raise ValueError(
            f"{heads} attention heads cannot share a width of {width}: choose a number of heads "
            "that divides the width."
        )
