"""Weights of torchvision's `resnet50`, by its parameter names, which are also timm's.

The state dict also contains counters of batches, `*.num_batches_tracked`, which are ignored.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zse_jax.models.resnet import ResNet50
from zse_jax.pretrained.mapping import Path, Source, batch_norm, convolution, count, fill, linear


def load(model: ResNet50, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills parameters and running averages of `model` in place, e.g. from `layer1.0.conv1.weight`.

    Raises:
      ValueError: unused names, or parameters without a source or of another shape, listed: the
        weights of another ResNet.
    """
    ignored = "num_batches_tracked"
    fill(model, arrays, table(model), ignored=lambda name: name.endswith(ignored))


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine."""
    stages = count(arrays, r"layer(\d+)\.")
    return {
        "depths": tuple(count(arrays, rf"layer{i + 1}\.(\d+)\.") for i in range(stages)),
        "width": arrays["conv1.weight"].shape[0],
        "imagenet_classes": arrays["fc.weight"].shape[0],
    }


def table(model: ResNet50) -> dict[Path, Source]:
    """Path of each parameter and running average -> torchvision's name and the change of layout."""
    entries: dict[Path, Source] = {
        ("stem", "kernel"): Source("conv1.weight", convolution),
        **batch_norm(("stem_norm",), "bn1"),
        **linear(("head",), "fc"),
    }
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage):
            here, there = ("stages", i, j), f"layer{i + 1}.{j}"
            for k in range(len(block.convolutions)):
                source = Source(f"{there}.conv{k + 1}.weight", convolution)
                entries[(*here, "convolutions", k, "kernel")] = source
                entries |= batch_norm((*here, "norms", k), f"{there}.bn{k + 1}")
            if block.shortcut is not None:
                source = Source(f"{there}.downsample.0.weight", convolution)
                entries[(*here, "shortcut", "kernel")] = source
                entries |= batch_norm((*here, "shortcut_norm"), f"{there}.downsample.1")
    return entries
