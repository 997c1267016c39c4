"""One mesh, one shape rule: valid meshes, and how arrays are sharded on them."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from configs import clip_default, cmca_default, default, efficient_default
from tests.zse_jax import tiny
from zse_jax.checkpoints import arrays
from zse_jax.models.relation_network import RelationNetwork
from zse_jax.runtime import sharding
from zse_jax.training.step import State, set_up

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "shardings.txt"

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


def test_moments_are_sharded_as_their_parameters(monkeypatch):
    tiny.install(monkeypatch.setattr)
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    abstract = set_up(tiny.config(), sharding.make_mesh(2, 4)).abstract
    parameters = {leaf.shape: leaf.sharding.spec for leaf in jax.tree.leaves(abstract["model"])}
    moments = {leaf.shape: leaf.sharding.spec for leaf in jax.tree.leaves(abstract["optimizer"])}
    assert parameters[(192, 16)] == P("fsdp")
    assert parameters.items() <= moments.items()


SYSTEMS = {
    "zse": default, "clip_prompt": clip_default, "efficient_cnn": efficient_default,
    "cmca": cmca_default,
}  # fmt: skip


@functools.cache
def published(system: str) -> State:
    """The train state of a system at its published size, over fsdp=8; shapes only."""
    config = SYSTEMS[system].get_config()
    return set_up(config, sharding.make_mesh(-1, 8)).abstract


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_published_parameter_is_sharded_as_in_the_golden_file(system):
    """One line per kind of block. `python -m tests.zse_jax.runtime.test_sharding` writes it."""
    wanted = [
        line for line in GOLDEN_FILE.read_text().splitlines() if line.startswith(system + " ")
    ]
    assert lines(system) == wanted


@pytest.mark.parametrize("system", SYSTEMS)
def test_memory_of_a_published_train_state_falls_with_fsdp(system):
    state = {name: published(system)[name] for name in ("model", "optimizer")}
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert sharding.bytes_per_device(state) <= whole / 6


@pytest.mark.parametrize("anchors", [144, 196])
def test_the_relation_layers_of_many_anchors_are_split(anchors):
    def create() -> RelationNetwork:
        rngs = nnx.Rngs(params=0, dropout=1)
        return RelationNetwork(anchors, dropout=0.1, dtype=jnp.dtype("float32"), rngs=rngs)

    shapes = [layer.kernel.shape for layer in nnx.eval_shape(create).layers[:2]]
    assert shapes[0][0] == anchors**2
    assert [sharding.parameter_spec(shape, 8) for shape in shapes] == [P("fsdp")] * 2


def test_fsdp_that_divides_hardly_any_parameter_is_an_error():
    mesh = sharding.make_mesh(1, 7, jax.devices()[:7])
    state = {"kernel": jax.ShapeDtypeStruct((768, 2304), jnp.float32)}
    with pytest.raises(ValueError, match=r"fsdp=7 divides a dimension of only 0%.*one of \[1\]"):
        sharding.check_fsdp(mesh, state)
    sharding.check_fsdp(mesh, {"kernel": jax.ShapeDtypeStruct((2401, 343), jnp.float32)})
    sharding.check_fsdp(mesh, {"bias": jax.ShapeDtypeStruct((768,), jnp.float32)})


def test_a_batch_must_divide_into_its_micro_batches():
    mesh = sharding.make_mesh(2, 4)
    sharding.check_batch_size(mesh, 48, "config.train.batch_size", 3)
    with pytest.raises(ValueError, match=r"=32 .*accumulate=3 micro-batches.*choose 24 or 48"):
        sharding.check_batch_size(mesh, 32, "config.train.batch_size", 3)
    with pytest.raises(ValueError, match="config.train.accumulate=0 must be at least 1"):
        sharding.check_batch_size(mesh, 32, "config.train.batch_size", 0)


def lines(system: str) -> list[str]:
    """`system path shape spec` of every parameter, once per kind of block."""
    found = {}
    for path, leaf in arrays.flat_arrays(published(system)["model"]).items():
        pattern = re.sub(r"/\d+(?=/)", "/*", path)
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        spec = ", ".join(str(axis or "-") for axis in leaf.sharding.spec) or "repeated"
        found[f"{system} {pattern} {shape}: {spec}"] = None
    return list(found)


if __name__ == "__main__":
    GOLDEN_FILE.write_text("".join(f"{line}\n" for system in SYSTEMS for line in lines(system)))
