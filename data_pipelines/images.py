"""Decode, crop and resize: encoded bytes -> uint8 RGB -> the square images a network takes.

`prepare_sketch` and `prepare_photo` reproduce the published preprocessing of ZSE (Lin et al., CVPR
2023, section 4 and released code) or that of CLIP-AT (Sain et al., CVPR 2023, released code) byte
for byte. Normalisation happens later, on the device. Every
function here is deterministic and processes one image.
"""

import contextlib
import io
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

Modality = Literal["sketch", "photo"]

Preprocessing = Literal["crop", "pad"]
"""How images become squares. "crop", as ZSE: sketches are cropped to the drawing, photos squashed.
"pad", as CLIP-AT: both are scaled and padded. It is a property of each system."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA"),
    "HEIF",
)
"""Pillow's names of the formats that are decoded, whatever the name of a file. Pillow decodes these
itself, and HEIF (HEIC) with `pillow_heif`. For PostScript it would start another program,
Ghostscript."""

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".avif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".heic", ".heif", ".hif"),
)
"""File name extensions of images, in lower case; case does not matter."""

LARGEST_FILE = 2**28
"""Size limit of an image file, in bytes."""

LARGEST_IMAGE = 50_000_000
"""Pixels up to which an image is decoded in full. Larger JPEGs are scaled down while decoding."""

LARGE_IMAGE = 12_000_000
"""Pixels above which images are decoded one at a time."""

INK_MAX_SUM = 300
"""A pixel is ink if R + G + B is at most this (the published threshold)."""

CROP_MARGIN = 10
"""Pixels kept around the ink's bounding box."""

_LARGE_IMAGE_LOCK = threading.Lock()

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation in EXIF -> the operation that shows the image upright."""

_ON_THE_SIDE = (5, 6, 7, 8)
"""Orientations in which width and height are exchanged."""

_JPEG = b"\xff\xd8\xff"

_PNG = b"\x89PNG\r\n\x1a\n"

_HEVC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))
"""The brands of files of images that are coded by HEVC."""

_PNG_PIXEL_CHUNKS = {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT"}
"""Optional chunks of a PNG that describe its pixels; the other ones are metadata."""


_OTHERS = (
    (re.compile(rb"\s*(?i:<!doctype|<html)"), "a web page"),
    (re.compile(rb"....ftyp(isom|mp4|avc1|qt  |M4V|3gp)", re.DOTALL), "a video"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"%PDF"), "PDF"),
)
"""Starts of files that are often called images, and what they are."""

LIGHT = 192
"""Mean grey level of visible pixels above which the transparent pixels of a sketch are black."""


class UnreadableImageError(ValueError):
    """Encoded bytes that cannot be decoded completely. The message names no file."""


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
      rgb: the pixels; may be read-only. A JPEG above `LARGEST_IMAGE` is scaled down, and others if
        `decode_file` allows it.
      width, height: of the full image in pixels, upright.
      damaged_metadata: whether the metadata (EXIF, text) could not be read. Then the image is shown
        as it is stored.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    width: int
    height: int
    damaged_metadata: bool


def read_file(path: Path) -> bytes:
    """The contents of an image file.

    Raises:
      UnreadableImageError: it is larger than `LARGEST_FILE`, or not a regular file.
      OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait forever
        raise UnreadableImageError("it is not a regular file")
    with path.open("rb") as stream:
        return stream.read(LARGEST_FILE + 1)  # `opened` refuses more than LARGEST_FILE


