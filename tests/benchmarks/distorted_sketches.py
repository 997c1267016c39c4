"""The loss of a search from sketches that are no clean scans, against the clean sketches.

    python -m tests.benchmarks.distorted_sketches --photos=DIR --sketches=DIR [--every=4]

DIR has one folder of images for each class. The photos are indexed by the model of the package. For
each distortion, prints the P@10 of the sketches as they are read by `gallery.sketch_input`, and of
the same pixels without its cleaning (`gallery.sketch_cleaning`).
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

from data_pipelines import images
from zse_jax.gallery import index, search, sketch_input
from zse_jax.gallery.sketch_cleaning import Cleaned

Pixels = np.ndarray
Distortion = Callable[[Pixels, np.random.Generator], Pixels]


def _grey(values: np.ndarray) -> Pixels:
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def photographed(sketch: Pixels, rng: np.random.Generator) -> Pixels:
    """Pencil on grey paper under uneven light."""
    height, width = sketch.shape[:2]
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = 0.55 + 0.35 * (x * np.cos(1) + y * np.sin(1)) - 0.15 * ((x - 0.3) ** 2 + (y - 0.7) ** 2)
    pencil = 1 - 0.55 * (1 - cv2.GaussianBlur(sketch[..., 0] / 255, (0, 0), 0.7))
    return _grey(light * pencil * 230 + rng.normal(0, 3, (height, width)))


def white_on_black(sketch: Pixels, rng: np.random.Generator) -> Pixels:
    """Inverted."""
    del rng
    return 255 - sketch


def chalk(sketch: Pixels, rng: np.random.Generator) -> Pixels:
    """Light lines on a dark, noisy board."""
    return _grey(30 + 0.7 * (255.0 - sketch[..., 0]) + rng.normal(0, 4, sketch.shape[:2]))


def large_scan(sketch: Pixels, rng: np.random.Generator) -> Pixels:
    """4,000 pixels with lines of three pixels, along the middle of the strokes."""
    del rng
    large = cv2.resize(sketch, (4000, 4000), interpolation=cv2.INTER_NEAREST)
    ink = large[..., 0] < 128
    distance = cv2.distanceTransform(ink.astype(np.uint8), cv2.DIST_L2, 3)
    ridge = (distance >= cv2.dilate(distance, np.ones((3, 3))) - 0.5) & ink & (distance > 3)
    lines = cv2.dilate(ridge.astype(np.uint8), np.ones((3, 3))).astype(bool)
    return _grey(np.where(lines, 40, 255))


def ruled(sketch: Pixels, rng: np.random.Generator) -> Pixels:
    """On paper with blue lines and a red margin."""
    del rng
    large = cv2.resize(sketch, (768, 768), interpolation=cv2.INTER_AREA)
    page = np.full(large.shape, 245.0)
    page[20::32], page[21::32], page[:, 80:82] = (150, 170, 220), (170, 190, 230), (230, 140, 140)
    return np.minimum(page, large + 20.0).clip(0, 255).astype(np.uint8)


DISTORTIONS: dict[str, Distortion] = {
    "clean": lambda sketch, rng: sketch,
    "photographed": photographed,
    "white on black": white_on_black,
    "chalk": chalk,
    "large scan": large_scan,
    "ruled paper": ruled,
}


def precision(
    searcher: search.Searcher, sketches: list[Path], distort: Distortion, seed: int = 0
) -> float:
    """The mean P@10, 0..1; a sketch that is refused finds nothing."""
    found = []
    for number, file in enumerate(sketches):
        pixels = distort(images.decode(file.read_bytes()), np.random.default_rng([seed, number]))
        try:
            hits = searcher(pixels, k=10).hits
        except sketch_input.SketchError:
            hits = []
        found.append(sum(Path(hit.path).parent.name == file.parent.name for hit in hits) / 10)
    return float(np.mean(found))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", required=True, type=Path)
    parser.add_argument("--sketches", required=True, type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th sketch")
    parser.add_argument("--index", type=Path, help="keep the index here; default: a new one")
    options = parser.parse_args()
    sketches = sorted(x for x in options.sketches.glob("*/*") if x.is_file())[:: options.every]
    folder = options.index or Path(tempfile.mkdtemp())
    index.build([str(options.photos)], str(folder))
    searcher = search.Searcher(index.open(str(folder)))
    uncleaned = mock.patch.object(sketch_input, "clean", lambda pixels: Cleaned(pixels, (), ""))
    print(f"{len(sketches)} sketches; P@10 in percent, cleaned / as they are")
    clean = 0.0
    for name, distort in DISTORTIONS.items():
        value = precision(searcher, sketches, distort)
        with uncleaned:
            raw = precision(searcher, sketches, distort)
        clean = clean or value
        print(f"{name:15} {100 * value:5.1f} / {100 * raw:5.1f}   {value / clean - 1:+.1%}")


if __name__ == "__main__":
    main()
