"""Keys for initial parameters: those of `nnx.Rngs`, but traced in less time."""

import jax
from flax import nnx
from jaxtyping import Array


def rngs(default: Array | int | None = None, **streams: Array | int) -> nnx.Rngs:
    """An `nnx.Rngs` for the constructor of a network, with the same keys.

    `nnx.RngStream` counts its keys in an array. While a network is traced, flax asks this array for
    its sharding at each key. That raises an error, which flax ignores, but whose text describes all
    operations so far: most of the time of tracing. These streams count with an integer.

    Args:
      default: key or seed of the default stream.
      **streams: key or seed of each other stream.
    """
    made = nnx.Rngs(default, **streams)
    for name, stream in made.items():
        setattr(made, name, _Stream(stream.key[...], tag=name))
    return made


class _Stream(nnx.RngStream):
    """A stream that is counted with an integer, and that no network keeps."""

    def __init__(self, key: Array, *, tag: str):
        super().__init__(key, tag=tag)
        self._given = 0

    def __call__(self) -> Array:
        key = jax.random.fold_in(self.key[...], self._given)
        self._given += 1
        return key

    def split(self, k: int | tuple[int, ...]) -> nnx.RngStream:
        return nnx.RngStream(jax.random.split(self(), k), tag=self.tag)

    def fork(self, *, split: int | tuple[int, ...] | None = None) -> nnx.RngStream:
        """A stream that a network can keep."""
        if split is not None:
            return self.split(split)
        return nnx.RngStream(self(), tag=self.tag)
