"""Pixel normalisation, and layers with PyTorch's default initialisation.

PyTorch draws weights and biases of linear layers and convolutions from U(-1/sqrt(fan_in),
1/sqrt(fan_in)); Flax draws LeCun-normal weights and zero biases. The parts that are trained from
scratch (scale embedding, cross-attention, relation network) train as published only with PyTorch's.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet's pixels in [0, 1], by channel."""


def normalise(
    images: Num[Array, "b h w 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w 3"]:
    """uint8 pixels to mean 0 and standard deviation 1 by channel; floats are returned unchanged.

    `mean` and `std` are those of pixels in [0, 1].
    """
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as PyTorch initialises linear layers and convolutions."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nnx.Linear):
    """A linear layer that flattens the leading axes before the matrix product.

    Otherwise the kernel's gradient contracts batch and token axes at once, for which XLA's CPU
    backend transposes both operands; that is considerably slower.
    """

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding=None) -> Float[Array, "*b o"]:
        """Applies the layer to the last axis."""
        rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return rows.reshape(*inputs.shape[:-1], -1)

    def parts(self, inputs: Float[Array, "*b i"], count: int) -> list[Float[Array, "*b part"]]:
        """The output in `count` equal parts, each of them a matrix product and an array."""
        kernels = jnp.split(self.kernel[...].astype(self.dtype), count, axis=1)
        outputs = [inputs.astype(self.dtype) @ kernel for kernel in kernels]
        if self.bias is None:
            return outputs
        biases = jnp.split(self.bias[...].astype(self.dtype), count)
        return [output + bias for output, bias in zip(outputs, biases, strict=True)]


def linear(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Linear:
    """A linear layer, kernel [inputs, outputs], computing in `dtype` with float32 parameters."""
    init = torch_uniform(inputs)
    return Linear(inputs, outputs, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs)


MapNorm = Literal["place", "map"]


def normalise_map(x: Float[Array, "b u v c"], norm: MapNorm) -> Float[Array, "b u v c"]:
    """A map of a CNN at a fixed scale, which the outputs of its blocks do not have.

    "place": each vector has mean 0 and variance 1 (LayerNorm without parameters). "map": the map of
    an image is divided by its root mean square, so that places where the CNN finds nothing stay
    small, as they are in its pooled features.
    """
    if norm == "place":
        return jax.nn.standardize(x)
    square = jnp.mean(jnp.square(x), axis=(1, 2, 3), keepdims=True)
    return x * jax.lax.rsqrt(square + 1e-12)


def start_at_zero(*layers: nnx.Linear) -> None:
    """Sets kernels and biases to zero: a residual branch that ends with one changes nothing yet."""
    for layer in layers:
        nnx.update(layer, jax.tree.map(jnp.zeros_like, nnx.state(layer, nnx.Param)))


def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """The exact x · Φ(x), through erf as PyTorch does; `jax.nn.gelu`'s erfc is slower on CPUs."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def layer_norm(
    width: int, *, epsilon: float = 1e-5, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """LayerNorm, by default with PyTorch's epsilon; float32 statistics by the two-pass formula."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def patches(
    images: Float[Array, "b height width channel"], size: int
) -> Float[Array, "b rows columns patch"]:
    """Non-overlapping `size` x `size` patches; each flattened as (y, x, channel).

    Together with one matrix product this is a convolution whose stride is its kernel size.

    Raises:
      ValueError: height or width is not a multiple of `size`.
    """
    b, height, width, channel = images.shape
    if height % size or width % size:
        raise ValueError(
            f"A map of {height}x{width} does not divide into patches of {size}x{size}: choose an "
            "image size that is a multiple of the patch size."
        )
    grid = images.reshape(b, height // size, size, width // size, size, channel)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(
        b, height // size, width // size, size * size * channel
    )
