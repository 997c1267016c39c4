"""ResNet-50 as in torchvision (He et al., CVPR 2016; "v1.5": the stride is in the 3x3).

Batch normalisation uses the statistics of the whole batch: under `jax.jit` the mean over a batch
that is split over a mesh is the mean over all devices, without a named axis. The running averages
are `nnx.BatchStat` variables. They are part of the train state, and are used where
`use_running_average` is set (`nnx.view`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zse_jax.models.layers import IMAGENET_MEAN, IMAGENET_STD, linear
from zse_jax.models.rematerialisation import rematerialisable

EXPANSION = 4
"""Ratio of a block's output channels to its inner channels."""


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation in float32, with PyTorch's constants; returns the dtype of its input.

    The running averages are updated with a weight of 1 - momentum for the batch's mean and (biased)
    variance. With `frozen` they are used in training too and never updated; scale and bias are
    still trained.
    """

    def __init__(
        self,
        channels: int,
        *,
        frozen: bool,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        rngs: nnx.Rngs,
    ):
        """Statistics are over all axes but the last."""
        super().__init__(
            channels, momentum=momentum, epsilon=epsilon, dtype=jnp.float32,
            use_fast_variance=False, rngs=rngs,
        )  # fmt: skip
        self.frozen = frozen

    def __call__(
        self, x: Float[Array, "b h w c"], use_running_average: bool | None = None, *, mask=None
    ) -> Float[Array, "b h w c"]:
        """The normalised maps."""
        if self.frozen:
            use_running_average = True
        return super().__call__(x, use_running_average, mask=mask).astype(x.dtype)

    def folded(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """The factor and the offset that normalisation by the running averages amounts to."""
        assert self.scale is not None and self.bias is not None  # both are always created
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return factor, self.bias[...] - self.mean[...] * factor


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution without bias, padded as in PyTorch (equally on both sides).

    The initial values are He-normal by the number of outputs (Kaiming "fan_out"), as in
    torchvision.
    """
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        rngs=rngs,
    )


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution plus a shortcut, which is projected where shapes differ."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        frozen: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`inputs` channels to `EXPANSION * width`; `stride` divides height and width."""
        outputs = EXPANSION * width
        self.convolutions = nnx.List(
            [
                convolution(inputs, width, 1, dtype=dtype, rngs=rngs),
                convolution(width, width, 3, stride, dtype=dtype, rngs=rngs),
                convolution(width, outputs, 1, dtype=dtype, rngs=rngs),
            ]
        )
        self.norms = nnx.List(
            [BatchNorm(channels, frozen=frozen, rngs=rngs) for channels in (width, width, outputs)]
        )
        projected = stride != 1 or inputs != outputs
        self.shortcut = (
            convolution(inputs, outputs, 1, stride, dtype=dtype, rngs=rngs) if projected else None
        )
        self.shortcut_norm = BatchNorm(outputs, frozen=frozen, rngs=rngs) if projected else None

    @rematerialisable
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        """The block's output, after the last ReLU."""
        y = x
        for i, (conv, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(conv(y))
            y = y if i == 2 else jax.nn.relu(y)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return jax.nn.relu(x + y)


class ResNet50(nnx.Module):
    """ResNet-50 with its ImageNet head (`backbone.Backbone`); `depths` and `width` change its size.

    Attributes:
      features: number of pooled features, 2048 at the published size.
      classes: outputs of the head, 1000 for ImageNet.
    """

    image_size: int | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    publishers: Sequence[str] = ("torchvision_resnet",)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        classes: int = 1000,
        frozen_statistics: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; the defaults are torchvision's `resnet50`.

        Args:
          depths: blocks in each stage; each stage but the first halves the resolution and doubles
            the width.
          width: channels after the stem.
          classes: outputs of the head.
          frozen_statistics: use the running averages in training too, and never update them.
          dtype: of activations; parameters, statistics and outputs are float32.

        Raises:
          ValueError: no stages, or a size below 1.
        """
        if not depths or min(depths) < 1 or width < 1 or classes < 1:
            raise ValueError(
                f"depths={tuple(depths)}, width={width} and classes={classes} must all be at "
                "least 1."
            )
        self.dtype = dtype
        self.stem = convolution(3, width, 7, 2, dtype=dtype, rngs=rngs)
        self.stem_norm = BatchNorm(width, frozen=frozen_statistics, rngs=rngs)
        stages, channels = [], width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                blocks.append(
                    Bottleneck(
                        channels, width << i, stride, frozen=frozen_statistics, dtype=dtype,
                        rngs=rngs,
                    )
                )  # fmt: skip
                channels = EXPANSION * (width << i)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.features, self.classes = channels, classes
        self.head = linear(channels, classes, dtype=jnp.dtype(jnp.float32), rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b features"], Float[Array, "b classes"]]:
        """Pooled features and logits, float32, of images that are already normalised.

        Raises:
          ValueError: images that are too small; see `local_features`.
        """
        features = self.local_features(images).mean(axis=(1, 2))
        return features, self.head(features)

    def local_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b u v features"]:
        """The features before pooling, float32: one vector for each cell of the last stage's grid.

        Raises:
          ValueError: images that are too small for the number of stages.
        """
        return self.feature_maps(images)[2 << len(self.stages)]

    def feature_maps(self, images: Float[Array, "b h w 3"]) -> dict[int, Float[Array, "b u v _"]]:
        """The last map of each stage, float32, by its stride in pixels: 4, 8, 16 and 32.

        Raises:
          ValueError: as for `local_features`.
        """
        least = 2 ** len(self.stages)
        if min(images.shape[1:3]) < least:
            raise ValueError(
                f"Images of {images.shape[1]}x{images.shape[2]} are too small for "
                f"{len(self.stages)} stages: they must be at least {least}x{least} pixels."
            )
        x = jax.nn.relu(self.stem_norm(self.stem(images.astype(self.dtype))))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        maps = {}
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = block(x)
            maps[4 << i] = x.astype(jnp.float32)
        return maps
