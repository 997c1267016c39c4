"""Vision Transformers by timm's names (github.com/huggingface/pytorch-image-models).

`timm/vit_base_patch16_224.sam_in1k` on the Hugging Face Hub contains Google's `sam/ViT-B_16.npz`,
from which ZSE starts, and `timm/vit_*_patch16_224.augreg_in21k*` Google's other networks. Query,
key and value are fused, so that the number of heads cannot be inferred. Other networks with these
names, such as DeiT, are read as well.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zse_jax.pretrained import google_vit
from zse_jax.pretrained.mapping import Path, Source, count, fill, linear, norm, patch_matrix
from zse_jax.retrievers.zse import ZSE

_IGNORED = {f"{layer}.{leaf}" for layer in ("head", "pre_logits.fc") for leaf in ("weight", "bias")}
"""The classifier, and the layer before it in some of the files."""


def load(model: ZSE, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills tokenizer and encoder of `model` in place, e.g. from `blocks.0.attn.qkv.weight`.

    As `google_vit.load`: the other parts of ZSE keep their values, and positions for another number
    of patches are interpolated.

    Raises:
      ValueError: unused names, or parameters without a source or of another shape, listed.
    """
    fill(model, arrays, table(model), ignored=_IGNORED.__contains__, kept=google_vit.kept)


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine."""
    width, _, patch, _ = arrays["patch_embed.proj.weight"].shape
    return google_vit.scaled_settings(width, patch, arrays["pos_embed"].shape[1] - 1) | {
        "depth": count(arrays, r"blocks\.(\d+)\."),
        "mlp_width": arrays["blocks.0.mlp.fc1.weight"].shape[0],
    }


def table(model: ZSE) -> dict[Path, Source]:
    """Parameter path -> timm's name and the change of layout."""
    grid = model.tokenizer.grid
    entries: dict[Path, Source] = {
        ("tokenizer", "retrieval_token"): Source("cls_token"),
        ("tokenizer", "positions"): Source(
            "pos_embed", lambda array: google_vit.interpolated(array, grid)
        ),
        **linear(("tokenizer", "patch_embedding"), "patch_embed.proj", patch_matrix),
        **norm(("encoder", "norm"), "norm"),
    }
    for i in range(len(model.encoder.blocks)):
        here, there = ("encoder", "blocks", i), f"blocks.{i}"
        entries |= norm((*here, "norm_attention"), f"{there}.norm1")
        entries |= norm((*here, "norm_mlp"), f"{there}.norm2")
        entries |= linear((*here, "attention", "qkv"), f"{there}.attn.qkv")
        entries |= linear((*here, "attention", "out"), f"{there}.attn.proj")
        entries |= linear((*here, "mlp_in"), f"{there}.mlp.fc1")
        entries |= linear((*here, "mlp_out"), f"{there}.mlp.fc2")
    return entries
