"""Networks of random weights without compilation, for tests in which the values do not matter."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zse_jax.training.step import Setup, State

Model = TypeVar("Model", bound=nnx.Module)


def drawn(make: Callable[[], Model], seed: int = 0) -> Model:
    """The network that `make` makes, with random values of usual sizes: none of them 0 or 1.

    Kernels are of standard deviation 1 / sqrt(fan in), scales and variances about 1.
    """
    definition, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(definition, filled(state, seed))


def drawn_state(setup: Setup, seed: int = 0) -> State:
    """A train state as `setup.init()`, with the values of `drawn` and an optimizer of zeros."""
    state = {part: filled(values, seed) for part, values in setup.abstract.items()}
    state["optimizer"] = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state["optimizer"])
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, setup.abstract)


def filled(state: nnx.State, seed: int) -> nnx.State:
    """Values in place of the shapes of a state."""
    generator = np.random.default_rng(seed)

    def value(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype))
        values = generator.standard_normal(leaf.shape, dtype=np.float32)
        if path[-1] in ("scale", "var"):
            values = np.exp(0.1 * values)
        elif len(leaf.shape) < 2:
            values = 0.1 * values
        else:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        return jax.device_put(values.astype(leaf.dtype))  # jnp.asarray compiles each shape

    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state(
        [(path, leaf.replace(value(path, leaf.get_value()))) for path, leaf in flat]
    )
