"""Preprocessing to the byte, and decoding of whatever users have on their disks."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import images
from tests.data_pipelines.conftest import encode


@pytest.mark.parametrize("i", range(4))
def test_sketches_equal_the_published_preprocessing_to_the_byte(golden, i):
    arrays = golden("preprocess")
    prepared = images.prepare_sketch(arrays[f"sketch{i}_in"])
    np.testing.assert_array_equal(prepared, arrays[f"sketch{i}_out"])


def test_photos_equal_the_published_preprocessing_to_the_byte(golden):
    arrays = golden("preprocess")
    np.testing.assert_array_equal(images.prepare_photo(arrays["photo_in"]), arrays["photo_out"])


def test_a_blank_sketch_keeps_its_whole_canvas():
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
        assert prepare(canvas, size).shape == (size, size, 3)


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
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    np.testing.assert_array_equal(images.decode(buffer.getvalue())[0, 0], [255, 255, 255])


def test_the_orientation_in_exif_is_applied():
    rgb = np.zeros((8, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees to view.
    assert images.decode(encode(rgb, "JPEG", exif=exif)).shape == (16, 8, 3)


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    np.testing.assert_array_equal(images.decode(encode(grey))[0, :, 0], [0, 100, 255])


def test_cmyk_becomes_rgb():
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG", quality=100)
    assert images.decode(buffer.getvalue()).shape == (8, 8, 3)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_truncated_bytes_are_unreadable(image_format):
    whole = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), image_format)
    with pytest.raises(images.UnreadableImageError, match=f"{len(whole) // 2} bytes"):
        images.decode(whole[: len(whole) // 2])


@pytest.mark.parametrize("garbage", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_bytes_of_no_image_are_unreadable(garbage):
    with pytest.raises(images.UnreadableImageError):
        images.decode(garbage)
