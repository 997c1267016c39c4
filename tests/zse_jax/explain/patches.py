"""A retrieval system with local evidence that can be checked by hand, and pairs it explains."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.zse_jax import tiny
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Correspondence, Explainable

GRID = 2


class Patches(tiny.Tiny, Explainable):
    """`Tiny`, with patches as places: they match as their mean greys are alike."""

    @property
    def local_evidence(self) -> str:
        return "likeness of grey patches"

    def correspond(self, sketches, photos) -> Correspondence:
        sketch, photo = (self._greys(x) for x in (sketches, photos))
        match = 1 - jnp.abs(sketch[:, :, None] - photo[:, None, :])
        importance = sketch / sketch.sum(axis=1, keepdims=True)
        return Correspondence(
            match.mean(axis=(1, 2)),
            match,
            sketch_attention=match / match.sum(axis=2, keepdims=True),
            photo_attention=match.swapaxes(1, 2) / match.sum(axis=1)[:, :, None],
            sketch_importance=importance,
            photo_importance=photo / photo.sum(axis=1, keepdims=True),
        )

    def _greys(self, images) -> Any:
        side = self.image_size // GRID
        parts = images.astype(jnp.float32).reshape(-1, GRID, side, GRID, side, 3) / 255
        return parts.mean(axis=(2, 4, 5)).reshape(len(images), -1) + 0.01


def install(patch: Any = setattr) -> None:
    """System "tiny" is `Patches`, on the data of `tiny`."""
    tiny.install(patch)
    entry = tiny.system(f"{__name__}:Patches")
    patch(registry, "SYSTEMS", {**registry.SYSTEMS, "tiny": entry})


def drawn(size: int = 32) -> np.ndarray:
    """A sketch: a stroke through the upper half of the paper."""
    sketch = np.full((size, size, 3), 255, np.uint8)
    sketch[size // 4, 2:-2] = 0
    return sketch
