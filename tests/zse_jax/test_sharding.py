"""One mesh, one shape rule: which meshes exist, and where arrays lie on them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from zse_jax import sharding
from zse_jax.train_state import set_up

from . import tiny

# The published ViT-B/16's largest arrays, and some that are too small or do not divide.
GOLDEN = {
    (768, 2304): P(None, "fsdp"),
    (3072, 768): P("fsdp"),
    (768, 768): P(None, "fsdp"),
    (2401, 343): P(),
    (2, 2, 768, 512): P(None, None, "fsdp"),
    (1, 197, 768): P(None, None, "fsdp"),
    (768,): P(),
    (): P(),
}


@pytest.mark.parametrize(("shape", "spec"), GOLDEN.items())
def test_the_shape_rule_splits_the_largest_dimension_that_divides(shape, spec):
    assert sharding.parameter_spec(shape, fsdp=4) == spec


def test_one_fsdp_device_splits_nothing():
    assert all(sharding.parameter_spec(shape, fsdp=1) == P() for shape in GOLDEN)


@pytest.mark.parametrize(("data", "fsdp"), [(-1, 1), (2, 4), (-1, 8)])
def test_the_mesh_uses_all_devices_with_automatic_axes(data, fsdp):
    mesh = sharding.make_mesh(data, fsdp)
    assert mesh.devices.shape == (8 // fsdp, fsdp)
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(
        ValueError, match=r"fsdp=3 does not divide the 8 CPU devices.*\[1, 2, 4, 8\]"
    ):
        sharding.make_mesh(-1, 3)


def test_the_mesh_must_use_every_device():
    with pytest.raises(ValueError, match=r"data=3 x fsdp=2 = 6 devices.*data must be 4"):
        sharding.make_mesh(3, 2)


def test_a_batch_must_divide_over_the_mesh():
    mesh = sharding.make_mesh(2, 4)
    sharding.check_batch_size(mesh, 16, "config.train.batch_size")
    with pytest.raises(ValueError, match=r"config.train.batch_size=15 .*choose 8 or 16"):
        sharding.check_batch_size(mesh, 15, "config.train.batch_size")
    with pytest.raises(ValueError, match="choose 8"):
        sharding.check_batch_size(mesh, 0, "config.train.batch_size")


def test_a_batch_is_split_over_both_axes():
    batch = jax.device_put(jnp.zeros((16, 3)), sharding.batch_sharding(sharding.make_mesh(2, 4)))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}


def test_moments_lie_where_their_parameters_lie(monkeypatch):
    tiny.install(monkeypatch.setattr)
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    abstract = set_up(tiny.config(), sharding.make_mesh(2, 4)).abstract
    parameters = {leaf.shape: leaf.sharding.spec for leaf in jax.tree.leaves(abstract["model"])}
    moments = {leaf.shape: leaf.sharding.spec for leaf in jax.tree.leaves(abstract["optimizer"])}
    assert parameters[(192, 16)] == P("fsdp")
    assert parameters.items() <= moments.items()


@pytest.mark.slow
def test_memory_of_published_parameters_falls_with_fsdp(monkeypatch):
    def held(fsdp: int) -> int:
        config = tiny.config()
        config.unlock()
        config.model = {"system": "zse"}
        abstract = set_up(config, sharding.make_mesh(-1, fsdp)).abstract
        return sharding.bytes_per_device((abstract["model"], abstract["optimizer"]))

    assert held(8) < held(1) / 6
