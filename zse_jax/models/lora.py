"""Low-rank adapters beside the linear layers of a network.

A layer with the kernel W [inputs, outputs] gets a pair A [inputs, rank] and B [rank, outputs], and
computes x W + x A B + bias, without scaling (LoRA: Hu et al., ICLR 2022, arXiv 2106.09685; CMCA,
IJCNN 2025). B is zero at first, so that adapters change nothing until they are trained. A layer can
have one pair for all images, or one for each modality.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zse_jax.models.layers import Linear, torch_uniform

LAYERS = ("query", "key", "value", "qkv", "out", "mlp_in", "mlp_out")
"""The linear layers of the blocks of every Vision Transformer in this package. A layer that
computes query, key and value together (`qkv`) gets one pair for all three."""

SHARED = "shared"
"""The name of a pair for all modalities."""

Network = TypeVar("Network", bound=nnx.Module)


class Pair(nnx.Module):
    """The matrices A and B of one adapter.

    Attributes:
      down: A, [inputs, rank], from U(-1/sqrt(inputs), 1/sqrt(inputs)), which is PyTorch's
        Kaiming-uniform initialisation with a = sqrt(5).
      up: B, [rank, outputs], zero.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, *, rngs: nnx.Rngs):
        """Float32 parameters; `rngs` has the stream `params`."""
        self.down = nnx.Param(torch_uniform(inputs)(rngs.params(), (inputs, rank)))
        self.up = nnx.Param(jnp.zeros((rank, outputs)))


class AdaptedLinear(Linear):
    """A linear layer with low-rank pairs; its kernel and bias keep their names.

    Attributes:
      adapters: pairs by modality, or one called `SHARED`.
      modality: the pair that is used if there is one for each; see `for_modality`.
    """

    modality: str | None = None

    def __init__(self, layer: Linear, rank: int, modalities: Sequence[str], *, rngs: nnx.Rngs):
        """Takes over kernel and bias of `layer`, which are shared, not copied."""
        super().__init__(*_sizes(layer), **_options(layer))
        self.kernel, self.bias = layer.kernel, layer.bias
        pairs = {name: Pair(*_sizes(layer), rank, rngs=rngs) for name in modalities}
        self.adapters = nnx.Dict(pairs)

    def set_view(self, modality: str | None = None) -> None:
        """Chooses the pair of a modality (`flax.nnx.view`); None: keeps the choice."""
        self.modality = modality or self.modality

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding=None) -> Float[Array, "*b o"]:
        """Applies layer and adapter to the last axis.

        Raises:
          ValueError: there is a pair for each modality, and none is chosen.
        """
        pair = self._pair(self.modality)
        rows = inputs.reshape(-1, inputs.shape[-1]).astype(self.dtype)
        change = rows @ pair.down[...].astype(self.dtype) @ pair.up[...].astype(self.dtype)
        output = super().__call__(inputs, out_sharding)
        return output + change.reshape(output.shape)

    def parts(self, inputs: Float[Array, "*b i"], count: int) -> list[Float[Array, "*b part"]]:
        """The output in `count` equal parts."""
        return jnp.split(self(inputs), count, axis=-1)

    def merged(self, modality: str) -> Linear:
        """A linear layer with the kernel W + A B; shares the bias."""
        pair = self._pair(modality)
        layer = Linear(*_sizes(self), **_options(self))
        change = jnp.matmul(pair.down[...], pair.up[...], precision="float32")
        layer.kernel, layer.bias = nnx.Param(self.kernel[...] + change), self.bias
        return layer

    def _pair(self, modality: str | None) -> Pair:
        names = [*self.adapters]
        name = SHARED if names == [SHARED] else modality
        if name not in names:
            raise ValueError(
                f"modality={modality!r}: this layer has adapters for {' and '.join(names)}. Choose "
                "one of them with zse_jax.models.lora.for_modality."
            )
        return self.adapters[name]


def adapt(
    module: nnx.Module,
    rank: int,
    *,
    modalities: Sequence[str] = (SHARED,),
    layers: Collection[str] = LAYERS,
    rngs: nnx.Rngs,
) -> None:
    """Puts adapters beside the linear layers of `module`, in place.

    Args:
      module: any network, or a part of one, such as a block.
      rank: of the products A B, at least 1.
      modalities: the names of the pairs of each layer; by default one pair for all images.
      layers: the attribute names of the layers.
      rngs: stream `params`.

    Raises:
      ValueError: the rank is below 1, or there is no such layer.
    """
    if rank < 1:
        raise ValueError(f"The rank of low-rank adapters must be at least 1, not {rank}.")
    found = [(parent, name) for parent, name, _ in _children(module, Linear) if name in layers]
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no linear layers called {', '.join(layers)} to adapt."
        )
    for parent, name in found:
        layer = getattr(parent, name)
        setattr(parent, name, AdaptedLinear(layer, rank, modalities, rngs=rngs))


def for_modality(module: Network, modality: str) -> Network:
    """The network with the adapters of a modality; shares the parameters."""
    return nnx.view(module, modality=modality, raise_if_not_found=False)


def merged(module: Network, modality: str) -> Network:
    """The network for a modality without adapters: the kernels contain them.

    The results are those of `for_modality` up to rounding. Merging costs `rank` multiplications for
    each weight, and the adapters twice as many for each pair of a token and a row or a column of
    the weights: for a batch of images, merging first is faster. Parameters that do not change are
    shared.
    """
    plain = nnx.view(module)  # other modules, the same parameters
    for parent, name, layer in _children(plain, AdaptedLinear):
        setattr(parent, name, layer.merged(modality))
    return plain


def is_adapter(path: Sequence[Any]) -> bool:
    """Whether the parameter at `path` belongs to an adapter."""
    return "adapters" in path


def _children(module: nnx.Module, kind: type) -> Iterator[tuple[nnx.Module, str, Any]]:
    """Every attribute of `kind` below `module`, with its parent and name."""
    for _, parent in [*nnx.iter_modules(module)]:
        for name, value in [*vars(parent).items()]:
            if isinstance(value, kind):
                yield parent, name, value


def _sizes(layer: nnx.Linear) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _options(layer: nnx.Linear) -> dict[str, Any]:
    """Arguments of a similar layer, whose values are then replaced."""
    zeros = nnx.initializers.zeros
    return {
        "use_bias": layer.use_bias, "dtype": layer.dtype, "kernel_init": zeros,
        "rngs": nnx.Rngs(0),
    }  # fmt: skip
