"""Cross-attention between the tokens of a sketch and of a photo (ZSE, CVPR 2023, section 3.2).

One post-norm transformer layer per direction, with separate weights; both read the input tokens. In
the published network a direction takes only its keys from the other image; query, value and
residual come from its own image (`value="own"`, required by the released weights). The standard
form takes key and value from the other image (`value="other"`).

Every projection depends on one image only, so it is computed once per image (`project_sketches`,
`project_photos`); the rest is computed per pair (`traced`). To score one sketch against many
photos, `meeting` reorders the computation around the factors that all pairs share.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zse_jax.models.layers import linear, start_at_zero
from zse_jax.models.rematerialisation import rematerialisable
from zse_jax.models.vit import (
    Fused,
    attend,
    check_heads,
    fused_attention,
    fused_product,
    merge_heads,
    split_heads,
)

Value = Literal["own", "other"]


class UnbiasedNorm(nnx.Module):
    """a · (x - mean) / (std + eps) + b, with the unbiased standard deviation (n - 1).

    The published cross-attention uses this instead of LayerNorm. Computed in float32.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, eps: float = 1e-6):
        """`eps` is added to the standard deviation, not to the variance."""
        self.eps = eps
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalises the last axis."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)
        std = jnp.sqrt(jnp.maximum(variance, jnp.finfo(jnp.float32).tiny))
        return (self.scale[...] * centred / (std + self.eps) + self.bias[...]).astype(self.dtype)


