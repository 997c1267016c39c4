"""Networks of random weights without compilation, for tests in which the values do not matter."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)


def drawn(make: Callable[[], Model], seed: int = 0) -> Model:
    """The network that `make` makes, with random values of usual sizes: none of them 0 or 1.

    Kernels are of standard deviation 1 / sqrt(fan in), scales and variances about 1.
    """
    definition, state = nnx.split(nnx.eval_shape(make))
    generator = np.random.default_rng(seed)

    def value(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        values = generator.standard_normal(leaf.shape, dtype=np.float32)
        if path[-1] in ("scale", "var"):
            values = np.exp(0.1 * values)
        elif len(leaf.shape) < 2:
            values = 0.1 * values
        else:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(values, leaf.dtype)

    flat = nnx.to_flat_state(state)
    filled = [(path, leaf.replace(value(path, leaf.get_value()))) for path, leaf in flat]
    return nnx.merge(definition, nnx.from_flat_state(filled))
