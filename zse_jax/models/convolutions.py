"""Convolutions padded as TensorFlow's "SAME", in the forms that are fast on each platform.

On CPUs, XLA's grouped convolution is 10 to 40 times slower than the sum of shifted products, and
its convolution of three channels 3 times slower than a matrix product of patches. These forms are
used there, with gradients of the same kind. Other platforms use the native operation. The choice is
made when the program is lowered for a platform. `python -m tests.benchmarks.efficientnet` compares
both.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int = 1
) -> Float[Array, "b u v d"]:
    """A convolution without groups.

    Args:
      x: maps.
      kernel: of the dtype of `x`.
      stride: 1 or more; the sides of the result are divided by it and rounded up.
    """
    return _on_cpus(of_patches, x, kernel, stride)


def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int = 1
) -> Float[Array, "b u v c"]:
    """Each channel convolved with its own k x k kernel.

    Args:
      x: maps.
      kernel: of the dtype of `x`.
      stride: 1 or more; the sides of the result are divided by it and rounded up.
    """
    return _on_cpus(shifted, x, kernel, stride)


def _on_cpus(form: Callable[..., Array], x: Array, kernel: Array, stride: int) -> Array:
    """`form` on CPUs, the native operation elsewhere."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(form, stride=stride),
        default=functools.partial(native, stride=stride),
    )


def native(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"], stride: int
) -> Float[Array, "b u v d"]:
    """XLA's convolution; `c / i` groups."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3] // kernel.shape[2],
    )


def of_patches(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int
) -> Float[Array, "b u v d"]:
    """The matrix product of all k x k patches with the kernel: for few channels."""
    size, height, width = kernel.shape[0], *(-(-side // stride) for side in x.shape[1:3])
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), _padding(x.shape, size, stride))
    columns = [padded[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(size)]
    taken = jax.lax.optimization_barrier(jnp.concatenate(columns, axis=3))
    rows = [taken[:, i : i + (height - 1) * stride + 1 : stride] for i in range(size)]
    patches = jnp.concatenate(rows, axis=3).reshape(-1, size * size * x.shape[3])
    product = patches @ kernel.reshape(patches.shape[1], -1)
    return product.reshape(x.shape[0], height, width, -1)


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


def _padding(shape: tuple[int, ...], size: int, stride: int) -> list[tuple[int, int, int]]:
    """Cells before, after and between those of maps; after may be negative: not all are used."""
    pads = []
    for side in shape[1:3]:
        before = _before(side, size, stride)
        pads.append((before, (-(-side // stride) - 1) * stride + size - side - before, 0))
    return [(0, 0, 0), *pads, (0, 0, 0)]


def _correlated(
    x: Array, kernel: Array, start: tuple[int, int], out: tuple[int, int], stride: int = 1
) -> Array:
    """y[a, b] = sum of x[a stride + start + i, b stride + start + j] kernel[i, j]; 0 outside x.

    The maps are padded in a pass of their own. As a part of the sum, padding and what comes before
    it would be computed for each cell of the kernel.
    """
    span = [(count - 1) * stride + 1 for count in out]
    pads = [
        (-first, first + size - 1 + count - side, 0)
        for first, size, count, side in zip(
            start, kernel.shape[:2], span, x.shape[1:3], strict=True
        )
    ]
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    padded = jax.lax.optimization_barrier(padded)
    kernel = kernel.astype(jnp.float32)
    total = jnp.zeros((), jnp.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            part = padded[:, i : i + span[0] : stride, j : j + span[1] : stride]
            total += part.astype(jnp.float32) * kernel[i, j]
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
    """The gradient of the kernel: sums over images, rows and columns of x dy.

    XLA's CPU backend does not vectorise reductions over leading axes, but additions to a running
    total: one step of its loop adds one row of one image, for all rows of the kernel.
    """
    size = kernel.shape[0]
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), _padding(x.shape, size, stride))
    total = jax.lax.platform_dependent(
        jax.lax.optimization_barrier(padded),
        dy,
        cpu=functools.partial(_by_rows, size=size, stride=stride),
        default=functools.partial(_by_cells, size=size, stride=stride),
    )
    return total[:, :, None].astype(kernel.dtype)


def _by_cells(padded: Array, dy: Array, *, size: int, stride: int) -> Array:
    """The gradient of the kernel as a reduction for each of its cells."""
    rows, columns = ((side - 1) * stride + 1 for side in dy.shape[1:3])
    given = dy.astype(jnp.float32)

    def cell(i: int, j: int) -> Array:
        part = padded[:, i : i + rows : stride, j : j + columns : stride]
        return (part.astype(jnp.float32) * given).sum(axis=(0, 1, 2))

    return jnp.stack([jnp.stack([cell(i, j) for j in range(size)]) for i in range(size)])


def _by_rows(padded: Array, dy: Array, *, size: int, stride: int) -> Array:
    """The same as a loop over the rows of all images."""
    count, height, width, channels = dy.shape

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
    return jnp.stack([total.sum(axis=1) for total in totals], axis=1)