class CrossLayer(nnx.Module):
    """One direction: attention to the other image and feed-forward, each with residual and norm."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Raises ValueError when `heads` does not divide `width`."""
        check_heads(width, heads)
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            linear(width, width, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.dropout_weights = nnx.Dropout(dropout, rngs=rngs)
        self.dropout_attended = nnx.Dropout(dropout, rngs=rngs)
        self.norm_attended = UnbiasedNorm(width, dtype=dtype)
        self.mlp_in = linear(width, mlp_width, dtype=dtype, rngs=rngs)
        self.dropout_hidden = nnx.Dropout(dropout, rngs=rngs)
        self.mlp_out = linear(mlp_width, width, dtype=dtype, rngs=rngs)
        self.dropout_mlp = nnx.Dropout(dropout, rngs=rngs)
        self.norm_mlp = UnbiasedNorm(width, dtype=dtype)

    def heads_of(
        self, projection: nnx.Linear, tokens: Float[Array, "b t d"]
    ) -> Float[Array, "b heads t c"]:
        """Applies one of this layer's projections and splits the result into heads."""
        return split_heads(projection(tokens), self.heads)

    @rematerialisable
    def __call__(
        self,
        residual: Float[Array, "b t d"],
        query: Float[Array, "b heads t c"],
        key: Float[Array, "b heads s c"],
        value: Float[Array, "b heads s c"],
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b heads t s"]]:
        """The tokens of this image after attention to the other, and the attention weights."""
        attended, weights = attend(query, key, value, self.dropout_weights)
        return self.after_attention(residual, merge_heads(attended)), weights

    def after_attention(
        self, residual: Float[Array, "*#b #t d"], attended: Float[Array, "*b t d"]
    ) -> Float[Array, "*b t d"]:
        """The rest of the layer: output projection of the merged heads, feed-forward, norms."""
        x = self.norm_attended(residual + self.dropout_attended(self.out(attended)))
        hidden = self.dropout_hidden(jax.nn.relu(self.mlp_in(x)))
        return self.norm_mlp(x + self.dropout_mlp(self.mlp_out(hidden)))


class Projected(NamedTuple):
    """Tokens of images of one modality, and their projections, which do not depend on the pair."""

    tokens: Float[Array, "b t d"]
    query: Float[Array, "b heads t c"]
    key: Float[Array, "b heads t c"]
    value: Float[Array, "b heads t c"]


class CrossAttention(nnx.Module):
    """Both directions of cross-attention between sketches and photos."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        value: Value = "own",
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Initialises all projections of both directions equally, as published: see `_tie`.

        Raises:
          ValueError: `value` is neither "own" nor "other", or `heads` does not divide `width`.
        """
        if value not in ("own", "other"):
            raise ValueError(f'cross-attention value={value!r}: choose "own" or "other".')
        self.takes_own_value = value == "own"
        self.sketch_layer, self.photo_layer = (
            CrossLayer(width, heads, mlp_width, dropout=dropout, dtype=dtype, rngs=rngs)
            for _ in range(2)
        )
        self._tie()

    def _tie(self) -> None:
        """Makes the layers equal: the published code creates them as deep copies."""
        first = self.sketch_layer
        for layer in (self.sketch_layer, self.photo_layer):
            for projection in (layer.query, layer.key, layer.value, layer.out):
                _copy(first.query, projection)
        _copy(first.mlp_in, self.photo_layer.mlp_in)
        _copy(first.mlp_out, self.photo_layer.mlp_out)

    def start_at_zero(self) -> None:
        """Attention and feed-forward change nothing at first."""
        for layer in (self.sketch_layer, self.photo_layer):
            start_at_zero(layer.out, layer.mlp_out)

    @property
    def trained(self) -> bool:
        """Whether training has moved it away from `start_at_zero`."""
        return bool(jnp.any(self.sketch_layer.mlp_out.kernel[...] != 0))

    def start_centred(self, sketch_mean: Float[Array, "d"], photo_mean: Float[Array, "d"]) -> None:
        """The last norms subtract these means of tokens of each modality, by their biases."""
        for layer, mean in ((self.sketch_layer, sketch_mean), (self.photo_layer, photo_mean)):
            layer.norm_mlp.bias[...] = mean.mean() - mean

    def project_sketches(self, tokens: Float[Array, "b t d"]) -> Projected:
        """Tokens and projections of sketches; once per image."""
        return self._project(tokens, own=self.sketch_layer, other=self.photo_layer)

    def project_photos(self, tokens: Float[Array, "b t d"]) -> Projected:
        """Tokens and projections of photos; once per image."""
        return self._project(tokens, own=self.photo_layer, other=self.sketch_layer)

    def _project(self, tokens, own: CrossLayer, other: CrossLayer) -> Projected:
        reader = own if self.takes_own_value else other
        return Projected(
            tokens,
            query=own.heads_of(own.query, tokens),
            key=other.heads_of(other.key, tokens),
            value=reader.heads_of(reader.value, tokens),
        )

    def traced(
        self, sketch: Projected, photo: Projected
    ) -> tuple[
        tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
        tuple[Float[Array, "b heads t s"], Float[Array, "b heads s t"]],
    ]:
        """Tokens of each pair (sketch i, photo i) after cross-attention, and attention weights.

        Both are pairs: of sketches and photos, and of sketches to photos and photos to sketches.
        """
        values = (sketch.value, photo.value)
        if not self.takes_own_value:
            values = values[::-1]
        sketch_tokens, to_photo = self.sketch_layer(
            sketch.tokens, sketch.query, photo.key, values[0]
        )
        photo_tokens, to_sketch = self.photo_layer(photo.tokens, photo.query, sketch.key, values[1])
        return (sketch_tokens, photo_tokens), (to_photo, to_sketch)

    def meeting(
        self, photos: Projected, fused: Fused | None = None
    ) -> Callable[[Projected], tuple[Float[Array, "g t d"], Float[Array, "g t d"]]]:
        """Returns a function that applies cross-attention to one sketch and each of the photos.

        The result is that of `traced` with the sketch repeated, without dropout of attention
        weights. Three of the four attention products share a factor between all photos, so each is
        one large matrix product. Queries and residuals may have fewer tokens than keys and values.

        Args:
          photos: G photos; their arrays are rearranged once, for any number of sketches.
          fused: computes attention by `jax.nn.dot_product_attention` instead, which does not store
            the weights. None: by cuDNN if `fused_attention` allows it.

        Returns:
          A function from the `Projected` of one sketch (without leading axis) to the sketch's and
          the photos' tokens.
        """
        if fused or fused_attention(photos.query.dtype, photos.query.shape[-1]):
            return self._fused_meeting(photos, fused or "cudnn")
        width = photos.tokens.shape[-1]
        scale = photos.query.shape[-1] ** -0.5
        query, key, value = (x.swapaxes(0, 1) for x in photos[1:])  # Heads, then photos.
        shared, own = ("hsc", "hgsc") if self.takes_own_value else ("hgsc", "hsc")

        def softmax(logits: Array, dtype: jnp.dtype) -> Array:
            return jax.nn.softmax(logits, axis=-1).astype(dtype)

        def meet(sketch: Projected) -> tuple[Array, Array]:
            values = (sketch.value, value) if self.takes_own_value else (value, sketch.value)
            # The smaller factor is scaled.
            logits = jnp.einsum(
                "htc,hgsc->htgs", sketch.query * scale, key, preferred_element_type=jnp.float32
            )
            attended = jnp.einsum(
                f"htgs,{shared}->htgc", softmax(logits, key.dtype), values[0]
            ).transpose(1, 2, 0, 3)
            sketch_tokens = self.sketch_layer.after_attention(
                sketch.tokens[:, None], attended.reshape(*attended.shape[:2], width)
            ).swapaxes(0, 1)
            logits = jnp.einsum(
                "hgtc,hsc->hgts", query, sketch.key * scale, preferred_element_type=jnp.float32
            )
            attended = jnp.einsum(
                f"hgts,{own}->hgtc", softmax(logits, key.dtype), values[1]
            ).transpose(1, 2, 0, 3)
            photo_tokens = self.photo_layer.after_attention(
                photos.tokens, attended.reshape(*attended.shape[:2], width)
            )
            return sketch_tokens, photo_tokens

        return meet

    def _fused_meeting(self, photos: Projected, implementation: Fused):
        # Tokens before heads, as required by `dot_product_attention`.
        query, key, value = (x.swapaxes(1, 2) for x in photos[1:])

        def merged(*operands: Array) -> Array:
            attended = fused_product(*operands, implementation)
            return attended.reshape(*attended.shape[:2], -1)

        def meet(sketch: Projected) -> tuple[Array, Array]:
            sketch_query, sketch_key, sketch_value = (
                jnp.broadcast_to(x.swapaxes(0, 1), (len(key), x.shape[1], *key.shape[2:]))
                for x in sketch[1:]
            )
            values = (sketch_value, value) if self.takes_own_value else (value, sketch_value)
            return (
                self.sketch_layer.after_attention(
                    sketch.tokens[None], merged(sketch_query, key, values[0])
                ),
                self.photo_layer.after_attention(
                    photos.tokens, merged(query, sketch_key, values[1])
                ),
            )

        return meet

    def __call__(
        self, sketch_tokens: Float[Array, "b t d"], photo_tokens: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """Sketch and photo tokens of each pair (sketch i, photo i) after cross-attention."""
        sketch, photo = self.project_sketches(sketch_tokens), self.project_photos(photo_tokens)
        return self.traced(sketch, photo)[0]


def _copy(source: nnx.Linear, target: nnx.Linear) -> None:
    # Separate buffers: two parameters that share a buffer cannot be donated to a train step.
    nnx.update(target, jax.tree.map(jnp.copy, nnx.state(source)))
