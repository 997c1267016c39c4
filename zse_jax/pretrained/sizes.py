"""The sizes of a publisher's network, read from the shapes of its arrays.

What shapes do not tell (how many heads share a projection) is as in the published networks of that
kind: 64 numbers a head, and what ZSE adds to a Vision Transformer scaled along with its width.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from zse_jax.pretrained import openai_clip

Arrays = Mapping[str, np.ndarray]

HEAD = 64
"""Width of an attention head in every published network known here."""

UNTOLD = {
    "zse_sbir": ("heads", "cross_heads", "anchor_map"),
    "google_vit": ("cross_heads", "anchor_map"),
    "openai_clip": ("heads", "text_heads"),
    "huggingface_clip": ("heads", "text_heads"),
    "torchvision_resnet": ("image_size",),
}
"""Settings that a publisher's arrays do not tell, and that decide what the network computes."""


def model_settings(publisher: str, arrays: Arrays) -> dict[str, Any]:
    """What `config.model` must say for a system that `publisher`'s arrays fit.

    Raises:
      ValueError: arrays by which a size is read are not there, or are of another number of axes.
    """
    try:
        return _READERS[publisher](arrays)
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"The weights of {publisher} lack what tells their size ({error}), or have it in "
            "another shape: is the file whole, and of this publisher?"
        ) from error


def _zse_sbir(arrays: Arrays) -> dict[str, Any]:
    width, _, patch, _ = arrays["sa.model.embedding.weight"].shape
    tokens = arrays["sa.model.pos_embedding"].shape[1] - 1
    merged = arrays.get("conv2d.weight")
    settings = _vision_transformer(width, patch, tokens) | {
        "scale_channels": arrays["sa.model.scale.seq.0.weight"].shape[0],
        "depth": _count(arrays, r"sa\.model\.transformer\.layers\.(\d+)\."),
        "mlp_width": arrays["sa.model.transformer.layers.0.0.mlp.net.0.weight"].shape[0],
        "cross_mlp_width": arrays["ca.encoder.layer1.0.feed_forward.w_1.weight"].shape[0],
        "anchors": math.isqrt(arrays["rn.rn.0.weight"].shape[1]),
    }
    if merged is not None:
        settings["anchor_width"] = merged.shape[0]
    return settings


def _google_vit(arrays: Arrays) -> dict[str, Any]:
    patch, _, _, width = arrays["embedding/kernel"].shape
    block = "Transformer/encoderblock_0"
    tokens = arrays["Transformer/posembed_input/pos_embedding"].shape[1] - 1
    return _vision_transformer(width, patch, tokens) | {
        "depth": _count(arrays, r"Transformer/encoderblock_(\d+)/"),
        "heads": arrays[f"{block}/MultiHeadDotProductAttention_1/query/kernel"].shape[1],
        "mlp_width": arrays[f"{block}/MlpBlock_3/Dense_0/kernel"].shape[1],
    }


def _clip(arrays: Arrays) -> dict[str, Any]:
    if "vision_model.pre_layrnorm.weight" in arrays:
        arrays = openai_clip.from_hugging_face(arrays)
    settings: dict[str, Any] = {**openai_clip.size_of(arrays)}
    return settings | {
        "heads": max(1, settings["width"] // HEAD),
        "text_heads": max(1, settings["text_width"] // HEAD),
        # CLIP as it is: it has no prompts, is normalised its own way, and knows words.
        "prompt_length": 0,
        "pixels": "clip",
        "text_tower": True,
    }


def _torchvision_resnet(arrays: Arrays) -> dict[str, Any]:
    stages = _count(arrays, r"layer(\d+)\.")
    return {
        "depths": tuple(_count(arrays, rf"layer{i + 1}\.(\d+)\.") for i in range(stages)),
        "width": arrays["conv1.weight"].shape[0],
        "imagenet_classes": arrays["fc.weight"].shape[0],
        # What a teacher knows is for training, which prepares it.
        "knowledge_weight": 0.0,
    }


_READERS: Mapping[str, Callable[[Arrays], dict[str, Any]]] = {
    "zse_sbir": _zse_sbir,
    "google_vit": _google_vit,
    "openai_clip": _clip,
    "huggingface_clip": _clip,
    "torchvision_resnet": _torchvision_resnet,
}


def _vision_transformer(width: int, patch: int, tokens: int) -> dict[str, Any]:
    """Of ZSE around a Vision Transformer; B/16, S/16 and Ti/16 of the configs follow this rule."""
    return {
        "image_size": math.isqrt(tokens) * patch,
        "patch_size": patch,
        "width": width,
        "heads": max(1, width // HEAD),
        "cross_heads": max(1, width // 96),
        "scale_channels": 64,
        "cross_mlp_width": width * 4 // 3,
        "anchor_width": width * 2 // 3,
        "anchors": tokens // 4 if math.isqrt(tokens) % 2 == 0 else tokens,
    }


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the names have where the pattern says."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
