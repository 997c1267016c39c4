"""The retrieval systems: one file each, all behind `base.Retriever`."""

import difflib
import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from zse_jax.models.rematerialisation import rematerialise
from zse_jax.retrievers.base import Retriever

REMAT = ("none", "blocks")
"""What the backward pass recomputes instead of storing: nothing, or the inside of each block."""

SYSTEMS = {
    "zse": "zse_jax.retrievers.zse:ZSE",
    "clip_prompt": "zse_jax.retrievers.clip_prompt:ClipPrompt",
    "efficient_cnn": "zse_jax.retrievers.efficient_cnn:EfficientCNN",
}
"""Name in `config.model.system` -> where the class lives; imported when asked for."""


def create(
    config: Mapping[str, Any] | ConfigDict,
    *,
    dtype: str | jnp.dtype = jnp.float32,
    remat: str = "none",
    rngs: nnx.Rngs,
) -> Retriever:
    """The retriever that `config.model` describes: `system`, and arguments of its class.

    Args:
      config: `system`, and any keyword arguments of that system; what is left out is as published.
      dtype: of activations ("float32" or "bfloat16"); parameters are float32.
      remat: one of `REMAT`.
      rngs: streams `params` and `dropout`.

    Raises:
      ValueError: an unknown system or key (the message names the nearest right one), or values
        that do not fit each other.
    """
    arguments = dict(config)
    system = arguments.pop("system", None)
    if system not in SYSTEMS:
        raise ValueError(f"config.model.system={system!r} is unknown{_nearest(system, SYSTEMS)}")
    module, name = SYSTEMS[system].split(":")
    cls = getattr(import_module(module), name)
    known = set(inspect.signature(cls.__init__).parameters) - {"self", "dtype", "rngs"}
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"config.model.{key} is no setting of system {system!r}{_nearest(key, known)}"
            )
    if remat not in REMAT:
        raise ValueError(f"config.train.remat={remat!r}: choose one of {', '.join(REMAT)}.")
    model = cls(**arguments, dtype=jnp.dtype(dtype), rngs=rngs)
    if remat == "blocks" and not rematerialise(model):
        raise ValueError(
            f"config.train.remat='blocks': the system {system!r} has no blocks that can be "
            "recomputed; set it to 'none'."
        )
    return model


def _nearest(name: object, known) -> str:
    match = difflib.get_close_matches(str(name), known, n=1)
    hint = f": did you mean {match[0]!r}?" if match else "."
    return f"{hint} Known: {', '.join(sorted(known))}."
