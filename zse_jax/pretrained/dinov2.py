"""Weights of DINOv2, by Facebook's names (`dinov2_vits14_pretrain.pth`) or Hugging Face's.

Neither the mask token, with which the networks were trained, nor a classifier is loaded; the mask
token is ignored.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zse_jax.models.dinov2 import VARIANTS, DINOv2
from zse_jax.models.lora import is_adapter
from zse_jax.pretrained.mapping import Path, Source, count, fill, linear, norm, patch_matrix

_IGNORED = ("mask_token", "embeddings.mask_token")


def load(model: DINOv2, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills parameters of `model` in place, e.g. from `blocks.0.ls1.gamma`; adapters stay.

    Raises:
      ValueError: unused names, or parameters without a source or of another shape, listed.
    """
    names = hugging_face if _from_hugging_face(arrays) else facebook
    fill(model, arrays, names(model), ignored=is_ignored, kept=is_adapter)


def is_ignored(name: str) -> bool:
    """Whether the publisher's file contains `name`, but the networks here do not use it."""
    return name in _IGNORED


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine.

    Raises:
      ValueError: the shapes are of no variant.
    """
    if _from_hugging_face(arrays):
        width = arrays["embeddings.cls_token"].shape[-1]
        depth = count(arrays, r"encoder\.layer\.(\d+)\.")
        registers = arrays.get("embeddings.register_tokens")
    else:
        width = arrays["cls_token"].shape[-1]
        depth = count(arrays, r"blocks\.(\d+)\.")
        registers = arrays.get("register_tokens")
    number = 0 if registers is None else registers.shape[1]
    for name, variant in VARIANTS.items():
        if (variant.width, variant.depth, variant.registers) == (width, depth, number):
            return {"backbone": f"dinov2_{name}"}
    raise ValueError(
        f"A DINOv2 of width {width} with {depth} blocks and {number} registers is not supported: "
        f"known are {', '.join(VARIANTS)}."
    )


def facebook(model: DINOv2) -> dict[Path, Source]:
    """Path of each parameter -> Facebook's name and the change of layout."""
    entries: dict[Path, Source] = {
        ("class_token",): Source("cls_token"),
        ("positions",): Source("pos_embed"),
        **linear(("patch_embedding",), "patch_embed.proj", patch_matrix),
        **norm(("norm",), "norm"),
    }
    if model.registers is not None:
        entries[("registers",)] = Source("register_tokens")
    for i in range(len(model.blocks)):
        here, there = ("blocks", i), f"blocks.{i}"
        entries |= {
            **norm((*here, "norm_attention"), f"{there}.norm1"),
            **linear((*here, "out"), f"{there}.attn.proj"),
            (*here, "scale_attention"): Source(f"{there}.ls1.gamma"),
            **norm((*here, "norm_mlp"), f"{there}.norm2"),
            **linear((*here, "mlp_in"), f"{there}.mlp.fc1"),
            **linear((*here, "mlp_out"), f"{there}.mlp.fc2"),
            (*here, "scale_mlp"): Source(f"{there}.ls2.gamma"),
        }
        for k, part in enumerate(("query", "key", "value")):
            for leaf, name in (("kernel", "weight"), ("bias", "bias")):
                third = _third(k)
                entries[(*here, part, leaf)] = Source(f"{there}.attn.qkv.{name}", third)
    return entries


def hugging_face(model: DINOv2) -> dict[Path, Source]:
    """Path of each parameter -> Hugging Face's name and the change of layout."""
    entries: dict[Path, Source] = {
        ("class_token",): Source("embeddings.cls_token"),
        ("positions",): Source("embeddings.position_embeddings"),
        **linear(("patch_embedding",), "embeddings.patch_embeddings.projection", patch_matrix),
        **norm(("norm",), "layernorm"),
    }
    if model.registers is not None:
        entries[("registers",)] = Source("embeddings.register_tokens")
    for i in range(len(model.blocks)):
        here, there = ("blocks", i), f"encoder.layer.{i}"
        attention = f"{there}.attention.attention"
        entries |= {
            **norm((*here, "norm_attention"), f"{there}.norm1"),
            **linear((*here, "query"), f"{attention}.query"),
            **linear((*here, "key"), f"{attention}.key"),
            **linear((*here, "value"), f"{attention}.value"),
            **linear((*here, "out"), f"{there}.attention.output.dense"),
            (*here, "scale_attention"): Source(f"{there}.layer_scale1.lambda1"),
            **norm((*here, "norm_mlp"), f"{there}.norm2"),
            **linear((*here, "mlp_in"), f"{there}.mlp.fc1"),
            **linear((*here, "mlp_out"), f"{there}.mlp.fc2"),
            (*here, "scale_mlp"): Source(f"{there}.layer_scale2.lambda1"),
        }
    return entries


def _from_hugging_face(arrays: Mapping[str, np.ndarray]) -> bool:
    return any(name.startswith("embeddings.") for name in arrays)


def _third(part: int) -> Any:
    """Layout of a part of the joined query, key and value: weight [3 d, d] or bias [3 d]."""

    def layout(array: np.ndarray) -> np.ndarray:
        return np.split(array, 3)[part].T

    return layout
