"""Backbones: networks that turn images into a grid of local features and a pooled vector.

A new backbone is one file in this folder and one entry in `BACKBONES`. `config.model.backbone`
selects it.
"""

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from zse_jax.models import dinov2, efficientnet_lite
from zse_jax.models.layers import MapNorm, normalise
from zse_jax.models.resnet import ResNet50


@runtime_checkable
class Backbone(Protocol):
    """A network whose pooled vector is the mean over its grid of local features.

    Attributes:
      image_size: side of the square input images, in pixels; None if any size works.
      mean, std: statistics, by channel, of pixels in [0, 1] with which its inputs are normalised.
      publishers: the weights it can be filled with, as keys of `pretrained.publishers`.
      features: width of the local features and of the pooled vector.
      classes: outputs of its ImageNet classifier; 0 if it has none.
    """

    image_size: int | None
    mean: Sequence[float]
    std: Sequence[float]
    publishers: Sequence[str]
    features: int
    classes: int

    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b features"], Float[Array, "b classes"] | None]:
        """Pooled vectors of normalised images, and class logits (None without a classifier)."""
        ...

    def local_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b u v features"]:
        """The features before pooling: one vector for each cell of a grid over the image."""
        ...


@runtime_checkable
class Multiscale(Backbone, Protocol):
    """A backbone that also returns its maps of each resolution."""

    def feature_maps(
        self, images: Float[Array, "b h w 3"]
    ) -> Mapping[int, Float[Array, "b u v _"]]:
        """Maps by their stride in pixels: 16 and 32 of the CNNs, 14 of DINOv2, and others."""
        ...


@runtime_checkable
class Divisible(Backbone, Protocol):
    """A backbone whose first blocks can be computed apart from the others.

    Attributes:
      depth: number of blocks.
    """

    @property
    def depth(self) -> int:
        """The number of blocks."""
        ...

    def lower(self, images: Float[Array, "b h w 3"], blocks: int) -> Float[Array, "b u v _"]:
        """The output of the first `blocks` blocks, from normalised images."""
        ...

    def upper(
        self, maps: Float[Array, "b u v _"], blocks: int
    ) -> tuple[Float[Array, "b features"], Float[Array, "b classes"] | None]:
        """What the backbone returns for images with these outputs of `lower`."""
        ...

    def upper_local(
        self, maps: Float[Array, "b u v _"], blocks: int
    ) -> Float[Array, "b s t features"]:
        """What `local_features` returns for images with these outputs of `lower`."""
        ...

    def block_of(self, path: Sequence[Any]) -> int:
        """The block of the parameter at `path`, from 1; 0: before the first one."""
        ...


BACKBONES: dict[str, Any] = {"resnet50": ResNet50} | {
    f"{prefix}_{name}": functools.partial(cls, name)
    for prefix, cls, variants in (
        ("efficientnet", efficientnet_lite.EfficientNetLite, efficientnet_lite.VARIANTS),
        ("dinov2", dinov2.DINOv2, dinov2.VARIANTS),
    )
    for name in variants
}
"""Name in `config.model.backbone` -> what makes a `Backbone` of keyword arguments."""


def create_backbone(
    name: str,
    settings: Mapping[str, Any],
    *,
    stride: int | None = None,
    pyramid: bool = False,
    map_norm: MapNorm = "place",
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Backbone:
    """Creates a backbone with random parameters.

    Args:
      name: key of `BACKBONES`.
      settings: any keyword arguments of `ResNet50`. Those that differ from its defaults are passed
        to the backbone.
      stride: end with the last map of this stride in pixels, without the rest of the network; None:
        the whole network.
      pyramid: keep the rest, and add its map to that of this stride.
      map_norm: how both maps of a pyramid are normalised.
      dtype: of activations; parameters are float32.
      rngs: stream `params`.

    Raises:
      ValueError: an unknown name, or a setting or a stride that this backbone does not have.
    """
    if name not in BACKBONES:
        raise ValueError(
            f"config.model.backbone={name!r} is unknown: choose one of {', '.join(BACKBONES)}."
        )
    defaults = inspect.signature(ResNet50.__init__).parameters
    changed = {key: value for key, value in settings.items() if value != defaults[key].default}
    if unknown := changed.keys() - _settings(name):
        values = ", ".join(f"{key}={defaults[key].default}" for key in sorted(unknown))
        raise ValueError(
            f"The backbone {name!r} does not have the settings {', '.join(sorted(unknown))}. Set "
            f"them to their defaults in config.model: {values}."
        )
    if stride is not None:
        if "stride" not in _settings(name):
            usable = ", ".join(other for other in BACKBONES if "stride" in _settings(other))
            raise ValueError(
                f"config.model.backbone={name!r} cannot end with a map of a given stride, which "
                f"this system needs: choose one of {usable}."
            )
        changed["stride"] = stride
        if pyramid:
            changed |= {"pyramid": True, "map_norm": map_norm}
    return BACKBONES[name](**changed, dtype=dtype, rngs=rngs)


def _settings(name: str) -> Collection[str]:
    implementation = getattr(BACKBONES[name], "func", BACKBONES[name])
    return inspect.signature(implementation.__init__).parameters


def check_frozen(backbone: Backbone, name: str, blocks: int, frozen_statistics: bool) -> None:
    """Checks that the first `blocks` blocks of a backbone can stay as they are.

    Args:
      backbone: of `create_backbone`.
      name: the key of `BACKBONES`, for messages.
      blocks: number of blocks; 0: none.
      frozen_statistics: whether the batch statistics do not change.

    Raises:
      ValueError: the backbone cannot be divided, has fewer blocks, or its statistics change.
    """
    if not blocks:
        return
    if not isinstance(backbone, Divisible):
        raise ValueError(
            f"The backbone {name!r} cannot be frozen in part: set config.model.frozen_blocks to 0, "
            "or choose an EfficientNet-Lite."
        )
    if not 0 < blocks <= backbone.depth:
        raise ValueError(
            f"config.model.frozen_blocks={blocks}: the backbone {name!r} has {backbone.depth} "
            "blocks."
        )
    if not frozen_statistics:
        raise ValueError(
            f"config.model.frozen_blocks={blocks} needs config.model.frozen_statistics=true: "
            "otherwise the batch statistics of the frozen blocks would still change."
        )


def frozen_output(
    backbone: Backbone, images: Num[Array, "b h w c"], blocks: int
) -> Float[Array, "b u v d"]:
    """The output of the first `blocks` blocks and what is before them, without gradients.

    Args:
      backbone: a `Divisible` one.
      images: uint8 pixels, normalised floats, or such an output, which is returned.
      blocks: number of frozen blocks, at least 1.
    """
    assert isinstance(backbone, Divisible)  # see `check_frozen`
    if images.shape[-1] == 3:
        images = backbone.lower(normalise(images, backbone.mean, backbone.std), blocks)
    return jax.lax.stop_gradient(images)


def is_frozen(backbone: Backbone, path: Sequence[Any], blocks: int) -> bool:
    """Whether the parameter at `path` belongs to the first `blocks` blocks or is before them."""
    return blocks > 0 and isinstance(backbone, Divisible) and backbone.block_of(path) <= blocks


def statistics_move(backbone: Backbone) -> bool:
    """Whether training updates batch statistics, which relate all samples of a batch."""
    norms = (node for _, node in nnx.iter_graph(backbone) if isinstance(node, nnx.BatchNorm))
    return any(not getattr(norm, "frozen", False) for norm in norms)
