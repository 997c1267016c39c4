"""The kernel-based relation network (ZSE, CVPR 2023, section 3.3): a score from two sets of tokens.

Local tokens are turned into *anchors*, every sketch anchor is compared with every photo anchor by
cosine, and a small perceptron computes the score from that matrix.
"""

import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zse_jax.models.layers import linear, patches

AnchorMap = Literal["published", "spatial"]


def default_anchors(tokens: int) -> int:
    """The number of anchors of `tokens` local tokens: a quarter if these are at least 49, else all.

    As published: 49 of 196 tokens, 144 of the 144 that remain at keep_rate 0.9.
    """
    side = math.isqrt(tokens)
    mergeable = side * side == tokens and side % 2 == 0
    return tokens // 4 if mergeable and tokens // 4 >= 49 else tokens


class Anchors(nnx.Module):
    """Local tokens to anchors: unchanged, or merged 2x2 by a convolution of stride 2.

    `anchor_map` selects how the [t, d] tokens of an image become the d-channel input of the
    convolution:

    - "published": the memory of the token matrix is read as [d, side, side] without transposition,
      as in the published code (`view`). The released weights require it, but an anchor then mixes
      values from the whole image.
    - "spatial": the token of row y, column x is the vector at (y, x), as the paper describes. An
      anchor is then a place in the image, on which explanations rely.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        anchors: int,
        anchor_width: int,
        *,
        anchor_map: AnchorMap,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`anchors`: `tokens` (no convolution) or a quarter of them, on a square, even grid.

        Raises:
          ValueError: another number of anchors, or an unknown `anchor_map`.
        """
        if anchor_map not in ("published", "spatial"):
            raise ValueError(f'anchor_map={anchor_map!r}: choose "published" or "spatial".')
        side = math.isqrt(tokens)
        mergeable = side * side == tokens and side % 2 == 0
        if anchors != tokens and not (mergeable and anchors * 4 == tokens):
            choices = f"{tokens} or {tokens // 4}" if mergeable else f"{tokens}"
            raise ValueError(
                f"{anchors} anchors cannot be made from {tokens} local tokens: choose {choices}."
            )
        self.side = side
        self.published = anchor_map == "published"
        self.merge = (
            None if anchors == tokens else linear(4 * width, anchor_width, dtype=dtype, rngs=rngs)
        )

    def __call__(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b a c"]:
        """Anchors of local tokens (the retrieval token is excluded), or of means of 2 x 2 of them.

        Spatial anchors of means are those of tokens that equal their mean.
        """
        if self.merge is None:
            return tokens
        b, t, d = tokens.shape
        if self.pools and t * 4 == self.side**2:
            return self._of_means(tokens)
        if self.published:  # in one transposition: on GPUs, each one is a pass through memory
            half = self.side // 2
            grid = tokens.reshape(b, d, half, 2, half, 2).transpose(0, 2, 4, 3, 5, 1)
            merged = self.merge(grid.reshape(b, t // 4, 4 * d))
        else:
            merged = self.merge(patches(tokens.reshape(b, self.side, self.side, d), 2))
        return merged.reshape(b, t // 4, -1)

    @property
    def pools(self) -> bool:
        """Whether anchors can be made from means of 2 x 2 tokens."""
        return self.merge is not None and not self.published

    def _of_means(self, tokens: Float[Array, "b a d"]) -> Float[Array, "b a c"]:
        assert self.merge is not None and self.merge.bias is not None  # `linear` makes one
        kernel = self.merge.kernel[...].reshape(4, tokens.shape[-1], -1).sum(axis=0)
        dtype = self.merge.dtype
        return tokens.astype(dtype) @ kernel.astype(dtype) + self.merge.bias[...].astype(dtype)

    def start_at_mean(self) -> None:
        """Starts spatial anchors at the mean of their four tokens (its first dimensions)."""
        if not self.pools:
            return
        assert self.merge is not None
        inputs, outputs = self.merge.kernel.shape
        self.merge.kernel[...] = jnp.tile(jnp.eye(inputs // 4, outputs) / 4, (4, 1))
        assert self.merge.bias is not None  # `linear` makes one
        self.merge.bias[...] = jnp.zeros_like(self.merge.bias[...])


def cosine_matrix(
    sketch: Float[Array, "*b a c"], photo: Float[Array, "*b e c"]
) -> Float[Array, "*b a e"]:
    """Cosine similarity of every sketch anchor with every photo anchor, float32, in [-1, 1].

    A zero anchor has similarity 0 with everything, and a zero gradient.
    """

    def unit(x):
        x = x.astype(jnp.float32)
        square = jnp.square(x).sum(axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

    return jnp.einsum("...ac,...ec->...ae", unit(sketch), unit(photo))


class RelationNetwork(nnx.Module):
    """A perceptron A² -> A·sqrt(A) -> A -> 1 with ReLU and dropout between the layers.

    These are the published widths for A = 49, 144, 196; for other A, A·sqrt(A) is rounded. The last
    layer computes in float32: logits in bfloat16 would give many pairs the same score.
    """

    def __init__(self, anchors: int, *, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        """`anchors`: A, the number of rows and columns of the cosine matrix."""
        widths = [anchors**2, round(anchors**1.5), anchors, 1]
        self.layers = nnx.List(
            [
                linear(i, o, dtype=dtype if o > 1 else jnp.dtype("float32"), rngs=rngs)
                for i, o in itertools.pairwise(widths)
            ]
        )
        self.dropouts = nnx.List([nnx.Dropout(dropout, rngs=rngs) for _ in range(2)])

    def start_at_mean(
        self, *, scale: float = 30.0, threshold: float = 0.15, noise: float = 0.1
    ) -> None:
        """Starts near logit = scale · (mean cosine - threshold), which ranks before any training.

        Hidden units start equal but for `noise`, a share of the random initial kernels. A constant
        1 in the first layer keeps them above 0 for every cosine.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            factor = scale if i == last else 1.0
            shift = {0: 1.0, last: -scale * (1 + threshold)}.get(i, 0.0)
            kernel = layer.kernel[...]
            layer.kernel[...] = factor * (1 / kernel.shape[0] + noise * kernel)
            assert layer.bias is not None  # `linear` makes one
            layer.bias[...] = jnp.full_like(layer.bias[...], shift)

    def __call__(self, cosine: Float[Array, "b a a"]) -> Float[Array, "b"]:
        """The logit of "same class" for each pair, float32; the score is its sigmoid."""
        x = cosine.reshape(cosine.shape[0], -1)
        for layer, dropout in zip(self.layers[:-1], self.dropouts, strict=True):
            x = dropout(jax.nn.relu(layer(x)))
        return self.layers[-1](x)[:, 0]
