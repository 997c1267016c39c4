"""Meshes for retrieval tests, and a fixture that disables the shape checks."""

import jax
import jaxtyping
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@pytest.fixture
def sharding():
    """Leading axis over eight devices, like batches."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@pytest.fixture
def unchecked(monkeypatch):
    """Disables the check of annotations, as in a user's program: the function must raise."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
