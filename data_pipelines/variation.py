"""Random changes of training images that keep their class: fixed variants of each image.

With `config.train.variants`, every training image exists in several variants. Number 0 is the image
itself. A variant depends on its number and the image alone, so that the output of frozen layers can
be computed once for each of them. Our choices: crops as in Szegedy et al. (CVPR 2015) and colours
as in Howard (arXiv 1312.5602) for photos; small affine maps and the width of strokes for sketches.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageFilter

from data_pipelines.images import Modality

AREA, ASPECT = (0.4, 1.0), (3 / 4, 4 / 3)
"""Of a photo's crop: the share of the image, and width / height."""

COLOURS, GREY = (0.6, 1.4), 0.2
"""Factors of a photo's brightness, contrast and saturation, and the probability of grey."""

ZOOM, STRETCH, DEGREES, SHIFT = (0.75, 1.2), (0.85, 1.18), (-15.0, 15.0), (-0.1, 0.1)
"""Of a sketch's affine map: size, width / height, rotation, and shift as a share of the side."""

THICK = 0.3
"""The probability that a sketch's strokes become one pixel wider on each side."""


def variant(
    image: UInt8[np.ndarray, "s s 3"], modality: Modality, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """A random change of a square image of the given modality, of the same size."""
    change = _photo if modality == "photo" else _sketch
    return np.array(change(Image.fromarray(image), rng))


def _photo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = image.width
    area, aspect = rng.uniform(*AREA), np.exp(rng.uniform(*np.log(ASPECT)))
    size = np.minimum(side * np.sqrt(area * np.array([aspect, 1 / aspect])), side)
    left, top = rng.uniform(0, side - size)
    box = left, top, left + size[0], top + size[1]
    image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(*COLOURS))
    return image.convert("L").convert("RGB") if rng.random() < GREY else image


def _sketch(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = image.width
    if rng.random() < THICK:
        image = image.filter(ImageFilter.MinFilter(3))
    zoom, stretch = rng.uniform(*ZOOM), np.sqrt(np.exp(rng.uniform(*np.log(STRETCH))))
    angle, shift = np.radians(rng.uniform(*DEGREES)), side * rng.uniform(*SHIFT, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    back = turn / (zoom * np.array([[stretch], [1 / stretch]]))  # from the new to the old image
    centre = np.full(2, side / 2)
    offset = centre - back @ (centre + shift)
    coefficients = tuple(np.column_stack([back, offset]).ravel().tolist())
    return image.transform(
        (side, side),
        Image.Transform.AFFINE,
        coefficients,
        Image.Resampling.BICUBIC,
        fillcolor=(255, 255, 255),
    )
