"""Retrievers with shapes in place of arrays."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from zse_jax import retrievers


def retriever(model: Mapping[str, Any] | ConfigDict):
    """The retriever of `config.model`; shared by equal configs, so do not change it."""
    return _retriever(json.dumps(dict(model)))


@functools.cache
def _retriever(settings: str):
    return nnx.eval_shape(lambda: retrievers.create(json.loads(settings), rngs=nnx.Rngs(0)))
