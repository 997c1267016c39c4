"""Sharding: one mesh ("data", "fsdp"), one rule for parameters, one for batches.

Batches are split over both axes. A parameter, with its two AdamW moments, is split over "fsdp"
along its largest divisible dimension and replicated over "data"; `fsdp=1` is plain data
parallelism. The compiler adds the collectives (GSPMD), so the same program runs on one device or
many. Fully sharded data parallelism is ZeRO stage 3 (Rajbhandari et al., arXiv 1910.02054): a step
gathers the parameters (`gathered`), and splits the gradient (`scattered`).

The relation network has A^2 inputs: for A = 196 and 144 anchors their number is divisible by 8 and
more; the 2401 x 343 kernel of 49 anchors (7^4 x 7^3) only by powers of 7, so its 0.8 M values are
replicated.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")

MIN_SIZE = 2**14
"""Number of elements below which splitting an array costs more communication than it saves
memory."""


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices, `data` by `fsdp`.

    Args:
      data: number of data-parallel groups; -1: the number of devices divided by `fsdp`.
      fsdp: number of devices over which each large parameter is split.
      devices: the devices to use; by default all devices of all processes.

    Raises:
      ValueError: the product of the two is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    if fsdp not in divisors:
        raise ValueError(
            f"config.mesh.fsdp={fsdp} does not divide the {_devices(devices)} here: "
            f"choose one of {divisors}."
        )
    if data == -1:
        data = count // fsdp
    if data * fsdp != count:
        raise ValueError(
            f"config.mesh needs data={data} x fsdp={fsdp} = {data * fsdp} devices, but there are "
            f"{_devices(devices)}: with fsdp={fsdp}, data must be {count // fsdp} (or -1)."
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def _devices(devices: Iterable[jax.Device]) -> str:
    devices = list(devices)
    kind = devices[0].platform.upper()
    return f"1 {kind} device" if len(devices) == 1 else f"{len(devices)} {kind} devices"


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis (samples or images) over all devices."""
    return NamedSharding(mesh, P(AXES))


def parameter_spec(shape: Sequence[int], fsdp: int) -> P:
    """The shape rule: how an array of `shape` is split over `fsdp` devices.

    The largest dimension divisible by `fsdp` is split (the last one of equal size). Arrays without
    such a dimension, or with fewer than `MIN_SIZE` elements, are replicated.
    """
    if fsdp == 1 or math.prod(shape) < MIN_SIZE:
        return P()
    by_size = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis), reverse=True)
    axis = next((axis for axis in by_size if shape[axis] % fsdp == 0), None)
    return P() if axis is None else P(*[None] * axis, "fsdp")


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of every leaf (anything with a shape) of a train state, by `parameter_spec`."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, fsdp)), state)


def gathered(mesh: Mesh, state: Any) -> Any:
    """The same values, in a compiled function, with every array whole on every device.

    A loss of whole parameters is computed sample by sample on the device that has the sample.
    Without this, the compiler also splits activations over "fsdp", like the parameters that they
    are multiplied with, and then gathers or exchanges them where the two divisions meet.
    """
    return jax.lax.with_sharding_constraint(state, replicated(mesh))


def scattered(mesh: Mesh, state: Any) -> Any:
    """The same values, in a compiled function, with every array split by `parameter_spec`.

    Of gradients: their sum over the devices is computed in parts (a reduce-scatter).
    """
    return jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))


def check_fsdp(mesh: Mesh, state: Any) -> None:
    """Raises ValueError if `fsdp` splits less than half of the large arrays, so saves no memory.

    Args:
      mesh: with the axis "fsdp".
      state: a train state, or its shapes. Arrays below `MIN_SIZE` are ignored.
    """

    def divided(fsdp: int) -> float:
        large = [leaf.shape for leaf in jax.tree.leaves(state) if math.prod(leaf.shape) >= MIN_SIZE]
        split = sum(math.prod(shape) for shape in large if parameter_spec(shape, fsdp) != P())
        return split / sum(map(math.prod, large)) if large else 1.0

    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or (share := divided(fsdp)) >= 0.5:
        return
    divisors = (n for n in range(1, mesh.size + 1) if mesh.size % n == 0)
    fitting = [n for n in divisors if n == 1 or divided(n) >= 0.5]
    raise ValueError(
        f"config.mesh.fsdp={fsdp} divides a dimension of only {share:.0%} of the train state (the "
        f"rest would be replicated): choose one of {fitting} on {_devices(mesh.devices.flat)}, or "
        f"sizes in config.model that are divisible by {fsdp}."
    )


def check_batch_size(mesh: Mesh, batch_size: int, key: str, accumulate: int = 1) -> None:
    """Raises ValueError, naming the config `key`, unless a batch divides evenly.

    It is divided over the devices of the mesh and into `accumulate` micro-batches.
    """
    if accumulate < 1:
        raise ValueError(
            f"config.train.accumulate={accumulate} must be at least 1: it is the number of "
            "micro-batches per batch."
        )
    count = mesh.size * accumulate
    if batch_size < 1 or batch_size % count:
        near = sorted({max(1, batch_size // count) * count, -(-batch_size // count) * count} - {0})
        cut = f" in config.train.accumulate={accumulate} micro-batches" if accumulate > 1 else ""
        raise ValueError(
            f"{key}={batch_size} does not divide evenly over {describe(mesh)}{cut}: choose "
            f"{' or '.join(map(str, near))}."
        )


def describe(mesh: Mesh) -> str:
    """A description for the user: "8 CPU devices (data=2 x fsdp=4)"."""
    devices = _devices(mesh.devices.flat)
    return (
        devices
        if mesh.size == 1
        else f"{devices} ({' x '.join(f'{a}={n}' for a, n in mesh.shape.items())})"
    )


def bytes_per_device(tree: Any) -> int:
    """Memory of the arrays of `tree` on one device, in bytes."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "sharding")
    )
