"""Byte-exact preprocessing, and decoding of all kinds of image files."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageOps

from data_pipelines import images
from tests.data_pipelines.conftest import encode
from tests.source import PACKAGES, ROOT, files


@pytest.mark.parametrize("i", range(4))
def test_sketches_equal_the_published_preprocessing_to_the_byte(golden, i):
    arrays = golden("preprocess")
    prepared = images.prepare_sketch(arrays[f"sketch{i}_in"])
    np.testing.assert_array_equal(prepared, arrays[f"sketch{i}_out"])


def test_photos_equal_the_published_preprocessing_to_the_byte(golden):
    arrays = golden("preprocess")
    np.testing.assert_array_equal(images.prepare_photo(arrays["photo_in"]), arrays["photo_out"])


@settings(max_examples=30)
@given(st.integers(20, 400), st.integers(20, 400), st.integers(16, 64), st.integers(0, 9))
def test_padded_images_equal_those_of_clip_ats_code(height, width, size, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    whole = Image.fromarray(rgb)
    for modality, colour in (("sketch", "white"), ("photo", "black")):
        found = images.PREPARE[modality](rgb, size, "pad")
        np.testing.assert_array_equal(found, ImageOps.pad(whole, (size, size), color=colour))


def test_a_padded_line_keeps_a_pixel():
    line = np.zeros((1, 400, 3), np.uint8)
    prepared = images.prepare_sketch(line, 10, "pad")
    assert (prepared[..., 0] == 0).sum() == 10


def test_a_blank_sketch_is_not_cropped():
    grey = np.full((40, 80, 3), 200, np.uint8)
    grey[:, :40] = 255
    prepared = images.prepare_sketch(grey, size=80)
    np.testing.assert_array_equal(prepared[20:60], grey)
    assert (prepared[:20] == 255).all()


def test_the_smaller_half_of_the_padding_comes_first():
    black = np.zeros((10, 5, 3), np.uint8)
    black[0] = 255
    prepared = images.prepare_sketch(black, size=10)
    np.testing.assert_array_equal(prepared[5, :, 0], [255] * 2 + [0] * 5 + [255] * 3)


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64), st.randoms())
def test_every_canvas_becomes_a_square(height, width, size, random):
    canvas = np.full((height, width, 3), 255, np.uint8)
    for _ in range(random.randrange(3)):
        canvas[random.randrange(height), random.randrange(width)] = 0
    for prepare in images.PREPARE.values():
        for preprocessing in ("crop", "pad"):
            assert prepare(canvas, size, preprocessing).shape == (size, size, 3)


def test_lossless_bytes_decode_to_what_was_encoded():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(images.decode(encode(rgb)), rgb)


def test_transparent_pixels_become_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = [255, 0, 0, 255]
    decoded = images.decode(encode(rgba))
    np.testing.assert_array_equal(decoded[:, 0], [[255, 0, 0], [255, 255, 255]])


def test_a_transparent_colour_of_a_palette_becomes_white():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    encoded = saved(palette, "PNG", transparency=0)
    np.testing.assert_array_equal(images.decode(encoded)[0, 0], [255, 255, 255])


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The image as bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def grey_png(bits: int, row: bytes, width: int, transparent: int | None = None) -> bytes:
    """A grey PNG of one row, in bit depths and with a transparency that Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    value = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + value + pixels + chunk(b"IEND", b"")


UPRIGHT = np.random.default_rng(1).integers(0, 256, (3, 5, 3), np.uint8)
"""What a viewer shows of each of `TURNED`."""

