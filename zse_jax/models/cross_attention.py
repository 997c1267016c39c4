"""Cross-attention between the tokens of a sketch and of a photo (ZSE, CVPR 2023, section 3.2).

One post-norm transformer layer per direction, each with weights of its own; both read the input
tokens. In the published network a direction takes only its keys from the other image: query, value
and residual stay on its own side (`value="own"`, needed by released weights). The textbook form
takes key and value from the other side (`value="other"`).

Every projection depends on one image only, so it is made once per image (`project`), and only what
truly depends on the pair is computed per pair (`attend`).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zse_jax.models.layers import linear
from zse_jax.models.vit import attend, check_heads, merge_heads, split_heads

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
    """One direction: attention into the other image, feed-forward, both with residual and norm."""

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
        """One of this layer's projections of some tokens, split into its heads."""
        return split_heads(projection(tokens), self.heads)

    def __call__(
        self,
        residual: Float[Array, "b t d"],
        query: Float[Array, "b heads t c"],
        key: Float[Array, "b heads s c"],
        value: Float[Array, "b heads s c"],
    ) -> Float[Array, "b t d"]:
        """The tokens of this side after meeting the other."""
        attended, _ = attend(query, key, value, self.dropout_weights)
        attended = self.out(merge_heads(attended))
        x = self.norm_attended(residual + self.dropout_attended(attended))
        hidden = self.dropout_hidden(jax.nn.relu(self.mlp_in(x)))
        return self.norm_mlp(x + self.dropout_mlp(self.mlp_out(hidden)))


class Projected(NamedTuple):
    """Tokens of images of one modality with all that they bring to any pair."""

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
        """As published, all projections of both directions start from one draw: see `_tie`.

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
        """The published code builds these layers by deep copies, so they start out equal."""
        first = self.sketch_layer
        for layer in (self.sketch_layer, self.photo_layer):
            for projection in (layer.query, layer.key, layer.value, layer.out):
                _copy(first.query, projection)
        _copy(first.mlp_in, self.photo_layer.mlp_in)
        _copy(first.mlp_out, self.photo_layer.mlp_out)

    def project_sketches(self, tokens: Float[Array, "b t d"]) -> Projected:
        """What sketches bring to any pair; once per image."""
        return self._project(tokens, own=self.sketch_layer, other=self.photo_layer)

    def project_photos(self, tokens: Float[Array, "b t d"]) -> Projected:
        """What photos bring to any pair; once per image."""
        return self._project(tokens, own=self.photo_layer, other=self.sketch_layer)

    def _project(self, tokens, own: CrossLayer, other: CrossLayer) -> Projected:
        reader = own if self.takes_own_value else other
        return Projected(
            tokens,
            query=own.heads_of(own.query, tokens),
            key=other.heads_of(other.key, tokens),
            value=reader.heads_of(reader.value, tokens),
        )

    def attend(
        self, sketch: Projected, photo: Projected
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """Sketch and photo tokens of each pair (sketch i, photo i) after cross-attention."""
        values = (sketch.value, photo.value)
        if not self.takes_own_value:
            values = values[::-1]
        return (
            self.sketch_layer(sketch.tokens, sketch.query, photo.key, values[0]),
            self.photo_layer(photo.tokens, photo.query, sketch.key, values[1]),
        )

    def __call__(
        self, sketch_tokens: Float[Array, "b t d"], photo_tokens: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """Sketch and photo tokens of each pair (sketch i, photo i) after cross-attention."""
        return self.attend(self.project_sketches(sketch_tokens), self.project_photos(photo_tokens))


def _copy(source: nnx.Linear, target: nnx.Linear) -> None:
    # Into buffers of their own: two parameters in one buffer could not be donated to a train step.
    nnx.update(target, jax.tree.map(jnp.copy, nnx.state(source)))
