"""Decode, crop and resize: encoded bytes -> uint8 RGB -> the square images a network takes.

`prepare_sketch` and `prepare_photo` repeat the published preprocessing of ZSE (Lin et al., CVPR
2023, section 4 and released code) to the byte; normalisation happens later, on the device. Nothing
here is random, and nothing depends on more than one image.
"""

import io
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

Modality = Literal["sketch", "photo"]

INK_MAX_SUM = 300
"""A pixel is ink if R + G + B is at most this (the published threshold)."""

CROP_MARGIN = 10
"""Pixels kept around the ink's bounding box."""


class UnreadableImageError(ValueError):
    """Bytes that do not decode, completely, to an image."""


def decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes any format that Pillow reads, completely, to RGB as a viewer would show it.

    EXIF orientation is applied, transparent pixels are laid on white, palette, grey, CMYK, 16-bit
    and float images become 8-bit RGB; of several frames, the first counts. The result may be
    read-only.

    Raises:
      UnreadableImageError: when the bytes are empty, truncated or not an image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_on_white(image))
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"its {len(encoded)} bytes are no known image format") from error
    except Exception as error:  # Pillow's codecs raise OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(
            f"its {len(encoded)} bytes do not decode ({type(error).__name__}: {error})"
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
    """Scales 16-bit integers and floats from 0 to 1; Pillow would clip them to 255."""
    values, white = np.asarray(image, np.float32), 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):  # Also when one is not a number.
        raise ValueError(
            f"its pixels go from {values.min():g} to {values.max():g}, and not from 0 (black) to "
            f"{white} (white)"
        )
    grey = (values / (white / 255)).round().astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return grey


def prepare_sketch(
    rgb: UInt8[np.ndarray, "h w 3"], size: int = 224
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crops to the drawing, scales the longer side to `size`, pads the other to a square.

    The crop is the bounding box of the ink (R + G + B <= 300), grown by 10 pixels and clipped to
    the canvas; its far edges are exclusive, as published. Scaling is OpenCV's bilinear, padding the
    largest value in the scaled image, the smaller half first. A canvas without ink, on which the
    published code fails, is kept whole.
    """
    cropped = _crop_to_ink(rgb)
    height, width = cropped.shape[:2]
    ratio = height / width
    # A line of one pixel would scale to no pixel at all, hence the max.
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


def _crop_to_ink(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    red, green, blue = cv2.split(rgb)
    ink = red.astype(np.uint16) + green + blue <= INK_MAX_SUM
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not rows.size:
        return rgb
    return rgb[
        max(0, rows[0] - CROP_MARGIN) : rows[-1] + CROP_MARGIN,
        max(0, columns[0] - CROP_MARGIN) : columns[-1] + CROP_MARGIN,
    ]


def prepare_photo(
    rgb: UInt8[np.ndarray, "h w 3"], size: int = 224
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes to `size` x `size` without keeping the aspect ratio, by Pillow's bicubic filter."""
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC))


PREPARE: dict[Modality, Callable[..., UInt8[np.ndarray, "size size 3"]]] = {
    "sketch": prepare_sketch,
    "photo": prepare_photo,
}
"""The preprocessing of each modality."""


def vary(
    image: UInt8[np.ndarray, "h w 3"], mirrored: bool, right: int, down: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The image, mirrored or not, then moved by pixels; its border fills what comes in."""
    height, width = image.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return (image[:, ::-1] if mirrored else image)[rows[:, None], columns]