TURNED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}
"""Orientation in EXIF -> the pixels as a camera stores them."""


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_the_orientation_in_exif_is_applied(image_format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    turned = np.ascontiguousarray(TURNED[orientation])
    encoded = encode(turned, image_format, exif=exif, **options)
    np.testing.assert_array_equal(images.decode(encoded), UPRIGHT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"])
def test_damaged_exif_does_not_hide_the_image(exif):
    encoded = encode(np.zeros((8, 16, 3), np.uint8), "JPEG", exif=b"Exif\0\0" + exif)
    assert images.decode(encoded).shape == (8, 16, 3)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_damaged_metadata_is_ignored_and_reported(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    plain = encode(UPRIGHT, image_format, **options)
    if image_format == "PNG":
        damaged = plain[:33] + chunk(b"eXIf", b"garbage") + plain[33:]
    else:
        damaged = encode(UPRIGHT, image_format, exif=b"Exif\0\0garbage", **options)
    for encoded, reported in ((plain, False), (damaged, True)):
        found = images.decode_file(encoded)
        np.testing.assert_array_equal(found.rgb, UPRIGHT)
        assert (found.width, found.height, found.damaged_metadata) == (5, 3, reported)


@pytest.mark.parametrize(
    "metadata", [(b"zTXt", b"Raw\0\0" + zlib.compress(bytes(5_000_000))), (b"iTXt", b"x")]
)
def test_text_that_cannot_be_read_does_not_hide_the_pixels(metadata):
    transparent = grey_png(8, b"\0\xff", 2, 0)
    for place in (33, len(transparent) - 12):  # before and after the pixels
        damaged = transparent[:place] + chunk(*metadata) + transparent[place:]
        assert images.decode(damaged)[0, :, 0].tolist() == [255, 255]


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE0, b"JFIF\0\1"),
        (0xE1, b"Exif\0\0II*\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0MM\0*"),
        (0xED, b"Photoshop 3.0\0008BIM\4\4\7"),
        (0xFE, b""),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_segments_of_a_jpeg_do_not_hide_the_pixels(marker, content):
    for mode in ("RGB", "CMYK"):  # whose colours depend on Adobe's segment
        plain = saved(Image.new(mode, (8, 8), "red"), "JPEG")
        segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        damaged = plain[:2] + segment + plain[2:]
        np.testing.assert_array_equal(images.decode(damaged), images.decode(plain))


def test_damaged_exif_does_not_hide_the_pixels_of_an_avif():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    exif[ExifTags.Base.Make] = "somebody"
    encoded = saved(Image.fromarray(UPRIGHT.repeat(9, 0)), "AVIF", exif=exif)
    start = encoded.index(exif.tobytes().removeprefix(b"Exif\0\0"))
    found = images.decode_file(encoded[:start] + b"garbage!" + encoded[start + 8 :])
    np.testing.assert_array_equal(found.rgb, images.decode(encoded))
    assert found.damaged_metadata


@given(hnp.arrays(np.uint8, (3, 4)), st.sampled_from(["PNG", "TIFF", "BMP", "PPM", "GIF", "TGA"]))
def test_grey_becomes_three_equal_channels(grey, image_format):
    decoded = images.decode(encode(grey, image_format))
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, -1))


@given(hnp.arrays(np.uint8, (3, 4, 3)), st.sampled_from(["PNG", "GIF", "TIFF"]))
def test_a_palette_becomes_its_colours(rgb, image_format):
    palette = Image.fromarray(rgb).quantize(256)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(images.decode(saved(palette, image_format)), expected)


@given(hnp.arrays(np.uint8, (3, 4)))
def test_black_ink_on_transparency_becomes_ink_on_white(alpha):
    for colour in (np.zeros_like(alpha)[..., None], np.zeros((3, 4, 3), np.uint8)):
        sketch = np.concatenate([colour, alpha[..., None]], axis=-1)  # grey + alpha, and RGBA
        np.testing.assert_array_equal(images.decode(encode(sketch))[..., 0], 255 - alpha)


@pytest.mark.parametrize(
    ("bits", "row", "value"), [(1, b"\x40", 0), (8, b"\0\xff", 0), (16, b"\0\0\xff\xff", 0)]
)
def test_a_transparent_grey_becomes_white_at_any_bit_depth(bits, row, value):
    assert images.decode(grey_png(bits, row, 2))[0, :, 0].tolist() == [0, 255]
    assert images.decode(grey_png(bits, row, 2, value))[0, :, 0].tolist() == [255, 255]


