"""Tiles of features on their way to the devices that score them.

A tile is a number of rows of the features. On a mesh, photos are spread over its first axis and
sketches over the others, so that every device scores its own sketches with its own photos.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from zse_jax.retrieval.encoding import whole
from zse_jax.retrieval.storage import across_processes, free_device_memory, item_bytes, read
from zse_jax.retrievers.base import Features

# Memory for a tile's features and what a network computes of each image alone (projections, ...:
# up to 8 times the features): a share of the memory that a device reports free, or bytes on a CPU.
_DEVICE_SHARE, _CPU_TILE_BYTES, _PER_IMAGE = 1 / 8, 2**29, 8
# Larger sides save nothing: the cost per image is negligible against the cost per pair.
_CPU_SIDE, _DEVICE_SIDE = 64, 256


class Layout(NamedTuple):
    """How the leading axes of a tile's sketches and photos are sharded.

    Attributes:
      sketches, photos: the shardings of their items; None: one device.
      rows, columns: number of devices over which sketches and photos are spread.
    """

    sketches: NamedSharding | None
    photos: NamedSharding | None
    rows: int
    columns: int


def layout(sharding: NamedSharding | None) -> Layout:
    """Photos over the first mesh axis of a batch's sharding, sketches over the others."""
    if sharding is None:
        return Layout(None, None, 1, 1)
    mesh, spec = sharding.mesh, sharding.spec[0] if len(sharding.spec) else None
    axes = spec if isinstance(spec, tuple) else () if spec is None else (spec,)
    columns, rows = axes[:1], axes[1:]
    return Layout(
        NamedSharding(mesh, PartitionSpec(rows)),
        NamedSharding(mesh, PartitionSpec(columns)),
        int(np.prod([mesh.shape[axis] for axis in rows], dtype=int)),
        int(np.prod([mesh.shape[axis] for axis in columns], dtype=int)),
    )


def default_tile(
    sketches: Features, photos: Features, sharding: NamedSharding | None = None
) -> tuple[int, int]:
    """Sketches and photos of a tile on each device, by its free memory and the features' size.

    The same on every process; all processes must call it.
    """
    devices = jax.devices()[:1] if sharding is None else [*sharding.device_set]
    free = free_device_memory(devices)
    budget, most = (free * _DEVICE_SHARE, _DEVICE_SIDE) if free else (_CPU_TILE_BYTES, _CPU_SIDE)
    item = max(1, item_bytes(sketches) + item_bytes(photos))
    side = int(np.clip(budget / (_PER_IMAGE * item), 8, most)) // 8 * 8
    side = int(across_processes([side]).min())
    return side, side


def even(
    most: tuple[int, int], counts: tuple[int, int], sharding: NamedSharding | None
) -> tuple[int, int]:
    """The tile size up to `most` that wastes the least on padding the last tiles.

    Args:
      most: sketches and photos of a tile on each device.
      counts: sketches and photos in all.
      sharding: how a batch is spread over a mesh.
    """
    spread = layout(sharding)

    def side(most: int, count: int, devices: int) -> int:
        each = -(-count // devices)

        def cost(side: int) -> int:  # In items; each tile adds about as much as two items.
            return -(-each // side) * (side + 2)

        return min(range(min(most, each), most // 3, -1), key=cost, default=each)

    return side(most[0], counts[0], spread.rows), side(most[1], counts[1], spread.columns)


def rows_from(start: int, count: int, items: int) -> Int[np.ndarray, "count"]:
    """`count` row numbers from `start`; beyond the last of `items`, the last one again."""
    return np.minimum(np.arange(start, start + count), items - 1)


def on_device(
    features: Features, rows: Int[np.ndarray, " n"], sharding: NamedSharding | None
) -> Features:
    """Starts the transfer of some rows of the features to the device or mesh.

    Features may be numpy arrays, equal on every process and also memory-mapped (see
    `storage.read`), of which a process reads the rows of its own devices; or `jax.Array`s, which do
    not pass through the host.
    """

    def placed(leaf: np.ndarray | Array) -> Array:
        if isinstance(leaf, jax.Array):
            if sharding is None or leaf.sharding.device_set == sharding.device_set:
                return _take(leaf, rows, sharding=sharding)
            taken = whole(_take(leaf, rows, sharding=None))
            return jax.make_array_from_callback(taken.shape, sharding, taken.__getitem__)
        if sharding is None:
            return jax.device_put(read(leaf, rows))
        return jax.make_array_from_callback(
            (len(rows), *leaf.shape[1:]),
            sharding,
            lambda index: read(leaf, rows[(index or (...,))[0]]),
        )

    return jax.tree.map(placed, features)


@functools.partial(jax.jit, static_argnames="sharding")
def _take(
    leaf: Shaped[Array, "n ..."],
    rows: Int[Array | np.ndarray, " count"],
    *,
    sharding: NamedSharding | None,
) -> Shaped[Array, "count ..."]:
    taken = jnp.take(leaf, rows, axis=0, mode="clip")
    return taken if sharding is None else jax.lax.with_sharding_constraint(taken, sharding)
