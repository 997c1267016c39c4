"""The published file lists: which file, and which image a line means."""

import numpy as np
import pytest

from data_pipelines import file_lists
from data_pipelines.loading import Items

NAMES = (
    "256x256/photo/tx_000000000000/hot dog/a.jpg", "EXTEND_image_sketchy/hot dog/a.jpg",
    "EXTEND_image_sketchy/hot dog/b.jpg", "EXTEND_image_sketchy/cat/a.jpg",
)  # fmt: skip


def photos(names=NAMES):
    classes = ("hot dog", "cat")
    labels = np.array([classes.index(name.split("/")[-2]) for name in names], np.int32)
    return Items("photo", [], np.arange(len(names)), labels, classes, ("",) * len(names), names)


@pytest.mark.parametrize(
    ("files", "part", "modality", "expected"),
    [
        (["all_photo_filelist_zero.txt", "photo_tx_0_ready_filelist_zero.txt"], "zero", "photo", 0),
        (["png_ready_filelist_train.txt", "png_ready_filelist_test.txt"], "train", "sketch", 0),
        (["ImageResized_ready_filelist_zero.txt", "cname_cid.txt"], "zero", "photo", 0),
        (["sketch_train.txt", "sketch_zero.txt"], "zero", "sketch", 1),
    ],
)
def test_lists_are_found_by_their_published_names(tmp_path, files, part, modality, expected):
    for name in files:
        (tmp_path / name).write_text("")
    assert file_lists.find(tmp_path, part, modality).name == files[expected]


def test_several_lists_are_an_error(tmp_path):
    for name in ("sketch_a_train.txt", "sketch_b_train.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(FileNotFoundError, match=r"sketch_a_train.txt, sketch_b_train.txt"):
        file_lists.find(tmp_path, "train", "sketch")


def test_a_line_means_the_image_in_its_folder(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text(
        "EXTEND_image_sketchy_ready/hot dog/a.jpg 3\n\nEXTEND_image_sketchy_ready/cat/a.jpg 1\n"
        "256x256/photo/tx_000000000000_ready/hot dog/a.jpg 3\n"
    )
    assert file_lists.select(photos(), [file]).names == (NAMES[1], NAMES[3], NAMES[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/cat/a.jpg", "line 1: .* is not PATH NUMBER"),
        ("EXTEND_image_sketchy/cat/a.jpg 1\nx/cat/a.jpg 1", "line 2: .* is listed twice"),
        ("x/cat/a.jpg 1\nx/dog/a.jpg 2", "1 of the 2 photo images .* first is x/dog/a.jpg"),
    ],
)
def test_a_wrong_list_is_an_error_that_names_the_line(tmp_path, text, message):
    file = tmp_path / "x.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        file_lists.select(photos(), [file])


def test_unreadable_images_may_be_missing(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("x/cat/a.jpg 1\nx/dog/a.jpg 2")
    assert len(file_lists.select(photos(), [file], missing_ok=True)) == 1
