"""A number for the content of each array of a train state, to tell damage that a disk keeps silent.

Checkpoints hold most numbers as they are, without a checksum: of a flipped bit, or of a block of
zeros where a machine lost its power, reading them says nothing. The digest of an array is

    sum over its elements i of bits(i) * (2 i + 1)   modulo 2^32

where bits are those of the element and i its place in row-major order. Every factor is odd, so any
change of a single element changes the sum. Integers are summed exactly in whatever order: the
digest is the same on every mesh and for any number of processes, which add up theirs.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


def digests(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """The digest of each array, by name; waits for them. All processes must ask together."""
    found = {name: _digest(array) for name, array in arrays.items()}  # all are started first
    return {name: int(value) for name, value in found.items()}


@jax.jit  # of one array: many are of the same shape, and compiled once
def _digest(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    bits = array.astype(jnp.uint8) if array.dtype == bool else array
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[bits.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):  # not flattened: each device sums its part
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
