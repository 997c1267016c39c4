"""A checkpoint of a small ZSE with random weights, an album, and a drawing."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import ExifTags, Image, ImageDraw

from tests.zse_jax import small_systems
from tests.zse_jax.random_weights import drawn
from zse_jax.checkpoints import reading, writing
from zse_jax.retrievers import create


def written_checkpoint(folder: Path, system: str = "zse", seed: int = 0) -> Path:
    """Writes a checkpoint with random weights."""
    config = small_systems.config(system)
    settings = config.model.to_dict()
    made = drawn(lambda: create(settings, rngs=nnx.Rngs(params=0, dropout=1)), seed)
    writing.write(folder, seed, made, config)
    return folder


def photo(file: Path, number: int, size: tuple[int, int] = (48, 40), taken: str = "") -> Path:
    """Writes a random photo, different for each number, in the format of its extension.

    `taken`: the date and time in its metadata, "2021:05:31 10:00:00".
    """
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
    Image.fromarray(pixels).save(file, **({"exif": exif} if taken else {}))
    return file


@pytest.fixture(scope="session")
def zse(tmp_path_factory) -> Path:
    """The checkpoint of a small ZSE."""
    return written_checkpoint(tmp_path_factory.mktemp("zse"))


@pytest.fixture(scope="module", autouse=True)
def loaded_once(zse) -> Iterator[None]:
    """Loads the checkpoint `zse` once: that takes longer than building a small index."""
    load = reading.load_step
    cached = functools.cache(lambda: load(zse))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            reading,
            "load_step",
            lambda p, **given: cached() if zse in (p, *Path(p).parents) else load(p, **given),
        )
        yield


@pytest.fixture
def album(tmp_path) -> Path:
    """Five photos, one of them in a subfolder, and a text file."""
    for number in range(5):
        photo(tmp_path / "album" / ("deep" if number == 4 else "") / f"p{number}.png", number)
    (tmp_path / "album" / "notes.txt").write_text("no photo")
    return tmp_path / "album"


@pytest.fixture
def drawing(tmp_path) -> Path:
    """A circle."""
    image = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), outline="black", width=3)
    image.save(tmp_path / "circle.png")
    return tmp_path / "circle.png"


@pytest.fixture
def browser(chromium) -> Iterator[Any]:
    """Chromium, driven by Playwright; its pages are closed after the test: they use CPU time."""
    yield chromium
    for context in chromium.contexts:
        context.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    names = "chromium", "chromium-browser", "google-chrome"
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    reason = "needs Playwright, which drives the browser"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()
