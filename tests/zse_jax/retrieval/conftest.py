"""Meshes for retrieval tests, and a way past the shape checks that only tests have."""

import jax
import jaxtyping
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@pytest.fixture
def sharding():
    """Leading axis over eight devices, as batches are."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@pytest.fixture
def unchecked(monkeypatch):
    """As in a user's program, no annotation is checked: the function's own errors must do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