def opened(encoded: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image of which only the header is read. Every image of a user is opened here.

    Args:
      encoded: the contents of a file.
      formats: the accepted formats, some of `FORMATS`.

    Raises:
      UnreadableImageError: the bytes are empty, too many, of another format, or damaged.
    """
    if not encoded:
        raise UnreadableImageError("the file is empty (0 bytes)")
    if len(encoded) > LARGEST_FILE:
        raise UnreadableImageError(f"the file is larger than {LARGEST_FILE / 2**20:.0f} MiB")
    try:
        if encoded.startswith(_JPEG) and "JPEG" in formats:
            # Without Pillow's limit of pixels, because large JPEGs are scaled down.
            return JpegImagePlugin.JpegImageFile(io.BytesIO(encoded))
        if is_heif(encoded) and "HEIF" in formats:
            import pillow_heif  # takes 0.2 s

            return pillow_heif.HeifImageFile(io.BytesIO(encoded))
        known = tuple(name for name in formats if name != "HEIF")
        return Image.open(io.BytesIO(encoded), formats=known)
    except UnidentifiedImageError as error:
        kind = next((f" (it is {k})" for start, k in _OTHERS if start.match(encoded[:64])), "")
        raise UnreadableImageError(f"it is not an image of a known format{kind}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"it has too many pixels: {error}") from error
    except Exception as error:  # Pillow's parsers raise many types of errors
        raise UnreadableImageError(
            f"its header cannot be read ({type(error).__name__}: {error})"
        ) from error


def is_heif(encoded: bytes) -> bool:
    """Whether a file says in its first box that it is HEIC, an image coded by HEVC."""
    box = encoded[: min(256, int.from_bytes(encoded[:4], "big"))]
    brands = [box[place : place + 4] for place in range(8, len(box), 4)]
    return box[4:8] == b"ftyp" and not _HEVC.isdisjoint(brands)


def decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image file of one of `FORMATS`, as `decode_file` returns them."""
    return decode_file(encoded).rgb


def decode_file(
    encoded: bytes, *, smallest: int = 1, at_least: int = 0, sketch: bool = False
) -> Decoded:
    """Decodes an image of one of `FORMATS` to RGB, as an image viewer would show it.

    Applies the EXIF orientation, puts transparent pixels on white, and converts palette, grey,
    CMYK, 16-bit, 32-bit and float images to 8-bit RGB. Of several frames, decodes the first. Memory
    is bounded: see `LARGEST_FILE`, `LARGEST_IMAGE`, `LARGE_IMAGE`.

    Args:
      encoded: the contents of a file.
      smallest: minimum side in pixels.
      at_least: if not 0, a JPEG may be scaled down by 2, 4 or 8 while it is decoded, which is
        faster; each side keeps this number of pixels.
      sketch: put transparent pixels on black if they are most of the picture and the others are
        light, so that light lines remain.

    Raises:
      UnreadableImageError: the bytes are not an image, are truncated, or exceed a limit.
    """
    try:
        return _decoded(encoded, smallest, at_least, sketch)
    except UnreadableImageError as error:
        pixels_only = without_metadata(encoded)
        try:
            if pixels_only != encoded:
                found = _decoded(pixels_only, smallest, at_least, sketch)
                return found._replace(damaged_metadata=True)
        except UnreadableImageError:
            pass  # the metadata is not what is wrong
        raise error


def _decoded(encoded: bytes, smallest: int, at_least: int, sketch: bool) -> Decoded:
    problem = f"its {len(encoded)} bytes do not decode"
    with opened(encoded) as image:
        width, height = image.size
        if min(width, height) < smallest:
            raise UnreadableImageError(
                f"its {width} x {height} pixels are too small (the minimum is {smallest} on each "
                "side)"
            )
        # Progressive JPEGs are decoded in full before they are scaled.
        baseline = image.format == "JPEG" and "progressive" not in image.info
        if width * height > LARGEST_IMAGE:
            if not baseline:
                raise UnreadableImageError(
                    f"its {width} x {height} pixels are more than {LARGEST_IMAGE / 1e6:.0f} "
                    "million: save it smaller, or as a baseline (not progressive) JPEG, which "
                    "is scaled down while decoding"
                )
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
        elif at_least and image.format == "JPEG":
            image.draft("RGB", (at_least, at_least))
        scaled = image.size != (width, height)
        pixels = image.width * image.height if baseline else width * height
        with _LARGE_IMAGE_LOCK if pixels > LARGE_IMAGE else contextlib.nullcontext():
            found = _pixels(image, problem, sketch)
        if not scaled:
            return found
        turned = _orientation(image)[0] in _ON_THE_SIDE
    return found._replace(width=height if turned else width, height=width if turned else height)


def as_rgb(image: Image.Image, *, sketch: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image of Pillow, converted as `decode_file` converts those of a file.

    Args:
      image: the image.
      sketch: as for `decode_file`.

    Raises:
      UnreadableImageError: it cannot be decoded.
    """
    return _pixels(image, "it cannot be decoded", sketch).rgb


def _pixels(image: Image.Image, problem: str, sketch: bool) -> Decoded:
    """Decodes an opened image; `problem` starts the message of an error."""
    try:
        image.load()
        orientation, damaged = _orientation(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        rgb = np.asarray(_opaque(image, sketch))
    except Exception as error:  # Pillow's codecs raise OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(f"{problem} ({type(error).__name__}: {error})") from error
    return Decoded(rgb, rgb.shape[1], rgb.shape[0], damaged)


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """The orientation in the metadata, 1 if there is none, and whether it cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1), False
    except Exception:  # damaged metadata must not hide the image
        return 1, True


def without_metadata(encoded: bytes) -> bytes:
    """A PNG, JPEG, AVIF or HEIF without its metadata, for files in which Pillow cannot skip it."""
    if encoded.startswith(_PNG):
        return b"".join([_PNG, *_png_pixels(encoded)])
    if encoded.startswith(_JPEG):
        return b"".join([_JPEG[:2], *_jpeg_pixels(encoded)])
    if encoded[4:12] == b"ftypavif" or is_heif(encoded):
        end = encoded.find(b"mdat")  # after the description of the items
        return encoded[:end].replace(b"Exif", b"free") + encoded[end:]
    return encoded


def _png_pixels(encoded: bytes) -> Iterator[bytes]:
    """The chunks of a PNG that describe its pixels; a truncated chunk is the last one."""
    start = len(_PNG)
    while start < len(encoded):
        (length,) = struct.unpack(">I", encoded[start : start + 4].ljust(4, b"\0"))
        kind, end = encoded[start + 4 : start + 8], start + 12 + length
        if kind[:1].isupper() or kind in _PNG_PIXEL_CHUNKS:
            yield encoded[start:end]
        start = end


def _jpeg_pixels(encoded: bytes) -> Iterator[bytes]:
    """The segments of a JPEG without those of applications and comments.

    Adobe's (0xEE) stays, because it defines the colours. The last part is the rest of the file from
    the start of the pixels, or from what is not a segment.
    """
    start = 2
    while encoded[start : start + 1] == b"\xff" and encoded[start + 1] != 0xDA:
        marker = encoded[start + 1]
        (length,) = struct.unpack(">H", encoded[start + 2 : start + 4].ljust(2, b"\0"))
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
            yield encoded[start : start + 2 + length]
        start += 2 + length
    yield encoded[start:]


def _opaque(image: Image.Image, sketch: bool) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = "black" if sketch and _is_light(image) else "white"
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    return image.convert("RGB")


def _is_light(image: Image.Image) -> bool:
    """Whether an RGBA image is mostly transparent, and what is visible is nearly white."""
    grey, alpha = np.asarray(image.convert("L"), np.float32), np.asarray(image)[..., 3]
    return bool(0 < alpha.mean() < 128 and np.average(grey, weights=alpha) > LIGHT)


def _eight_bits(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Scales 16-bit integers and floats in [0, 1] to 8 bits; Pillow would clip them to 255.

    The format of 32-bit integers does not say which value is white: it is 255 if no value is
    larger, else 65535.
    """
    values, white = np.asarray(image, np.float32), 1 if image.mode == "F" else 65535
    if image.mode == "I" and image.format == "TIFF" and values.max() <= 255:
        white = 255
    if not (values.min() >= 0 and values.max() <= white):  # Also false for NaN.
        raise ValueError(
            f"pixel values are in [{values.min():g}, {values.max():g}], expected 0 (black) to "
            f"{white} (white)"
        )
    grey = (values / (white / 255)).round().astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return grey


def prepare_sketch(
    rgb: UInt8[np.ndarray, "h w 3"], size: int = 224, preprocessing: Preprocessing = "crop"
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crops to the drawing, scales the longer side to `size` and pads the other one to a square.

    Crops to `ink_box`, scales with OpenCV's bilinear filter, and pads with the largest value in the
    scaled image, the smaller half first. With "pad", scales with Pillow's bicubic filter and pads
    with white, without a crop. (CLIP-AT's code pads with black, but benchmarks' sketches are square
    and get no padding.)
    """
    if preprocessing == "pad":
        return _padded(rgb, size, "white")
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
    rgb: UInt8[np.ndarray, "h w 3"], size: int = 224, preprocessing: Preprocessing = "crop"
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes to `size` x `size` with Pillow's bicubic filter; the aspect ratio is not kept.

    With "pad" it is kept, and the rest is black, as in CLIP-AT's code.
    """
    if preprocessing == "pad":
        return _padded(rgb, size, "black")
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC))


def _padded(
    rgb: UInt8[np.ndarray, "h w 3"], size: int, colour: str
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """As Pillow's `ImageOps.pad`, which fails if the shorter side would be scaled to no pixel."""
    longest = max(rgb.shape[:2])
    height, width = (max(1, round(side / longest * size)) for side in rgb.shape[:2])
    scaled = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), colour)
    square.paste(scaled, (round((size - width) / 2), round((size - height) / 2)))
    return np.array(square)


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
