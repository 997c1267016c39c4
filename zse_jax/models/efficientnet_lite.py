"""EfficientNet-Lite0 to Lite4 (Google, 2020): EfficientNet for devices without special hardware.

Tan and Le, "EfficientNet: Rethinking model scaling for convolutional neural networks", ICML 2019,
with ReLU6 in place of swish, without squeeze-and-excitation, and with a stem and a head that do not
scale (github.com/tensorflow/tpu, efficientnet/lite). Convolutions are padded as TensorFlow's
"SAME", and inputs are (x - 127) / 128. Dropout and stochastic depth, with which the networks were
trained on ImageNet, are left out.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zse_jax.models.convolutions import convolution, depthwise
from zse_jax.models.layers import MapNorm, linear, normalise_map
from zse_jax.models.rematerialisation import rematerialisable
from zse_jax.models.resnet import BatchNorm


class Variant(NamedTuple):
    """The size of a network.

    Attributes:
      width: factor of the channels of all blocks; rounded to multiples of 8.
      depth: factor of the number of blocks in all stages but the first and the last; rounded up.
      image_size: pixels at which it was trained; other sizes work too.
    """

    width: float
    depth: float
    image_size: int


VARIANTS = {
    "lite0": Variant(1.0, 1.0, 224),
    "lite1": Variant(1.0, 1.1, 240),
    "lite2": Variant(1.1, 1.2, 260),
    "lite3": Variant(1.2, 1.4, 280),
    "lite4": Variant(1.4, 1.8, 300),
}
"""The published networks."""


class Stage(NamedTuple):
    """Blocks of one width, of which the first one has a stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM, HEAD = 32, 1280
"""Channels of the first and the last convolution, in all variants."""

STRIDES = 2, 4, 8, 16, 32
"""Pixels for each vector of the maps, along both axes."""