@given(hnp.arrays(np.uint16, (2, 3)), st.sampled_from(["PNG", "TIFF", "PPM"]))
def test_sixteen_bits_are_scaled_not_clipped(grey, image_format):
    decoded = images.decode(encode(grey, image_format))
    np.testing.assert_array_equal(decoded[..., 0], (grey / 257).round())


def test_the_white_of_a_32_bit_tiff_is_that_of_its_values():
    for white, values in ((255, [0, 51, 255]), (65535, [0, 13107, 65535])):
        decoded = images.decode(saved(Image.fromarray(np.int32([values])), "TIFF"))
        assert decoded[0, :, 0].tolist() == [0, 51, 255], white


def test_sixteen_bits_of_colour_are_scaled():
    pixel = np.array([65535, 32896, 0], ">u2").tobytes()
    assert images.decode(b"P6 1 1 65535\n" + pixel).tolist() == [[[255, 128, 0]]]


def test_floats_go_from_black_to_white():
    encoded = saved(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)), "TIFF")
    assert images.decode(encoded)[0, :, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    "pixels", [np.float32([[0, 200]]), np.int32([[-5, 9]]), np.float32([[np.nan]])]
)
def test_pixels_of_unknown_scale_are_unreadable(pixels):
    with pytest.raises(images.UnreadableImageError, match=r"pixel values are in .*, expected 0"):
        images.decode(saved(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_becomes_rgb(adobe):
    """CMYK JPEGs are inverted, with or without Adobe's marker, as image viewers assume."""
    encoded = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    start = encoded.index(b"\xff\xee")
    assert encoded[start + 4 : start + 9] == b"Adobe"
    if not adobe:
        encoded = encoded[:start] + encoded[start + 16 :]
    np.testing.assert_allclose(images.decode(encoded)[4, 4], [255, 0, 0], atol=2)


def test_cmyk_tiff_becomes_rgb():
    encoded = saved(Image.new("CMYK", (2, 2), (255, 0, 0, 51)), "TIFF")
    assert images.decode(encoded)[0, 0].tolist() == [0, 204, 204]


def test_the_first_of_several_frames_is_decoded():
    first, second = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    for image_format in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        encoded = saved(first, image_format, save_all=True, append_images=[second], **options)
        assert images.decode(encoded)[0, 0].tolist() == [255, 0, 0], image_format


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_truncated_bytes_are_unreadable(image_format):
    whole = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), image_format)
    with pytest.raises(images.UnreadableImageError, match=f"{len(whole) // 2} bytes"):
        images.decode(whole[: len(whole) // 2])


@pytest.mark.parametrize("garbage", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_not_an_image_are_unreadable(garbage):
    with pytest.raises(images.UnreadableImageError):
        images.decode(garbage)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "prefix", [b"", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, 80) + bytes(18)]
)
def test_postscript_is_refused_before_a_program_is_started(prefix):
    with Image.open(io.BytesIO(prefix + POSTSCRIPT)) as image:
        assert image.format == "EPS"  # which Pillow would render with Ghostscript
    with pytest.raises(images.UnreadableImageError, match="known format .it is PostScript"):
        images.decode(prefix + POSTSCRIPT)


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, False), (6, True), (8, True)])
def test_a_jpeg_can_be_scaled_down_while_it_is_decoded(orientation, turned):
    picture = Image.radial_gradient("L").resize((104, 100)).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    encoded, other = io.BytesIO(), io.BytesIO()
    picture.save(encoded, "JPEG", exif=exif, quality=95)
    picture.save(other, "PNG")
    whole = images.decode_file(encoded.getvalue())
    small = images.decode_file(encoded.getvalue(), at_least=24)  # by 4: 26 x 25 pixels
    assert small[1:] == whole[1:] == ((100, 104, False) if turned else (104, 100, False))
    assert small.rgb.shape == ((26, 25, 3) if turned else (25, 26, 3))
    expected = Image.fromarray(whole.rgb).resize(small.rgb.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(np.asarray(expected).astype(int) - small.rgb).mean() < 2
    assert images.decode_file(encoded.getvalue(), at_least=51).rgb.shape == whole.rgb.shape
    assert images.decode_file(other.getvalue(), at_least=24).rgb.shape == (100, 104, 3)


def test_damaged_photos_of_phones_and_videos_that_are_named_jpeg_are_recognized():
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(2000)
    assert images.is_heif(heic)
    with pytest.raises(images.UnreadableImageError, match="its header cannot be read .*meta"):
        images.decode(heic)
    with pytest.raises(images.UnreadableImageError, match="known format .it is a video"):
        images.decode(b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(2000))


def test_image_files_are_opened_in_one_place():
    """So that the accepted formats and the limits of `images.opened` apply everywhere."""
    opening = re.compile(r"\b(Image\.open|imread|imdecode|decode_(image|jpeg|png|bmp|gif))\(")
    found = [
        file
        for file in files(*PACKAGES)
        if file.as_posix() != "data_pipelines/images.py"
        and opening.search((ROOT / file).read_text(encoding="utf-8"))
    ]
    assert not found


def test_limits_of_pixels_and_bytes(monkeypatch):
    monkeypatch.setattr(images, "LARGE_IMAGE", 500)
    monkeypatch.setattr(images, "LARGEST_IMAGE", 1000)
    red = np.zeros((64, 32, 3), np.uint8) + np.uint8([254, 0, 0])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    found = images.decode_file(encode(red, "JPEG", exif=exif))
    assert (found.width, found.height) == (64, 32)
    assert found.rgb.shape == (4, 8, 3)  # an eighth of each side, turned
    for encoded in (encode(red), encode(red, "JPEG", progressive=True)):
        with pytest.raises(images.UnreadableImageError, match="32 x 64 pixels are more than"):
            images.decode(encoded)
    with pytest.raises(images.UnreadableImageError, match="32 x 64 pixels are too small"):
        images.decode_file(encode(red), smallest=40)
    monkeypatch.setattr(images, "LARGEST_FILE", 10)
    with pytest.raises(images.UnreadableImageError, match="the file is larger than"):
        images.decode(encode(red))


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(images.UnreadableImageError, match="not a regular file"):
        images.read_file(tmp_path / "pipe.jpg")


# Augmentation


@given(hnp.arrays(np.uint8, (5, 7, 3)), st.integers(-7, 7), st.integers(-5, 5))
def test_a_shifted_image_repeats_its_border(image, right, down):
    moved = images.augment(image, mirrored=False, right=right, down=down)
    for y in range(5):
        for x in range(7):
            source = image[min(max(y - down, 0), 4), min(max(x - right, 0), 6)]
            np.testing.assert_array_equal(moved[y, x], source)


@given(hnp.arrays(np.uint8, (4, 6, 3)))
def test_mirroring_swaps_left_and_right(image):
    mirrored = images.augment(image, mirrored=True, right=0, down=0)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])


@pytest.mark.parametrize(
    ("line", "ground", "as_sketch"),
    [(255, 0, 0), (0, 0, 255), (255, 255, 255)],
    ids=["white on transparent", "black on transparent", "white, transparent corner"],
)
def test_light_lines_on_transparent_remain_in_a_sketch(line, ground, as_sketch):
    pixels = np.full((60, 60, 4), line, np.uint8)
    pixels[..., 3] = ground
    pixels[20:23, 5:55] = (line, line, line, 255)
    pixels[:6, :6, 3] = 0
    encoded = encode(pixels, "PNG")
    for rgb in (
        images.decode_file(encoded, sketch=True).rgb,
        images.as_rgb(Image.fromarray(pixels), sketch=True),
    ):
        assert (rgb[0, 0] == as_sketch).all() and (rgb[21, 30] == line).all()
    assert (images.decode(encoded)[0, 0] == 255).all(), "photos are on white"
