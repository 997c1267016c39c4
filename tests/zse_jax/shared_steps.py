"""Training runs of a test process share what they compile, if their steps are equal."""

import json
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from zse_jax.retrievers import registry
from zse_jax.runtime import sharding
from zse_jax.training import loop, profiling, step

_compile_step = profiling.compile_step
_made: dict[Hashable, Any] = {}


def install(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Lets training runs share compiled steps; `patch` is `monkeypatch.setattr` in tests."""
    patch(loop, "set_up", set_up)
    patch(profiling, "compile_step", compile_step)


def set_up(config: ConfigDict, mesh: Mesh) -> step.Setup:
    """`step.set_up`, once for all configs that are equal in what it reads."""
    train = config.train
    read = [
        config.model.to_dict(), config.optimizer.to_dict(), config.compute_dtype, config.seed,
        train.steps, train.get("accumulate"), train.get("remat"),
    ]  # fmt: skip
    retriever = registry.imported(registry.system(config.model.system).implementation)
    replaced = retriever.loss, sharding.MIN_SIZE  # by some tests
    return _once((json.dumps(read), mesh, *replaced), lambda: step.set_up(config, mesh))


def compile_step(step: Any, state: Any, batch: Any, devices: int, accumulate: int = 1) -> Any:
    """`profiling.compile_step`, once for a step and the shapes of its batch."""
    return _once(
        (step, _shapes(batch), devices, accumulate),
        lambda: _compile_step(step, state, batch, devices, accumulate),
    )


def shapes(setup: step.Setup, batch: Any) -> tuple[Any, Any]:
    """The shapes of what a step returns, traced once for a step and the shapes of its batch."""
    return _once(
        ("shapes", setup.step, _shapes(batch)),
        lambda: jax.eval_shape(setup.step, setup.abstract, batch),
    )


def _shapes(batch: Any) -> Hashable:
    return tuple((name, x.shape, x.dtype) for name, x in jax.tree.leaves_with_path(batch))


def _once(key: Hashable, make: Callable[[], Any]) -> Any:
    if key not in _made:
        _made[key] = make()
    return _made[key]
