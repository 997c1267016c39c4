"""Weights of the published CMCA code: DINOv2's, by Facebook's names, and the adapters.

The matrices A and B beside a layer are called `blocks.0.attn.w_a_linear_q.weight` and
`blocks.0.attn.w_b_linear_q.weight`; in the last block with the ending `_sketch` or `_photo`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zse_jax.models.dinov2 import DINOv2
from zse_jax.models.lora import SHARED, AdaptedLinear
from zse_jax.pretrained import dinov2
from zse_jax.pretrained.mapping import Path, Source, fill, transpose
from zse_jax.retrievers.cmca import CMCA

_NAMES = {
    "query": "attn.{}_linear_q", "key": "attn.{}_linear_k", "value": "attn.{}_linear_v",
    "out": "attn.{}_linear_proj", "mlp_in": "mlp.{}_linear_fc1", "mlp_out": "mlp.{}_linear_fc2",
}  # fmt: skip


def load(model: CMCA | DINOv2, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills the retriever, or its backbone, in place.

    Raises:
      ValueError: unused names, or parameters without a source or of another shape, listed.
    """
    network = model.backbone if isinstance(model, CMCA) else model
    fill(network, arrays, table(network), ignored=dinov2.is_ignored)


def table(network: DINOv2) -> dict[Path, Source]:
    """Path of each parameter of the adapted network -> its published name, and the layout."""
    entries = dinov2.facebook(network)
    for i, block in enumerate(network.blocks):
        for layer, name in _NAMES.items():
            adapted = getattr(block, layer)
            if not isinstance(adapted, AdaptedLinear):
                continue
            for modality in adapted.adapters:
                ending = "" if modality == SHARED else f"_{modality}"
                for matrix, published in (("down", "w_a"), ("up", "w_b")):
                    path = ("blocks", i, layer, "adapters", modality, matrix)
                    source = f"blocks.{i}.{name.format(published)}{ending}.weight"
                    entries[path] = Source(source, transpose)
    return entries


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine.

    Raises:
      ValueError: the shapes are of no variant of DINOv2.
    """
    rank = arrays["blocks.0.attn.w_a_linear_q.weight"].shape[0]
    return dinov2.settings(arrays) | {"rank": rank}
