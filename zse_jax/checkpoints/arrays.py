"""Models and train states as flat arrays: names, shapes, comparison and checksums."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped, UInt32
from ml_collections import ConfigDict

from zse_jax import retrievers
from zse_jax.retrievers.base import Retriever
from zse_jax.retrievers.rngs import rngs

Arrays = dict[str, Any]
"""Arrays by their flat names."""


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """The structure of a retriever, and its state: "random" keys, and the rest as "model"."""
    definition, *parts = nnx.split(model, nnx.RngState, ...)
    return definition, {"random": parts[0], "model": parts[1]}


def abstract_model(config: ConfigDict) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """The retriever of a config as `split_model`, with shapes in place of arrays."""

    def create() -> Retriever:
        settings = config.model.to_dict()
        return retrievers.create(settings, rngs=rngs(0), dtype=config.compute_dtype)

    return split_model(nnx.eval_shape(create))


def merge_for_inference(definition: nnx.GraphDef, state: Mapping[str, nnx.State]) -> Retriever:
    """The retriever of a structure and a state, with dropout off and running averages on."""
    model = nnx.merge(definition, state["random"], state["model"])
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def checksums(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, int]:
    """The checksum of each array, by name; blocks until they are computed.

    Orbax stores most array bytes without a checksum, so reading does not notice a flipped bit or a
    zeroed block. The checksum of an array is

        sum over its elements i of bits(i) * (2 i + 1)   modulo 2^32

    where bits(i) is the binary representation of element i and i its position in row-major order.
    Every factor is odd, so changing a single element always changes the sum. Integer sums do not
    depend on the order of addition: the checksum is the same on every mesh and for any number of
    processes. All processes must call this function together.

    numpy adds arrays that are in the memory of this process: XLA compiles a program for each shape,
    which takes longer than adding all arrays of a model.
    """
    found = {  # starts all of them
        name: _host_checksum(array) if _is_on_host(array) else _checksum(array)
        for name, array in arrays.items()
    }
    return {name: int(value) for name, value in found.items()}


def _is_on_host(array: jax.Array | np.ndarray) -> bool:
    if isinstance(array, np.ndarray):
        return True
    on_cpu = all(device.platform == "cpu" for device in array.devices())
    return array.is_fully_addressable and on_cpu


def _host_checksum(array: jax.Array | np.ndarray) -> np.uint32:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    values = np.asarray(array).ravel()
    bits = values.view(f"u{values.dtype.itemsize}").astype(np.uint32, copy=False)
    return np.dot(bits, 2 * np.arange(bits.size, dtype=np.uint32) + 1)


@jax.jit  # one array at a time: arrays of the same shape share a compiled program
def _checksum(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    bits = array.astype(jnp.uint8) if array.dtype == bool else array
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[bits.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):  # not flattened: each device sums its part
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def flat_arrays(state: nnx.State) -> Arrays:
    """The arrays of a state, by the path of their module: {"blocks/0/norm/scale": ...}."""
    return {array_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def array_name(path: tuple) -> str:
    """The flat name of the array at a path of a state: "blocks/0/norm/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def abstract_state(shapes: Any, shardings: Any) -> Any:
    """A tree of jax.ShapeDtypeStruct leaves with the shapes and types of `shapes`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


class MismatchError(ValueError):
    """A checkpoint that can be read but belongs to another model."""


def compare(saved: Mapping[str, Any], wanted: Arrays, where: str) -> None:
    """Raises MismatchError with the arrays that differ between a checkpoint and a model."""
    differ = [
        f"{name} is {tuple(saved[name].shape)} in the checkpoint and {_stored_shape(leaf)} here"
        for name, leaf in wanted.items()
        if name in saved and tuple(saved[name].shape) != _stored_shape(leaf)
    ]
    differ += [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    differ += [f"{name} is only in the checkpoint" for name in saved if name not in wanted]
    if differ:
        more = f"; and {len(differ) - 6} more" if len(differ) > 6 else ""
        raise MismatchError(
            f"The checkpoint {where} is of another model: {'; '.join(differ[:6])}{more}. "
            "Use the config.model it was trained with (it is stored in the checkpoint)."
        )


def _stored_shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape on disk; a random key is stored as its key data."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, leaf).shape if is_key else tuple(leaf.shape)
