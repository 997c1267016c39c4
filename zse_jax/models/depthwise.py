"""Depthwise convolutions: one kernel per channel, padded as TensorFlow's "SAME".

On CPUs, XLA's grouped convolution is 10 to 40 times slower than the sum of shifted products, which
is used there, with gradients of the same kind. Other platforms use the native operation. The choice
is made when the program is lowered for a platform. `python -m tests.benchmarks.efficientnet`
compares both.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Padding inside of the sum saves a pass over memory, but costs a comparison for each product.
_PADDED_INSIDE = 3


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shifted(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "b u v c"]:
    """The sum of the shifted maps, each times its cell of the kernel; accumulates in float32.

    The gradient of the kernel is a loop over the rows of all images. If images are spread over
    several CPU devices, each device computes it for all of them.
    """
    height, width = x.shape[1:3]
    size = kernel.shape[0]
    top, left = (_before(side, size, stride) for side in (height, width))
    out = -(-height // stride), -(-width // stride)
    return _correlated(x, kernel[:, :, 0], (-top, -left), out, stride)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return shifted(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return _of_maps(dy, kernel, x.shape, stride), _of_kernel(x, dy, kernel, stride)


shifted.defvjp(_forward, _backward)


def _before(side: int, size: int, stride: int) -> int:
    """Zeros before an axis of `side` cells; TensorFlow puts the odd one after it."""
    return max((-(-side // stride) - 1) * stride + size - side, 0) // 2


def _correlated(
    x: Array, kernel: Array, start: tuple[int, int], out: tuple[int, int], stride: int = 1
) -> Array:
    """y[a, b] = sum of x[a stride + start + i, b stride + start + j] kernel[i, j]; 0 outside x."""
    span = [(count - 1) * stride + 1 for count in out]

    def window(i: int, j: int, rows: int, columns: int, scale: Array | None = None) -> Array:
        """The part of x from start + (i, j); before padding it is multiplied by `scale`."""
        first, sides = (start[0] + i, start[1] + j), (rows, columns)
        pads = [
            (-at, at + count - side, 0)
            for at, count, side in zip(first, sides, x.shape[1:3], strict=True)
        ]
        scaled = x if scale is None else x.astype(jnp.float32) * scale
        return jax.lax.pad(scaled, jnp.zeros((), scaled.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    kernel = kernel.astype(jnp.float32)
    total = jnp.zeros((), jnp.float32)
    if kernel.shape[0] > _PADDED_INSIDE:
        rows, columns = (n + count - 1 for n, count in zip(kernel.shape, span, strict=False))
        padded = jax.lax.optimization_barrier(window(0, 0, rows, columns))
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            if kernel.shape[0] > _PADDED_INSIDE:
                part = padded[:, i : i + span[0] : stride, j : j + span[1] : stride]
                total += part.astype(jnp.float32) * kernel[i, j]
            else:
                total += window(i, j, span[0], span[1], kernel[i, j])[:, ::stride, ::stride]
    return jnp.broadcast_to(total, (x.shape[0], *out, x.shape[3])).astype(x.dtype)


def _of_maps(dy: Array, kernel: Array, shape: tuple[int, ...], stride: int) -> Array:
    """The gradient of the maps, a correlation with the flipped kernel.

    With a stride, the cells whose row and column have one remainder receive gradients through the
    kernel's cells of that remainder only: one smaller correlation for each pair of remainders.
    """
    size = kernel.shape[0]
    top, left = (_before(side, size, stride) for side in shape[1:3])
    sides = [
        -(-(side + before) // stride) for side, before in zip(shape[1:3], (top, left), strict=True)
    ]

    def phase(row: int, column: int) -> Array:
        part = kernel[row::stride, column::stride, 0][::-1, ::-1]
        start = 1 - part.shape[0], 1 - part.shape[1]
        return _correlated(dy, part, start, (sides[0], sides[1]))

    phases = [
        jnp.stack([phase(row, column) for column in range(stride)], axis=3) for row in range(stride)
    ]
    whole = jnp.stack(phases, axis=2)
    whole = whole.reshape(shape[0], sides[0] * stride, sides[1] * stride, shape[3])
    return whole[:, top : top + shape[1], left : left + shape[2]]


def _of_kernel(x: Array, dy: Array, kernel: Array, stride: int) -> Array:
    """The gradient of the kernel: sums over images and rows of x dy, then over columns.

    XLA's CPU backend does not vectorise reductions over leading axes, but additions to a running
    total: one step of the loop adds one row of one image, for all rows of the kernel.
    """
    size, (count, height, width, channels) = kernel.shape[0], dy.shape
    pads = []
    for side, rows in zip(x.shape[1:3], (height, width), strict=True):
        before = _before(side, size, stride)
        pads.append((before, (rows - 1) * stride + size - side - before, 0))
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    padded = jax.lax.optimization_barrier(padded)

    def add(step: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        image, row = step // height, step % height
        rows = (1, size, padded.shape[2], channels)
        taken = jax.lax.dynamic_slice(padded, (image, row * stride, 0, 0), rows)[0]
        given = jax.lax.dynamic_slice(dy, (image, row, 0, 0), (1, 1, width, channels))[0]
        taken, given = taken.astype(jnp.float32), given.astype(jnp.float32)
        span = (width - 1) * stride + 1
        return tuple(
            total + taken[:, j : j + span : stride] * given for j, total in enumerate(totals)
        )

    zeros = tuple(jnp.zeros((size, width, channels)) for _ in range(size))
    totals = jax.lax.fori_loop(0, count * height, add, zeros)
    return jnp.stack([total.sum(axis=1) for total in totals], axis=1)[:, :, None].astype(
        kernel.dtype
    )
