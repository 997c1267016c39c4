"""Tokenizers of ZSE: from an image, or from a CNN's map of it, to visual tokens.

`Tokenizer` is the learnable tokenizer of ZSE (CVPR 2023, section 3.1). It averages two patch
embeddings on the same grid: the standard one of a Vision Transformer, and a stack of overlapping
convolutions (the *scale* embedding), whose receptive field is wider than a patch because strokes
are thin and sparse. `MapTokenizer` projects the vectors of a CNN's map instead (Dosovitskiy et al.,
"An image is worth 16x16 words", ICLR 2021, section 3.1, "Hybrid architecture"). Both prepend a
learned retrieval token, like a classifier's [CLS], and add learned positions.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zse_jax.models.layers import MapNorm, linear, normalise_map, patches, torch_uniform


class ScaleEmbedding(nnx.Module):
    """Convolutions of stride 2 without bias, with ReLU between: one 7x7, then 3x3.

    There are log2(patch_size) of them, so that the output has one position per patch. All but the
    last double the channels; for patches of 16 pixels they are the published 3 -> 64 -> 128 -> 256
    -> width.
    """

    def __init__(
        self, patch_size: int, width: int, channels: int = 64, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        """`channels`: output channels of the first convolution.

        Raises:
          ValueError: `patch_size` is not a power of two of at least 2 pixels.
        """
        count = int(math.log2(patch_size)) if patch_size > 0 else 0
        if count < 1 or 2**count != patch_size:
            raise ValueError(
                f"patch_size={patch_size}: each convolution of the scale embedding halves the "
                "image, so patch_size must be 2, 4, 8, 16 or another power of two."
            )
        widths = [3, *(channels * 2**i for i in range(count - 1)), width]
        kernels = [7] + [3] * (count - 1)
        self.convolutions = nnx.List(
            [
                nnx.Conv(
                    inputs,
                    outputs,
                    (kernel, kernel),
                    strides=2,
                    padding=kernel // 2,
                    use_bias=False,
                    kernel_init=torch_uniform(inputs * kernel * kernel),
                    dtype=dtype,
                    rngs=rngs,
                )
                for inputs, outputs, kernel in zip(widths[:-1], widths[1:], kernels, strict=True)
            ]
        )

    def __call__(
        self, images: Float[Array, "b height width 3"]
    ) -> Float[Array, "b rows columns d"]:
        """One vector per patch of the image."""
        x = images
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x if i == 0 else jax.nn.relu(x))
        return x


class Tokenizer(nnx.Module):
    """Images to tokens: a retrieval token, then one token per patch, row by row."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        scale_channels: int,
        *,
        dropout: float,
        position_std: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Positions and retrieval token are drawn from N(0, position_std²); published: 1."""
        self.patch_size = patch_size
        self.grid = image_size // patch_size
        self.dtype = dtype
        self.patch_embedding = linear(patch_size * patch_size * 3, width, dtype=dtype, rngs=rngs)
        self.scale_embedding = ScaleEmbedding(
            patch_size, width, scale_channels, dtype=dtype, rngs=rngs
        )
        normal = nnx.initializers.normal(position_std)
        self.retrieval_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + self.grid**2, width)))
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """Tokens of normalised images of size `image_size`.

        Raises:
          ValueError: images of another size.
        """
        side = self.grid * self.patch_size
        if images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"Images of shape {tuple(images.shape[1:])} do not fit a network for "
                f"{(side, side, 3)}: set config.model.image_size to the size of the images."
            )
        images = images.astype(self.dtype)
        embedded = self.patch_embedding(patches(images, self.patch_size))
        x = (embedded + self.scale_embedding(images)) / 2
        return self.dropout(_placed(x, self.retrieval_token, self.positions))


class MapTokenizer(nnx.Module):
    """A CNN's maps to tokens: a retrieval token, then one token per vector of the map, row by row.

    The maps are normalised, because outputs of a block have no fixed scale, and projected.
    """

    # Added later: these values leave the fingerprint of older models.
    pooled: bool = False
    map_norm: MapNorm = "place"

    def __init__(
        self,
        grid: int,
        channels: int,
        width: int,
        *,
        pooled: bool = False,
        map_norm: MapNorm = "place",
        dropout: float,
        position_std: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Maps are [grid, grid, channels]; positions as for `Tokenizer`.

        With `pooled`, the mean of an image's local tokens is added to each of its tokens: places
        where the CNN finds nothing then carry what the image shows, and not only noise.
        `map_norm` as in `layers.normalise_map`.
        """
        self.grid, self.dtype, self.pooled, self.map_norm = grid, dtype, pooled, map_norm
        self.projection = linear(channels, width, dtype=dtype, rngs=rngs)
        normal = nnx.initializers.normal(position_std)
        self.retrieval_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(normal(rngs.params(), (1, 1 + grid**2, width)))
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def start_from(self, classifier: Float[Array, "c k"]) -> None:
        """Starts the projection at the directions of the map that a classifier reads.

        They are the first left singular vectors of its kernel, all of the same length: the tokens
        keep what the pooled features of the last c channels tell about classes, which a random
        projection to fewer dimensions loses in part.

        Args:
          classifier: kernel of a classifier of the pooled features. Values of the projection for
            other channels, and for more dimensions than the kernel has, stay random.
        """
        kernel, c = self.projection.kernel, len(classifier)
        directions = jnp.linalg.svd(jnp.asarray(classifier), full_matrices=False)[0]
        count = min(kernel.shape[1], directions.shape[1])
        kernel[...] = kernel[...].at[-c:, :count].set(directions[:, :count])
        bias = self.projection.bias
        assert bias is not None  # `linear` makes one
        bias[...] = jnp.zeros_like(bias[...])

    def __call__(self, maps: Float[Array, "b rows columns c"]) -> Float[Array, "b n d"]:
        """Tokens of the maps of images of the network's size.

        Raises:
          ValueError: maps of another size.
        """
        if maps.shape[1:3] != (self.grid, self.grid):
            raise ValueError(
                f"A map of {maps.shape[1]}x{maps.shape[2]} vectors does not fit a network for "
                f"{self.grid}x{self.grid}: set config.model.image_size to the size of the images."
            )
        x = self.projection(normalise_map(maps, self.map_norm).astype(self.dtype))
        tokens = _placed(x, self.retrieval_token, self.positions)
        if self.pooled:
            tokens += x.mean(axis=(1, 2))[:, None]
        return self.dropout(tokens)


def _placed(
    x: Float[Array, "b rows columns d"], retrieval_token: nnx.Param, positions: nnx.Param
) -> Float[Array, "b n d"]:
    """The retrieval token and the vectors of a grid, row by row, plus their positions."""
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    first = jnp.broadcast_to(retrieval_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
    return jnp.concatenate([first, x], axis=1) + positions[...].astype(x.dtype)
