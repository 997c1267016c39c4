"""Retrievers with shapes in place of arrays."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from zse_jax import retrievers
from zse_jax.checkpoints import arrays, hub, reading


def retriever(model: Mapping[str, Any] | ConfigDict):
    """The retriever of `config.model`; shared by equal configs, so do not change it."""
    return _retriever(json.dumps(dict(model)))


@functools.cache
def _retriever(settings: str):
    return nnx.eval_shape(lambda: retrievers.create(json.loads(settings), rngs=nnx.Rngs(0)))


def install(patch: Callable[[Any, str, Any], None]) -> None:
    """Checkpoints of equal configs share their structure; `patch` is `monkeypatch.setattr`."""
    made: dict[str, Any] = {}

    def abstract_model(config: ConfigDict) -> Any:
        key = json.dumps([config.compute_dtype, config.model.to_dict()])
        if key not in made:
            made[key] = arrays.abstract_model(config)
        return made[key]

    for module in (hub, reading):
        patch(module, "abstract_model", abstract_model)
