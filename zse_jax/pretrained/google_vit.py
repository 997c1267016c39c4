"""Google's Vision Transformers, by the names of their `.npz` files (github.com/google-research).

ZSE starts from `sam/ViT-B_16.npz`, a ViT-B/16 trained on ImageNet-1k with sharpness-aware
minimisation. It has no scale embedding, cross-attention or relation network: those keep their
values. Positions for another number of patches are interpolated as in Google's own code.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from zse_jax.models.relation_network import default_anchors
from zse_jax.pretrained.mapping import Path, Source, count, fill
from zse_jax.retrievers.zse import ZSE

# The classifier of the published network, and the layer before it in some of the files.
_IGNORED = ("head/", "pre_logits/")


def load(model: ZSE, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills tokenizer and encoder of `model` in place, e.g. from `Transformer/encoder_norm/scale`.

    The class token becomes the retrieval token.

    Raises:
      ValueError: unused names, or parameters without a source or of another shape, listed.
    """
    fill(
        model,
        _joined(arrays),
        table(model),
        ignored=lambda name: name.startswith(_IGNORED),
        kept=kept,
    )


def kept(path: Path) -> bool:
    """Whether a parameter belongs to a part of ZSE that a Vision Transformer does not have."""
    others = ("cross_attention", "anchors", "relation_network")
    return path[0] in others or path[:2] == ("tokenizer", "scale_embedding")


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine."""
    patch, _, _, width = arrays["embedding/kernel"].shape
    block = "Transformer/encoderblock_0"
    tokens = arrays["Transformer/posembed_input/pos_embedding"].shape[1] - 1
    return scaled_settings(width, patch, tokens) | {
        "depth": count(arrays, r"Transformer/encoderblock_(\d+)/"),
        "heads": arrays[f"{block}/MultiHeadDotProductAttention_1/query/kernel"].shape[1],
        "mlp_width": arrays[f"{block}/MlpBlock_3/Dense_0/kernel"].shape[1],
    }


def scaled_settings(width: int, patch: int, tokens: int) -> dict[str, Any]:
    """ZSE around a Vision Transformer of this size, scaled as the configs' B/16, S/16 and Ti/16.

    An attention head is 64 wide in all published networks.
    """
    return {
        "image_size": math.isqrt(tokens) * patch,
        "patch_size": patch,
        "width": width,
        "heads": max(1, width // 64),
        "cross_heads": max(1, width // 96),
        "scale_channels": 64,
        "cross_mlp_width": width * 4 // 3,
        "anchor_width": width * 2 // 3,
        "anchors": default_anchors(tokens),
    }


def table(model: ZSE) -> dict[Path, Source]:
    """Parameter path -> Google's name (query, key and value joined) and the change of layout."""
    grid = model.tokenizer.grid

    def positions(array: np.ndarray) -> np.ndarray:
        return interpolated(array, grid)

    entries: dict[Path, Source] = {
        ("tokenizer", "retrieval_token"): Source("cls"),
        ("tokenizer", "positions"): Source("Transformer/posembed_input/pos_embedding", positions),
        ("tokenizer", "patch_embedding", "kernel"): Source("embedding/kernel", _flat_inputs),
        ("tokenizer", "patch_embedding", "bias"): Source("embedding/bias"),
        **_leaves(("encoder", "norm"), "Transformer/encoder_norm", "scale", "bias"),
    }
    for i in range(len(model.encoder.blocks)):
        here, there = ("encoder", "blocks", i), f"Transformer/encoderblock_{i}"
        attention = f"{there}/MultiHeadDotProductAttention_1"
        entries |= _leaves((*here, "norm_attention"), f"{there}/LayerNorm_0", "scale", "bias")
        entries |= _leaves((*here, "norm_mlp"), f"{there}/LayerNorm_2", "scale", "bias")
        entries |= _leaves((*here, "attention", "qkv"), f"{attention}/qkv", "kernel", "bias")
        entries[(*here, "attention", "out", "kernel")] = Source(
            f"{attention}/out/kernel", _flat_inputs
        )
        entries[(*here, "attention", "out", "bias")] = Source(f"{attention}/out/bias")
        entries |= _leaves((*here, "mlp_in"), f"{there}/MlpBlock_3/Dense_0", "kernel", "bias")
        entries |= _leaves((*here, "mlp_out"), f"{there}/MlpBlock_3/Dense_1", "kernel", "bias")
    return entries


def interpolated(positions: np.ndarray, grid: int) -> np.ndarray:
    """Positions [1, 1 + n², d] of n x n patches, interpolated linearly to `grid` x `grid` patches.

    The first position, of the class token, stays.

    Raises:
      ValueError: they are not of a token and a square grid of patches.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if positions.ndim != 3 or len(positions) != 1 or side**2 + 1 != positions.shape[1]:
        raise ValueError(f"Positions of shape {positions.shape} are not [1, 1 + n * n, d].")
    if side == grid:
        return positions
    field = positions[0, 1:].reshape(side, side, -1).astype(np.float32)
    from scipy import ndimage  # slow to import

    local = ndimage.zoom(field, (grid / side, grid / side, 1), order=1).reshape(grid**2, -1)
    return np.concatenate([positions[:, :1], local[None]], axis=1)


def _joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins query, key and value of each block, [d, heads, c], into one array [d, 3 heads c]."""
    found = dict(arrays)
    for name in arrays:
        if not name.endswith("/query/kernel"):
            continue
        layer = name.removesuffix("/query/kernel")
        names = [f"{layer}/{part}" for part in ("query", "key", "value")]
        for leaf, kept in (("kernel", 1), ("bias", 0)):
            parts = [f"{part}/{leaf}" for part in names]
            if all(part in arrays for part in parts):
                taken = [np.asarray(found.pop(part)) for part in parts]
                flat = [x.reshape(*x.shape[:kept], -1) for x in taken]
                found[f"{layer}/qkv/{leaf}"] = np.concatenate(flat, axis=-1)
    return found


def _flat_inputs(array: np.ndarray) -> np.ndarray:
    """[height, width, in, out] or [heads, c, out] -> [inputs, out]."""
    return array.reshape(-1, array.shape[-1])


def _leaves(here: Path, there: str, *leaves: str) -> dict[Path, Source]:
    return {(*here, leaf): Source(f"{there}/{leaf}") for leaf in leaves}
