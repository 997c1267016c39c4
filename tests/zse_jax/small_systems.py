"""Every retrieval system at a size that compiles in seconds, with a batch of random images."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from tests.zse_jax import shared_steps
from tests.zse_jax.random_weights import drawn_state
from zse_jax.checkpoints import conversion
from zse_jax.retrievers import create
from zse_jax.retrievers.base import Retriever

SIZE, DEPTH = 32, 1

ZSE = {
    "image_size": SIZE, "patch_size": 8, "scale_channels": 4, "width": 32, "depth": DEPTH,
    "heads": 2, "mlp_width": 64, "cross_heads": 2, "cross_mlp_width": 32, "anchors": 4,
    "anchor_width": 16, "dropout": 0.0,
}  # fmt: skip
CLIP = {
    "image_size": SIZE, "patch_size": 8, "width": 32, "depth": DEPTH, "heads": 2, "embed_dim": 16,
    "context_length": 16, "text_width": 16, "text_depth": 1, "text_heads": 2,
    "class_names": ("cat", "dog", "a tree", "house"), "trainable": "all",
}  # fmt: skip
EFFICIENT = {
    "image_size": SIZE, "depths": (1, 1), "width": 8, "imagenet_classes": 12,
    "embedding_width": 16, "seen_classes": 4, "knowledge_weight": 0.0,
}  # fmt: skip
CMCA = {"image_size": SIZE, "backbone": "dinov2_tiny", "rank": 2}
SIZES = {"zse": ZSE, "clip_prompt": CLIP, "efficient_cnn": EFFICIENT, "cmca": CMCA}
IMAGES = {"zse": (2, 2), "clip_prompt": (1, 2), "efficient_cnn": (2, 2), "cmca": (1, 2)}


def config(system: str, **flat: Any) -> ConfigDict:
    """A config of one of `SIZES`; `flat` sets dotted keys."""
    made = conversion.default_config(system)
    made.model.update(SIZES[system])
    made.init_from = "random"
    made.train.update(steps=10, batch_size=16)
    made.optimizer.update(schedule="constant", warmup_steps=0)
    made.update_from_flattened_dict(flat)
    return made.lock()


def built(system: str, seed: int = 0) -> Retriever:
    """A retriever of one of `SIZES`."""
    return create(config(system).model, rngs=nnx.Rngs(params=seed, dropout=seed + 1))


def batch(system: str, samples: int = 16) -> dict[str, np.ndarray]:
    """Random images in the shape that `system` trains on."""
    rng = np.random.default_rng(0)
    sketches, photos = IMAGES[system]
    return {
        "sketches": rng.integers(0, 256, (samples, sketches, SIZE, SIZE, 3), np.uint8),
        "photos": rng.integers(0, 256, (samples, photos, SIZE, SIZE, 3), np.uint8),
        "sketch_labels": np.repeat(np.arange(samples, dtype=np.int32) % 4, sketches).reshape(
            samples, sketches
        ),
        "photo_labels": np.repeat(np.arange(samples, dtype=np.int32) % 4, photos).reshape(
            samples, photos
        ),
    }


def steps(
    made: ConfigDict, mesh: jax.sharding.Mesh, given: dict[str, np.ndarray], count: int = 2
) -> tuple[np.ndarray, dict[str, nnx.State]]:
    """Loss and gradient norm [count, 2] of some steps on one batch, and the state after them."""
    setup = shared_steps.set_up(made, mesh)
    state, found = drawn_state(setup), []
    for _ in range(count):
        state, metrics = setup.step(state, given)
        found.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return np.array(found), state
