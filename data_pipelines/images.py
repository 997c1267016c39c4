"""Decode, crop and resize: encoded bytes -> uint8 RGB -> the square images a network takes.

`prepare_sketch` and `prepare_photo` reproduce the published preprocessing of ZSE (Lin et al., CVPR
2023, section 4 and released code) byte for byte. Normalisation happens later, on the device. Every
function here is deterministic and processes one image.
"""

import io
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

Modality = Literal["sketch", "photo"]

INK_MAX_SUM = 300
"""A pixel is ink if R + G + B is at most this (the published threshold)."""

CROP_MARGIN = 10
"""Pixels kept around the ink's bounding box."""


class UnreadableImageError(ValueError):
    """Encoded bytes that cannot be decoded completely."""


def decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes any format that Pillow reads to RGB, as an image viewer would show it.

    Applies the EXIF orientation, puts transparent pixels on white, and converts palette, grey,
    CMYK, 16-bit and float images to 8-bit RGB. Of several frames, decodes the first. The result may
    be read-only.

    Raises:
      UnreadableImageError: if the bytes are empty, truncated or not an image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_on_white(image))
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"the {len(encoded)} bytes are not a known image format"
        ) from error
    except Exception as error:  # Pillow's codecs raise OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(
            f"the {len(encoded)} bytes do not decode ({type(error).__name__}: {error})"
        ) from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Scales 16-bit integers and floats in [0, 1] to 8 bits; Pillow would clip them to 255."""
    values, white = np.asarray(image, np.float32), 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):  # Also false for NaN.
        raise ValueError(
            f"pixel values are in [{values.min():g}, {values.max():g}], expected 0 (black) to "
            f"{white} (white)"
        )
    grey = (values / (white / 255)).round().astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return grey


def prepare_sketch(
    rgb: UInt8[np.ndarray, "h w 3"], size: int = 224
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crops to the drawing, scales the longer side to `size` and pads the other one to a square.

    Crops to `ink_box`, scales with OpenCV's bilinear filter, and pads with the largest value in the
    scaled image, the smaller half first.
    """
    (top, bottom), (left, right) = ink_box(rgb)
    cropped = rgb[top:bottom, left:right]
    height, width = cropped.shape[:2]
    ratio = height / width
    # max: a line one pixel wide would scale to zero pixels.
    if height > width:
        scaled_size = (max(1, int(size / ratio)), size)
    else:
        scaled_size = (size, max(1, int(size * ratio)))
    scaled = cv2.resize(cropped, scaled_size, interpolation=cv2.INTER_LINEAR)
    vertical, horizontal = size - scaled.shape[0], size - scaled.shape[1]
    square = np.full((size, size, 3), scaled.max(), np.uint8)
    top, left = vertical // 2, horizontal // 2
    square[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return square


def ink(rgb: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Which pixels are ink: R + G + B <= 300, as published."""
    red, green, blue = cv2.split(rgb)
    return red.astype(np.uint16) + green + blue <= INK_MAX_SUM


def ink_box(rgb: UInt8[np.ndarray, "h w 3"]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and the columns, each (start, stop), that `prepare_sketch` crops to.

    The bounding box of the ink, grown by 10 pixels and clipped to the canvas. The growth at the far
    edges counts from the last ink pixel, as published. An image without ink, on which the published
    code fails, is not cropped.
    """
    inked = ink(rgb)
    if not inked.any():
        return (0, rgb.shape[0]), (0, rgb.shape[1])
    bounds = []
    for axis, side in enumerate(rgb.shape[:2]):
        first, last = np.flatnonzero(inked.any(axis=1 - axis))[[0, -1]].tolist()
        bounds.append((max(0, first - CROP_MARGIN), min(last + CROP_MARGIN, side)))
    return bounds[0], bounds[1]


def prepare_photo(
    rgb: UInt8[np.ndarray, "h w 3"], size: int = 224
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes to `size` x `size` with Pillow's bicubic filter; the aspect ratio is not kept."""
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC))


PREPARE: dict[Modality, Callable[..., UInt8[np.ndarray, "size size 3"]]] = {
    "sketch": prepare_sketch,
    "photo": prepare_photo,
}
"""The preprocessing of each modality."""


def augment(
    image: UInt8[np.ndarray, "h w 3"], mirrored: bool, right: int, down: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The image, mirrored if asked, then shifted by pixels; border pixels are repeated."""
    height, width = image.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return (image[:, ::-1] if mirrored else image)[rows[:, None], columns]
