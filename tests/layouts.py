"""The folders that users unpack, in each publisher's layout, small: every class, few images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import splits

SIDE = 16


def image(seed: int, image_format: str) -> bytes:
    """A black line on white, somewhere."""
    rgb = np.full((SIDE, SIDE, 3), 255, np.uint8)
    rgb[2 + seed % (SIDE - 4), 2:-2] = 0
    with io.BytesIO() as file:
        Image.fromarray(rgb).save(file, image_format)
        return file.getvalue()


def _write(folder: Path, names: list[str], seed: int) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        (folder / name).write_bytes(image(seed + number, kind))


def write_sketchy(root: Path) -> None:
    """Two photos a class, each drawn twice."""
    for c, name in enumerate(splits.get("sketchy_split1").classes):
        for modality, names in (
            ("photo", [f"n{c}_{i}.jpg" for i in range(2)]),
            ("sketch", [f"n{c}_{i}-{n}.png" for i in range(2) for n in (1, 2)]),
        ):
            _write(root / f"256x256/{modality}/tx_000000000000_ready" / name, names, c)


def write_tuberlin(root: Path) -> None:
    """Two sketches and two photos a class, the endings mixed."""
    for c, name in enumerate(splits.get("tuberlin").classes):
        _write(root / "png_ready" / name, [f"{2 * c + i}.png" for i in (1, 2)], c)
        _write(root / "ImageResized_ready" / name, [f"{c}_1.JPEG", f"{c}_2.jpg"], c)


def write_quickdraw(root: Path) -> None:
    """Two sketches and two photos a class."""
    for c, name in enumerate(splits.get("quickdraw").classes):
        _write(root / "sketches" / name, [f"{c}{i}.png" for i in (1, 2)], c)
        _write(root / "images" / name, [f"{c}{i}.jpg" for i in (1, 2)], c)


def write_folder(root: Path) -> None:
    """Five classes of a user's own, in folders within folders."""
    for c, name in enumerate(("ant", "bee", "cat", "dog", "elk")):
        _write(root / "sketch" / name / "mine", [f"{name}{i}-1.png" for i in range(2)], c)
        _write(root / "photo" / name, [f"{name}{i}.JPG" for i in range(2)], c)


WRITE = {
    "sketchy": write_sketchy,
    "tuberlin": write_tuberlin,
    "quickdraw": write_quickdraw,
    "folder": write_folder,
}
