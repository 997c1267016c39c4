"""The systems as the benchmarks train them: published settings, and batches of noise."""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zse_jax.retrievers.registry import SYSTEMS, implementation

CONFIGS = {
    "zse": "configs.sketchy",
    "clip_prompt": "configs.clip_sketchy_split2",
    "efficient_cnn": "configs.efficient_sketchy",
    "cmca": "configs.cmca_sketchy_split2",
}
"""The others are measured with the config of their entry in the registry."""

IMAGES = {
    "quadruplet": (2, 2), "triplet": (1, 2), "class_group": (4, 4), "instance_group": (4, 4),
}  # fmt: skip
"""Sketches and photos of a sample, by the kind of batch."""

TINY: dict[str, dict[str, Any]] = {
    "zse": {
        "width": 32, "depth": 1, "heads": 2, "mlp_width": 64, "scale_channels": 4,
        "cross_mlp_width": 64, "anchor_width": 16,
    },
    "clip_prompt": {
        "width": 32, "depth": 1, "heads": 2, "embed_dim": 16, "text_width": 16, "text_depth": 1,
        "text_heads": 2,
    },
    "efficient_cnn": {"depths": (1, 1), "width": 8, "embedding_width": 16},
}  # fmt: skip
"""Sizes that a CPU computes in a moment, to try a benchmark out."""


def counts(system: str, kind: str | None = None) -> tuple[int, int]:
    """Sketches and photos of a sample of this system, or of another kind of batch."""
    return IMAGES[kind or implementation(system).batch_kind]


def config_of(system: str, arg: str = "", *, tiny: bool = False, **flat: Any) -> Any:
    """The published setting of a system on Sketchy, changed by `arg` and dotted keys."""
    module = CONFIGS.get(system, f"configs.{SYSTEMS[system].config}")
    config = import_module(module).get_config(arg)
    config.init_from = "random"  # speed does not depend on the values
    if tiny:
        config.model.update(TINY.get(system, {}))
    if "class_names" in config.model:
        config.model.class_names = tuple(f"class {i}" for i in range(104))
    config.update_from_flattened_dict(flat)
    return config


def batch_shapes(
    system: str, samples: int, size: int, kind: str | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch with shapes in place of arrays; `kind` as in `counts`."""
    shapes = {}
    for name, count in zip(("sketch", "photo"), counts(system, kind), strict=True):
        plural = "sketches" if name == "sketch" else "photos"
        shapes[plural] = jax.ShapeDtypeStruct((samples, count, size, size, 3), jnp.uint8)
        shapes[f"{name}_labels"] = jax.ShapeDtypeStruct((samples, count), jnp.int32)
    return shapes


def noise(system: str, samples: int, size: int) -> dict[str, np.ndarray]:
    """Such a batch of random pixels; the samples are of as many classes, up to a hundred."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, shape in batch_shapes(system, samples, size).items():
        if name.endswith("labels"):
            labels = np.arange(samples, dtype=np.int32) % 100
            batch[name] = np.repeat(labels[:, None], shape.shape[1], axis=1)
        else:
            batch[name] = rng.integers(0, 256, shape.shape, np.uint8)
    return batch