_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def stages(variant: str) -> tuple[Stage, ...]:
    """The stages of a variant.

    Raises:
      ValueError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"EfficientNet-Lite has no variant {variant!r}: choose one of {', '.join(VARIANTS)}."
        )
    width, depth, _ = VARIANTS[variant]
    ends = 0, len(_STAGES) - 1
    return tuple(
        stage._replace(
            blocks=stage.blocks if i in ends else math.ceil(stage.blocks * depth),
            channels=_scaled(stage.channels, width),
        )
        for i, stage in enumerate(_STAGES)
    )


def _scaled(channels: int, width: float) -> int:
    """The multiple of 8 nearest to `channels * width`, but not more than 10 % below."""
    wanted = channels * width
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * wanted else nearest


class Convolution(nnx.Module):
    """A convolution without bias, and its batch normalisation.

    Where the normalisation uses running averages, it is folded into kernel and bias of the
    convolution, which is exact up to rounding.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 1,
        stride: int = 1,
        *,
        per_channel: bool = False,
        frozen: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """A `size` x `size` convolution; `per_channel` is a depthwise one."""
        self.stride, self.per_channel, self.dtype = stride, per_channel, dtype
        shape = size, size, 1 if per_channel else inputs, outputs
        # The number of outputs of one input: all of them, or a depthwise convolution's one.
        init = nnx.initializers.variance_scaling(
            2.0, "fan_in" if per_channel else "fan_out", "normal"
        )
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.norm = BatchNorm(outputs, frozen=frozen, epsilon=1e-3, momentum=0.99, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        """The normalised maps."""
        if not (self.norm.frozen or self.norm.use_running_average):
            return self.norm(self._convolved(x, self.kernel[...]))
        factor, offset = self.norm.folded()
        return self._convolved(x, self.kernel[...] * factor) + offset.astype(self.dtype)

    def _convolved(
        self, x: Float[Array, "b h w c"], kernel: Float[Array, "k k i d"]
    ) -> Float[Array, "b u v d"]:
        kernel = kernel.astype(self.dtype)
        if self.per_channel:
            return depthwise(x, kernel, self.stride)
        if kernel.shape[0] == 1:  # a matrix product, which is faster on CPUs than a convolution
            rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
            return rows.reshape(*x.shape[:-1], -1)
        return convolution(x, kernel, self.stride)


class Block(nnx.Module):
    """Expansion, depthwise convolution and projection, plus a shortcut where shapes are equal."""

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        stride: int,
        *,
        frozen: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`inputs` channels to `stage.channels`; `stride` divides height and width."""
        inner = inputs * stage.expansion
        settings: dict[str, Any] = {"frozen": frozen, "dtype": dtype, "rngs": rngs}
        self.stride = stride
        self.expand = Convolution(inputs, inner, **settings) if stage.expansion > 1 else None
        self.depthwise = Convolution(
            inner, inner, stage.kernel, stride, per_channel=True, **settings
        )
        self.project = Convolution(inner, stage.channels, **settings)
        self.shortcut = stride == 1 and inputs == stage.channels

    @rematerialisable
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        """The block's output, without an activation."""
        y = x if self.expand is None else jax.nn.relu6(self.expand(x))
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class EfficientNetLite(nnx.Module):
    """EfficientNet-Lite with its ImageNet head, or its first blocks alone (`backbone.Backbone`).

    Attributes:
      variant: key of `VARIANTS`.
      features: number of local and pooled features.
      classes: outputs of the head, 1000 for ImageNet; 0 without a head.
    """

    image_size: int | None = None
    # Added later: these values leave the fingerprint of older models.
    fine: int | None = None
    map_norm: MapNorm = "place"
    mean: Sequence[float] = (127 / 255,) * 3
    std: Sequence[float] = (128 / 255,) * 3
    publishers: Sequence[str] = ("efficientnet_lite",)

    def __init__(
        self,
        variant: str = "lite0",
        *,
        classes: int = 1000,
        stride: int | None = None,
        pyramid: bool = False,
        map_norm: MapNorm = "place",
        frozen_statistics: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          variant: key of `VARIANTS`.
          classes: outputs of the head.
          stride: 2, 4, 8, 16 or 32: only the blocks up to the last map with one vector for each
            `stride` x `stride` pixels, without the last convolution and the head; None: all.
          pyramid: the local features are this map, beside the enlarged map of the whole network: a
            place has the detail of the one and the meaning of the other (after Lin et al., "Feature
            pyramid networks for object detection", CVPR 2017).
          map_norm: how both maps of a pyramid are normalised; see `layers.normalise_map`.
          frozen_statistics: use the running averages in training too, and never update them.
          dtype: of activations; parameters, statistics and outputs are float32.
          rngs: stream `params`.

        Raises:
          ValueError: an unknown variant or stride, a pyramid without a stride, or no classes.
        """
        if classes < 1:
            raise ValueError(f"classes={classes} must be at least 1.")
        if stride not in (None, *STRIDES):
            raise ValueError(
                f"EfficientNet-Lite has no map of stride {stride}: choose one of "
                f"{', '.join(map(str, STRIDES))}."
            )
        if pyramid and stride is None:
            raise ValueError("A pyramid needs the stride of its map.")
        settings: dict[str, Any] = {"frozen": frozen_statistics, "dtype": dtype, "rngs": rngs}
        self.variant, self.dtype, self.map_norm = variant, dtype, map_norm
        blocks, channels, reached = [], STEM, STRIDES[0]
        fine, detail = 0, STEM  # blocks up to the map of this stride, and its channels
        for stage in stages(variant):
            reached *= stage.stride
            if stride is not None and reached > stride and not pyramid:
                break
            for i in range(stage.blocks):
                blocks.append(Block(channels, stage, 1 if i else stage.stride, **settings))
                channels = stage.channels
            if stride is not None and reached <= stride:
                fine, detail = len(blocks), channels
        self.stem = Convolution(3, STEM, 3, 2, **settings)
        self.blocks = nnx.List(blocks)
        self.fine = fine if pyramid else None
        whole = stride is None
        self.classes = classes if whole else 0
        self.last = Convolution(channels, HEAD, **settings) if whole or pyramid else None
        self.features = (HEAD if self.last else channels) + (detail if pyramid else 0)
        float32 = jnp.dtype("float32")
        self.head = linear(HEAD, classes, dtype=float32, rngs=rngs) if whole else None

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b features"], Float[Array, "b classes"] | None]:
        """Pooled features and logits, float32, of images that are already normalised."""
        return self._pooled(self.local_features(images))

    def _pooled(
        self, local: Float[Array, "b u v features"]
    ) -> tuple[Float[Array, "b features"], Float[Array, "b classes"] | None]:
        features = local.mean(axis=(1, 2))
        return features, None if self.head is None else self.head(features)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def lower(self, images: Float[Array, "b h w 3"], blocks: int) -> Float[Array, "b u v _"]:
        """The output of the stem and the first `blocks` blocks."""
        x = jax.nn.relu6(self.stem(images.astype(self.dtype)))
        for i in range(blocks):
            x = self.blocks[i](x)
        return x

    def upper(
        self, maps: Float[Array, "b u v _"], blocks: int
    ) -> tuple[Float[Array, "b features"], Float[Array, "b classes"] | None]:
        """Pooled features and logits from the output of `lower`."""
        return self._pooled(self.upper_local(maps, blocks))

    def upper_local(
        self, maps: Float[Array, "b u v _"], blocks: int
    ) -> Float[Array, "b s t features"]:
        """The features before pooling, float32, from the output of `lower`.

        Raises:
          ValueError: more blocks than those of a pyramid's map.
        """
        if self.fine is not None and blocks > self.fine:
            raise ValueError(
                f"The map of a pyramid is the output of {self.fine} blocks, of which {blocks} "
                f"cannot be frozen: set config.model.frozen_blocks to at most {self.fine}."
            )
        x = detail = maps.astype(self.dtype)
        for i in range(blocks, self.depth):
            x = self.blocks[i](x)
            detail = x if i + 1 == self.fine else detail
        x = (x if self.last is None else jax.nn.relu6(self.last(x))).astype(jnp.float32)
        return x if self.fine is None else _joined(detail.astype(jnp.float32), x, self.map_norm)

    def block_of(self, path: Sequence[Any]) -> int:
        """The block of the parameter at `path`, from 1; 0: the stem; above `depth`: behind them."""
        if path[0] == "blocks":
            return int(path[1]) + 1
        return 0 if path[0] == "stem" else self.depth + 1

    def local_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b u v features"]:
        """The features before pooling, float32: one vector for each 32 x 32 pixels, or `stride`.

        With `stride`, they are outputs of a block, without an activation; with `pyramid`, each part
        is normalised by `map_norm`.
        """
        return self.upper_local(self.lower(images, 0), 0)

    def feature_maps(self, images: Float[Array, "b h w 3"]) -> dict[int, Float[Array, "b u v _"]]:
        """The last map of each resolution, float32, by its stride in pixels: 2, 4, 8, 16 and 32.

        They are outputs of blocks, without an activation.
        """
        x, stride = self.lower(images, 0), STRIDES[0]
        maps = {stride: x}
        for block in self.blocks:
            x, stride = block(x), stride * block.stride
            maps[stride] = x
        return {stride: x.astype(jnp.float32) for stride, x in maps.items()}


def _joined(
    detail: Float[Array, "b u v c"], meaning: Float[Array, "b s t d"], norm: MapNorm
) -> Float[Array, "b u v _"]:
    """Both maps, normalised, side by side; each vector of the smaller one is repeated."""
    u, v = detail.shape[1:3]
    larger = meaning
    for axis, size in ((1, u), (2, v)):
        larger = jnp.repeat(larger, -(-size // meaning.shape[axis]), axis=axis)
    parts = (normalise_map(part, norm) for part in (detail, larger[:, :u, :v]))
    return jnp.concatenate([*parts], axis=-1)
