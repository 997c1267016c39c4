"""Tiles of features on their way to the devices that score them.

A tile is some consecutive items. On a mesh, photos are spread over its first axis and sketches over
the others, so that every device scores its own sketches against its own photos.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from zse_jax.retrieval.storage import across_processes, free_device_memory, item_bytes, read
from zse_jax.retrievers.base import Features

# A tile's features may take this much, with all that a network makes of each image by itself
# (projections, ...; some times as large): of the memory that a device reports free, or of a CPU's.
_DEVICE_SHARE, _CPU_TILE_BYTES, _MADE_OF_AN_IMAGE = 1 / 8, 2**29, 8
# Beyond these, what is made of an image by itself costs nothing beside what is made of each pair.
_CPU_SIDE, _DEVICE_SIDE = 64, 256


class Layout(NamedTuple):
    """How the leading axes of a tile's sketches and photos are spread; None: one device.

    Attributes:
      sketches, photos: the shardings of their items.
      rows, columns: over how many devices each of the two is spread.
    """

    sketches: NamedSharding | None
    photos: NamedSharding | None
    rows: int
    columns: int


def layout(sharding: NamedSharding | None) -> Layout:
    """Photos over the first mesh axis that batches are spread over, sketches over the others."""
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

    The same on every process; all must ask.
    """
    devices = jax.devices()[:1] if sharding is None else [*sharding.device_set]
    free = free_device_memory(devices)
    budget, most = (free * _DEVICE_SHARE, _DEVICE_SIDE) if free else (_CPU_TILE_BYTES, _CPU_SIDE)
    item = max(1, item_bytes(sketches) + item_bytes(photos))
    side = int(np.clip(budget / (_MADE_OF_AN_IMAGE * item), 8, most)) // 8 * 8
    side = int(across_processes([side]).min())
    return side, side


def even(
    most: tuple[int, int], counts: tuple[int, int], sharding: NamedSharding | None
) -> tuple[int, int]:
    """The tile up to `most` of which filling up the last ones wastes least.

    Args:
      most: sketches and photos of a tile on each device.
      counts: sketches and photos in all.
      sharding: how photos and sketches are spread over a mesh.
    """
    spread = layout(sharding)

    def side(most: int, count: int, devices: int) -> int:
        each = -(-count // devices)

        def cost(side: int) -> int:  # In items; a tile more costs about as much as two.
            return -(-each // side) * (side + 2)

        return min(range(min(most, each), most // 3, -1), key=cost, default=each)

    return side(most[0], counts[0], spread.rows), side(most[1], counts[1], spread.columns)


def on_device(
    features: Features, start: int, count: int, sharding: NamedSharding | None
) -> Features:
    """Starts the transfer of `count` items from `start` on, filled up with copies of the last.

    Features may be numpy arrays, memory-mapped ones (of which nothing stays in memory), equal on
    every process, or `jax.Array`s, which do not pass through the host.
    """
    return jax.tree.map(lambda leaf: _placed(leaf, start, count, sharding), features)


def _placed(leaf: np.ndarray | Array, start: int, count: int, sharding: NamedSharding | None):
    if isinstance(leaf, jax.Array):
        if sharding is None or leaf.sharding.device_set == sharding.device_set:
            return _take(leaf, start, count=count, sharding=sharding)
        rows = _take(leaf, start, count=count, sharding=None)
    else:
        rows = _host_rows(leaf, start, count)
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(rows, sharding)
    # With several processes, device_put does not take arrays bound to a device.
    return jax.make_array_from_callback(rows.shape, sharding, np.asarray(rows).__getitem__)


@functools.partial(jax.jit, static_argnames=("count", "sharding"))
def _take(
    leaf: Shaped[Array, "n ..."],
    start: int | Int[Array, ""],
    *,
    count: int,
    sharding: NamedSharding | None,
) -> Shaped[Array, "count ..."]:
    rows = jnp.take(leaf, start + jnp.arange(count), axis=0, mode="clip")
    return rows if sharding is None else jax.lax.with_sharding_constraint(rows, sharding)


def _host_rows(leaf: np.ndarray, start: int, count: int) -> np.ndarray:
    rows = read(leaf, slice(start, start + count))
    if len(rows) < count:
        rows = np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
    return rows
