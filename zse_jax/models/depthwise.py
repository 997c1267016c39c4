"""Depthwise convolutions: one kernel per channel, padded as TensorFlow's "SAME".

On CPUs, XLA's grouped convolution is 10 to 40 times slower than the sum of the shifted products,
which is therefore used there, with gradients of the same form. Other platforms use the native
operation. The choice is made when the program is lowered for a platform.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int = 1
) -> Float[Array, "b u v c"]:
    """Each channel convolved with its own k x k kernel.

    Args:
      x: maps.
      kernel: of the dtype of `x`.
      stride: 1 or more; the sides of the result are divided by it and rounded up.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(shifted, stride=stride),
        default=functools.partial(native, stride=stride),
    )


def native(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "b u v c"]:
    """XLA's grouped convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def same_padding(side: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of `side` cells in TensorFlow's "SAME": the odd one after."""
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


def shifted(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "b u v c"]:
    """The sum over the kernel's cells of the shifted maps times that cell."""
    size = kernel.shape[0]
    sides = x.shape[1:3]
    rows, columns = (same_padding(side, size, stride) for side in sides)
    u, v = (-(-side // stride) for side in sides)
    padded = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
    total = jnp.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            window = padded[
                :, i : i + (u - 1) * stride + 1 : stride, j : j + (v - 1) * stride + 1 : stride
            ]
            total = total + window * kernel[i, j, 0]
    return total
