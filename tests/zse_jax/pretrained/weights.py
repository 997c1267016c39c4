"""The weights of the golden outputs, drawn as tests/golden/README.md describes."""

import json
import math
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden"


def draw(manifest: str) -> dict[str, np.ndarray]:
    """Publisher's name -> array, for every entry of `<manifest>_manifest.json`."""
    shapes = json.loads((GOLDEN / f"{manifest}_manifest.json").read_text())
    return {
        name: _value(name, tuple(shape), he=manifest == "resnet50")
        for name, shape in shapes.items()
    }


def _value(name: str, shape: tuple[int, ...], *, he: bool) -> np.ndarray:
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "logit_scale":
        value = np.full(shape, math.log(1 / 0.07))
    elif leaf == "running_var":
        value = 1 + 0.1 * np.abs(n)
    elif leaf in ("weight", "a") and len(shape) == 1:
        value = 1 + 0.1 * n
    elif leaf in ("weight", "in_proj_weight"):
        value = n / math.sqrt(math.prod(shape[1:]))
        if he and len(shape) == 4:
            value *= math.sqrt(2)
    elif leaf in ("proj", "text_projection"):
        value = 0.5 * n / math.sqrt(shape[0])
    elif len(shape) >= 2:
        value = 0.5 * n
    else:
        value = 0.1 * n
    return value.astype(np.float32)
