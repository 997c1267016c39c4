"""Folders of tiny images in the layout of a data set."""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.data_pipelines.conftest import encode

FORMATS = {"png": "PNG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP", "tif": "TIFF", "pgm": "PPM"}


@functools.cache
def tiny(grey: int, suffix: str) -> bytes:
    """A grey image; JPEG if `suffix` is not in `FORMATS`."""
    return encode(np.full((4, 6, 3), grey, np.uint8), FORMATS.get(suffix.lower(), "JPEG"))


def write(root: Path, names: Iterable[str]) -> Path:
    """Writes an image for each name, in the format of its suffix; returns `root`."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny(number % 8, path.suffix[1:]))
    return root
