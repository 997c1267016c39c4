"""Small data sets in the layout of each benchmark: all classes, few images."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import splits

SIDE = 16


def image(seed: int, image_format: str) -> bytes:
    """A black line on white; `seed` sets its position."""
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
    """Two photos per class, each drawn twice."""
    for c, name in enumerate(splits.get("sketchy_split1").classes):
        for modality, names in (
            ("photo", [f"n{c}_{i}.jpg" for i in range(2)]),
            ("sketch", [f"n{c}_{i}-{n}.png" for i in range(2) for n in (1, 2)]),
        ):
            _write(root / f"256x256/{modality}/tx_000000000000_ready" / name, names, c)


def write_tuberlin(root: Path) -> None:
    """Two sketches and two photos per class, with mixed suffixes."""
    for c, name in enumerate(splits.get("tuberlin").classes):
        _write(root / "png_ready" / name, [f"{2 * c + i}.png" for i in (1, 2)], c)
        _write(root / "ImageResized_ready" / name, [f"{c}_1.JPEG", f"{c}_2.jpg"], c)


def write_quickdraw(root: Path) -> None:
    """Two sketches and two photos per class."""
    for c, name in enumerate(splits.get("quickdraw").classes):
        _write(root / "sketches" / name, [f"{c}{i}.png" for i in (1, 2)], c)
        _write(root / "images" / name, [f"{c}{i}.jpg" for i in (1, 2)], c)


def write_folder(root: Path) -> None:
    """Five classes of a user's own images, in nested folders."""
    for c, name in enumerate(("ant", "bee", "cat", "dog", "elk")):
        _write(root / "sketch" / name / "mine", [f"{name}{i}-1.png" for i in range(2)], c)
        _write(root / "photo" / name, [f"{name}{i}.JPG" for i in range(2)], c)


DOMAINS = {"sketch": "sketch", "photo": "real"}
"""Modality -> DomainNet's name of it."""


def serve_domainnet(
    root: Path, patch: Callable[..., None], classes: Sequence[str], picture: Callable[..., bytes]
) -> list[str]:
    """Makes TFDS download DomainNet from `root`, with two images of each class and domain.

    Args:
      root: an empty folder.
      patch: `monkeypatch.setattr`.
      classes: names in the TFDS catalogue.
      picture: (class number, image number) -> JPEG or PNG bytes.

    Returns:
      The URLs that TFDS requests, in order.
    """
    import tensorflow_datasets as tfds

    asked: list[str] = []
    labels = tfds.builder("domainnet/sketch", data_dir=root).info.features["label"].names
    for domain in DOMAINS.values():
        for number, split in enumerate(("train", "test")):
            lines = []
            for c, class_name in enumerate(classes):
                name = f"{domain}/{class_name}/{domain}_{c}_{number}.jpg"
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(picture(c, number))
                lines.append(f"{name} {labels.index(class_name)}")
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")

    def unpack(manager: Any, address: str) -> Path:
        asked.append(address)
        return root

    def download(manager: Any, addresses: dict[str, str]) -> dict[str, Path]:
        asked.extend(addresses.values())
        return {key: root / address.rsplit("/")[-1] for key, address in addresses.items()}

    patch(tfds.download.DownloadManager, "download_and_extract", unpack)
    patch(tfds.download.DownloadManager, "download", download)
    patch("urllib.request.urlopen", lambda *_, **__: io.BytesIO())  # The server answers.
    return asked


WRITE = {
    "sketchy": write_sketchy,
    "tuberlin": write_tuberlin,
    "quickdraw": write_quickdraw,
    "folder": write_folder,
}
