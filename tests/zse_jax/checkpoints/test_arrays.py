"""Checksums change with any single value and do not depend on the sharding."""

import random

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.zse_jax import tiny
from zse_jax.checkpoints import reading, writing
from zse_jax.checkpoints.arrays import _checksum, checksums
from zse_jax.runtime import sharding
from zse_jax.training.step import set_up

NUMBERS = arrays.arrays(np.uint32, (3, 4))


@given(NUMBERS, st.integers(0, 11), st.integers(0, 31))
def test_a_flipped_bit_changes_it(array, place, bit):
    changed = array.copy()
    changed.flat[place] ^= np.uint32(1 << bit)
    assert checksums({"x": jnp.array(changed)}) != checksums({"x": jnp.array(array)})


@given(NUMBERS)
def test_it_is_the_sum_of_the_docstring(array):
    bits = [int(value) for value in array.ravel()]
    expected = sum(value * (2 * i + 1) for i, value in enumerate(bits)) % 2**32
    assert checksums({"x": jnp.array(array)}) == {"x": expected}


def test_swapped_values_change_it():
    array = jnp.arange(24.0).reshape(4, 6)
    assert checksums({"x": array}) != checksums({"x": array[:, ::-1]})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_it_does_not_depend_on_the_mesh(dtype):
    array = jax.random.normal(jax.random.key(0), (16, 8)).astype(dtype)
    for spec in (P(), P("fsdp"), P(None, "fsdp"), P("data", "fsdp")):
        spread = jax.device_put(array, NamedSharding(sharding.make_mesh(2, 4), spec))
        assert checksums({"x": spread}) == checksums({"x": array})
        assert int(_checksum(spread)) == checksums({"x": array})["x"]  # as on accelerators


def test_random_keys_have_one():
    assert checksums({"key": jax.random.key(1)}) != checksums({"key": jax.random.key(2)})


@pytest.mark.slow
def test_with_a_flipped_bit_a_checkpoint_reads_as_saved_or_not_at_all(tmp_path, monkeypatch):
    tiny.install(monkeypatch.setattr)
    setup = set_up(tiny.config(**{"model.width": 64}), sharding.make_mesh())
    select, position = "relation/exact/mAP@all", type("P", (), {"get_state": lambda self: {}})()

    def restored():
        with writing.Checkpoints(tmp_path, select=select) as checkpoints:
            return checkpoints.restore(1, setup.abstract)

    with writing.Checkpoints(tmp_path, select=select) as checkpoints:
        checkpoints.save(1, setup.init(), position, tiny.config(), None)
        checkpoints.wait()
    whole = restored()
    large = max((tmp_path / "checkpoints/1/model").rglob("d/*"), key=lambda f: f.stat().st_size)
    contents, generator = large.read_bytes(), random.Random(0)
    noticed = 0
    for _ in range(6):
        place = generator.randrange(len(contents))
        large.write_bytes(contents[:place] + bytes([contents[place] ^ 1]) + contents[place + 1 :])
        try:
            found = restored()
        except reading.DamagedError as error:
            assert "checkpoints/1 cannot be read" in str(error)
            noticed += 1
        else:  # a byte that is not needed: about 1 in 100, of the file's own bookkeeping
            jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (found, whole)))
    assert noticed >= 4
    large.write_bytes(contents)
    restored()
