"""Weights of the published ZSE code (github.com/buptLinfy/ZSE-SBIR), by its parameter names.

The published state dict also contains an unused third copy of the cross-attention layer,
`ca.encoder.layers.*`, which is ignored.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from zse_jax.models.tokenizer import Tokenizer
from zse_jax.pretrained import google_vit
from zse_jax.pretrained.mapping import (
    Path,
    Source,
    convolution,
    count,
    fill,
    linear,
    norm,
    patch_matrix,
    transpose,
)
from zse_jax.retrievers.zse import ZSE


def load(model: ZSE, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills `model` in place from the published names, e.g. `sa.model.cls`.

    Raises:
      ValueError: unused names, or parameters without a source or of another shape, listed.
    """
    fill(model, arrays, table(model), ignored=lambda name: name.startswith("ca.encoder.layers."))


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine."""
    width, _, patch, _ = arrays["sa.model.embedding.weight"].shape
    tokens = arrays["sa.model.pos_embedding"].shape[1] - 1
    found = google_vit.scaled_settings(width, patch, tokens) | {
        "scale_channels": arrays["sa.model.scale.seq.0.weight"].shape[0],
        "depth": count(arrays, r"sa\.model\.transformer\.layers\.(\d+)\."),
        "mlp_width": arrays["sa.model.transformer.layers.0.0.mlp.net.0.weight"].shape[0],
        "cross_mlp_width": arrays["ca.encoder.layer1.0.feed_forward.w_1.weight"].shape[0],
        "anchors": math.isqrt(arrays["rn.rn.0.weight"].shape[1]),
    }
    if (merged := arrays.get("conv2d.weight")) is not None:
        found["anchor_width"] = merged.shape[0]
    return found


def export(model: ZSE) -> dict[str, np.ndarray]:
    """The parameters of `model` with the published names, float32: the inverse of `load`.

    `ca.encoder.layers.*`, which the published network does not use, is a copy of the sketch's
    layer, because the published code's `load_state_dict` is strict.
    """
    parameters = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    arrays = {}
    for path, source in table(model).items():
        array = np.asarray(parameters[path][...], np.float32)
        if source.layout is patch_matrix:
            channels = 3 if path[0] == "tokenizer" else model.tokenizer.positions.shape[-1]
            side = round((len(array) / channels) ** 0.5)
            array = array.reshape(side, side, channels, -1)
        if source.layout is transpose:
            array = array.T
        elif source.layout in (convolution, patch_matrix):
            array = array.transpose(3, 2, 0, 1)
        arrays[source.name] = np.asarray(array, order="C")
    used = "ca.encoder.layer1.0."
    unused = {
        "ca.encoder.layers.0." + name.removeprefix(used): array.copy()
        for name, array in arrays.items()
        if name.startswith(used)
    }
    return arrays | unused


def table(model: ZSE) -> dict[Path, Source]:
    """Parameter path -> the published name and the change of layout.

    Raises:
      ValueError: the network has a backbone, which the published one does not have.
    """
    if not isinstance(model.tokenizer, Tokenizer):
        raise ValueError(
            "The published ZSE code has no names for the parameters of a network on a CNN's map: "
            "this needs a ZSE with config.model.backbone=None."
        )
    entries: dict[Path, Source] = {
        ("tokenizer", "retrieval_token"): Source("sa.model.cls"),
        ("tokenizer", "positions"): Source("sa.model.pos_embedding"),
        **linear(("tokenizer", "patch_embedding"), "sa.model.embedding", patch_matrix),
        **norm(("encoder", "norm"), "sa.model.transformer.encoder_norm"),
    }
    # The published stack alternates convolutions and ReLUs, so every second number.
    for i in range(len(model.tokenizer.scale_embedding.convolutions)):
        path = ("tokenizer", "scale_embedding", "convolutions", i, "kernel")
        entries[path] = Source(f"sa.model.scale.seq.{2 * i}.weight", convolution)
    for i in range(len(model.encoder.blocks)):
        here, there = ("encoder", "blocks", i), f"sa.model.transformer.layers.{i}.0"
        entries |= norm((*here, "norm_attention"), f"{there}.layer_norm_input")
        entries |= norm((*here, "norm_mlp"), f"{there}.layer_norm_out")
        entries |= linear((*here, "attention", "qkv"), f"{there}.attention.to_qkv")
        entries |= linear((*here, "attention", "out"), f"{there}.attention.to_out.0")
        entries |= linear((*here, "mlp_in"), f"{there}.mlp.net.0")
        entries |= linear((*here, "mlp_out"), f"{there}.mlp.net.3")
    for layer, there in (
        ("sketch_layer", "ca.encoder.layer1.0"),
        ("photo_layer", "ca.encoder.layer2.0"),
    ):
        entries |= _cross_layer(("cross_attention", layer), there)
    if model.anchors.merge is not None:
        entries |= linear(("anchors", "merge"), "conv2d", patch_matrix)
    for i in range(len(model.relation_network.layers)):
        entries |= linear(("relation_network", "layers", i), f"rn.rn.{3 * i}")
    return entries


def _cross_layer(here: Path, there: str) -> dict[Path, Source]:
    entries: dict[Path, Source] = {}
    for i, name in enumerate(("query", "key", "value", "out")):
        entries |= linear((*here, name), f"{there}.self_attn.linears.{i}")
    entries |= linear((*here, "mlp_in"), f"{there}.feed_forward.w_1")
    entries |= linear((*here, "mlp_out"), f"{there}.feed_forward.w_2")
    for i, name in enumerate(("norm_attended", "norm_mlp")):
        entries[(*here, name, "scale")] = Source(f"{there}.sublayer.{i}.norm.a")
        entries[(*here, name, "bias")] = Source(f"{there}.sublayer.{i}.norm.b")
    return entries
