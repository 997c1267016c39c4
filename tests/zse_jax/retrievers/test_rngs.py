"""Networks have the initial values that `nnx.Rngs` gives them."""

import jax
import numpy as np
import pytest
from flax import nnx

from zse_jax.retrievers.rngs import rngs


class Network(nnx.Module):
    """Uses keys in every way that modules of flax do."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(4, 5, rngs=rngs)
        self.keys = nnx.List([nnx.Param(jax.random.normal(key, 2)) for key in (rngs(), rngs.a())])
        self.kept = rngs["b"].split(2)
        self.noise = nnx.Param(jax.random.normal(rngs.b(), 3))


@pytest.mark.parametrize("seeds", [{"default": 3}, {"default": jax.random.key(4), "b": 5}])
def test_values_and_structure_are_those_of_flax(seeds):
    def created(make):
        return nnx.jit(lambda: Network(make(**seeds)))()

    (ours, values), (theirs, expected) = (nnx.split(created(make)) for make in (rngs, nnx.Rngs))
    assert ours == theirs
    assert jax.tree.structure(values) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        np.testing.assert_array_equal(got, want)
