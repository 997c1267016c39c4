"""DINOv2: Vision Transformers with 14 x 14 patches, trained without labels (Meta, 2023).

Oquab et al., "DINOv2: Learning robust visual features without supervision", arXiv 2304.07193; with
registers: Darcet et al., arXiv 2309.16588. Unlike the Vision Transformer of ZSE, the blocks scale
their outputs (LayerScale), query, key and value are separate layers, and the positions are
interpolated to the grid of each image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zse_jax.models.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Linear,
    gelu,
    layer_norm,
    patches,
)
from zse_jax.models.rematerialisation import rematerialisable
from zse_jax.models.vit import attend, merge_heads, rollout, split_heads

PATCH = 14
"""Side of a patch of the published networks, in pixels."""

GRID = 37
"""Side of their grid of patches with stored positions: images of 518 pixels."""

_EPSILON = 1e-6


class Variant(NamedTuple):
    """The size of a network.

    Attributes:
      width, depth, heads: of the tokens, in blocks, and of a block's attention.
      registers: 0 or 4.
      patch: side of a patch, in pixels.
      grid: side of the grid of patches for which positions are stored.
      position_std: of the initial positions and class token; 0.02 is DINOv2's, with which a small
        network starts to learn late.
    """

    width: int
    depth: int
    heads: int
    registers: int = 0
    patch: int = PATCH
    grid: int = GRID
    position_std: float = 0.02


_SIZES = {"vits14": (384, 12, 6), "vitb14": (768, 12, 12), "vitl14": (1024, 24, 16)}
VARIANTS = {name: Variant(*size) for name, size in _SIZES.items()} | {
    f"{name}_reg": Variant(*size, registers=4) for name, size in _SIZES.items()
}
VARIANTS["tiny"] = Variant(96, 3, 4, patch=16, grid=4, position_std=0.3)
"""The published networks but the largest one, ViT-g/14, whose MLP differs; and `tiny`, ours, to
train from random values on images of 64 pixels."""


def _linear(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Linear:
    """A linear layer that keeps the variance of its inputs; its bias is 0, as DINOv2's.

    With PyTorch's initial values (`layers.linear`), the biases outweigh the image after a few
    blocks: all class tokens are nearly equal, and a triplet loss makes them equal.
    """
    init = nnx.initializers.lecun_uniform()
    return Linear(inputs, outputs, kernel_init=init, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Attention and MLP, each normalised before and scaled by channel after it."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """The MLP is 4 times as wide as the tokens."""
        self.heads = heads
        self.norm_attention = layer_norm(width, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.query = _linear(width, width, dtype=dtype, rngs=rngs)
        self.key = _linear(width, width, dtype=dtype, rngs=rngs)
        self.value = _linear(width, width, dtype=dtype, rngs=rngs)
        self.out = _linear(width, width, dtype=dtype, rngs=rngs)
        self.scale_attention = nnx.Param(jnp.ones(width))
        self.norm_mlp = layer_norm(width, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.mlp_in = _linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.mlp_out = _linear(4 * width, width, dtype=dtype, rngs=rngs)
        self.scale_mlp = nnx.Param(jnp.ones(width))

    @rematerialisable
    def __call__(
        self, tokens: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b heads n n"]]:
        """The tokens after attention and MLP, and the attention weights."""
        x = self.norm_attention(tokens)
        query, key, value = (
            split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value)
        )
        attended, weights = attend(query, key, value)
        attended = self.out(merge_heads(attended))
        tokens = tokens + attended * self.scale_attention[...].astype(tokens.dtype)
        x = self.mlp_out(gelu(self.mlp_in(self.norm_mlp(tokens))))
        return tokens + x * self.scale_mlp[...].astype(tokens.dtype), weights


class DINOv2(nnx.Module):
    """DINOv2 (`backbone.Backbone`), for images whose sides are multiples of its patches.

    Attributes:
      variant: key of `VARIANTS`.
      features: width of the tokens.
      classes: 0; it has no classifier.
    """

    image_size: int | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    publishers: Sequence[str] = ("dinov2", "huggingface_dinov2", "published_cmca")
    classes: int = 0

    def __init__(self, variant: str = "vits14", *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        """Builds the network.

        Args:
          variant: key of `VARIANTS`.
          dtype: of activations; parameters and outputs are float32.
          rngs: stream `params`.

        Raises:
          ValueError: an unknown variant.
        """
        if variant not in VARIANTS:
            raise ValueError(
                f"DINOv2 has no variant {variant!r}: choose one of {', '.join(VARIANTS)}."
            )
        width, depth, heads, registers, patch, grid, deviation = VARIANTS[variant]
        self.variant, self.features, self.dtype = variant, width, jnp.dtype(dtype)
        self.patch = patch
        settings: dict[str, Any] = {"dtype": self.dtype, "rngs": rngs}
        init = nnx.initializers.truncated_normal(deviation)
        self.patch_embedding = _linear(3 * patch**2, width, **settings)
        self.class_token = nnx.Param(init(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(init(rngs.params(), (1, 1 + grid**2, width)))
        self.registers = (
            nnx.Param(init(rngs.params(), (1, registers, width))) if registers else None
        )
        self.blocks = nnx.List([Block(width, heads, **settings) for _ in range(depth)])
        self.norm = layer_norm(width, epsilon=_EPSILON, **settings)

    def tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """The class token, the registers, and the patches by rows, after the final LayerNorm.

        Raises:
          ValueError: a side of the images is not a multiple of the patches'.
        """
        return self.attended(images)[0]

    def attended(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b t"]]:
        """`tokens`, and the attention rollout from the class token to each patch, which sums to 1.

        Raises:
          ValueError: as for `tokens`.
        """
        x, steps = self._input(images), []
        for block in self.blocks:
            x, weights = block(x)
            steps.append(weights.mean(axis=1))
        reached = rollout(steps)[:, x.shape[1] - self._patches(images) :]
        return self.norm(x).astype(jnp.float32), reached / reached.sum(axis=1, keepdims=True)

    def _input(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """The tokens before the first block."""
        x = self.patch_embedding(patches(images.astype(self.dtype), self.patch))
        count, rows, columns, width = x.shape
        first = jnp.broadcast_to(self.class_token[...], (count, 1, width))
        x = jnp.concatenate([first, x.reshape(count, -1, width)], axis=1)
        x = x + interpolated(self.positions[...], rows, columns, smooth=self.registers is not None)
        if self.registers is not None:
            registers = jnp.broadcast_to(self.registers[...], (count, *self.registers.shape[1:]))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        return x.astype(self.dtype)

    def _patches(self, images: Float[Array, "b h w 3"]) -> int:
        return (images.shape[1] // self.patch) * (images.shape[2] // self.patch)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b features"], None]:
        """The class token after the final LayerNorm, float32; no logits.

        Raises:
          ValueError: as for `tokens`.
        """
        return self.tokens(images)[:, 0], None

    def local_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b u v features"]:
        """The patches, shifted so that their mean is the class token, as for other backbones.

        Raises:
          ValueError: as for `tokens`.
        """
        tokens = self.tokens(images)
        grid = self._grid(tokens, images)
        return grid + (tokens[:, 0] - grid.mean(axis=(1, 2)))[:, None, None]

    def feature_maps(self, images: Float[Array, "b h w 3"]) -> dict[int, Float[Array, "b u v _"]]:
        """The patches after the final LayerNorm, float32, with the patches' side as stride.

        Raises:
          ValueError: as for `tokens`.
        """
        return {self.patch: self._grid(self.tokens(images), images)}

    def _grid(self, tokens: Array, images: Array) -> Array:
        rows, columns = (side // self.patch for side in images.shape[1:3])
        return tokens[:, -rows * columns :].reshape(len(tokens), rows, columns, -1)


def interpolated(
    positions: Float[Array, "1 p d"], rows: int, columns: int, *, smooth: bool
) -> Float[Array, "1 q d"]:
    """Positions of a token and a square grid, with the grid interpolated bicubically.

    Args:
      positions: of the class token and of the patches by rows.
      rows, columns: of the new grid.
      smooth: as for the published models with registers: antialiased. Otherwise as for those
        without: not antialiased, with a scale that was computed from rows + 0.1.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if rows == columns == side:
        return positions
    grid = positions[0, 1:].reshape(side, side, -1)
    vertical, horizontal = (
        jnp.asarray(bicubic(side, count, smooth=smooth)) for count in (rows, columns)
    )
    grid = jnp.einsum("rs,std,ct->rcd", vertical, grid, horizontal, precision="float32")
    return jnp.concatenate([positions[:, :1], grid.reshape(1, rows * columns, -1)], axis=1)


def bicubic(side: int, count: int, *, smooth: bool) -> Float[np.ndarray, "count side"]:
    """The matrix with which PyTorch's bicubic interpolation turns `side` values into `count`.

    The arguments are as for `interpolated`. The kernel's parameter is -0.75, or -0.5 if
    antialiased; its support is then that of the new cells where they are larger. Values beyond the
    ends are those at the ends; antialiasing leaves them out.
    """
    scale = side / count if smooth else side / (count + 0.1)
    centres = (np.arange(count) + 0.5) * scale - 0.5
    stretch, sharpness = (max(scale, 1.0), -0.5) if smooth else (1.0, -0.75)
    reach = int(np.ceil(2 * stretch)) + 1
    matrix = np.zeros((count, side))
    for i, centre in enumerate(centres):
        cells = np.arange(int(np.floor(centre)) - reach, int(np.floor(centre)) + reach + 1)
        weights = _cubic(np.abs(cells - centre) / stretch, sharpness)
        if smooth:
            weights = np.where((cells >= 0) & (cells < side), weights, 0)
            weights = weights / weights.sum()
        np.add.at(matrix[i], cells.clip(0, side - 1), weights)
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel, "Cubic convolution interpolation for digital image processing", 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
