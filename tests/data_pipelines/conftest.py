"""A small data set in the layout of Sketchy; tiny images whose colour encodes their class."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import prepared, splits

CLASSES = splits.get("sketchy_split1").classes


def encode(rgb: np.ndarray, image_format: str = "PNG", **options: object) -> bytes:
    """The image as bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, image_format, **options)
    return buffer.getvalue()


def flat_image(class_name: str, photo: int) -> bytes:
    """A one-colour image: red is the index of the class, green the number of the photo."""
    colour = np.array([CLASSES.index(class_name), photo, 255], np.uint8)
    return encode(np.tile(colour, (8, 8, 1)))


def write_sketchy(
    root: Path, *, suffix: str = "_ready", sketches: int = 2, extension: bool = False
) -> Path:
    """125 classes with two photos, each drawn `sketches` times; the extension has one photo."""
    for c, class_name in enumerate(CLASSES):
        photo_folder = root / f"256x256/photo/tx_000000000000{suffix}" / class_name
        sketch_folder = root / f"256x256/sketch/tx_000000000000{suffix}" / class_name
        photo_folder.mkdir(parents=True)
        sketch_folder.mkdir(parents=True)
        for photo in range(2):
            image = flat_image(class_name, photo)
            (photo_folder / f"n{c:04}_{photo}.jpg").write_bytes(image)
            for n in range(1, sketches + 1):
                (sketch_folder / f"n{c:04}_{photo}-{n}.png").write_bytes(image)
        if extension:
            extension_folder = root / f"EXTEND_image_sketchy{suffix}" / class_name
            extension_folder.mkdir(parents=True)
            (extension_folder / f"n{c:04}_9.JPEG").write_bytes(flat_image(class_name, 9))
    return root


@pytest.fixture
def new_sketchy(tmp_path: Path) -> Callable[..., Path]:
    """Writes a separate folder, for tests that change it."""
    return lambda **options: write_sketchy(tmp_path / "Sketchy", **options)


@pytest.fixture(scope="session")
def sketchy_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only folder written by `write_sketchy`."""
    return write_sketchy(tmp_path_factory.mktemp("source") / "Sketchy", extension=True)


@pytest.fixture(scope="session")
def data_dir(sketchy_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS folder in which `sketchy_source` is prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    prepared.prepare("sketchy", data_dir=folder, manual_dir=sketchy_source)
    return folder
