"""The layouts of TU-Berlin Extended, and errors in a folder."""

import shutil

import numpy as np
import pytest

from data_pipelines import loading, splits
from data_pipelines.builders import tuberlin
from tests.data_pipelines.builders import trees

SPLIT = splits.get("tuberlin")


def tree(root, suffix="_ready"):
    """Every class with one sketch and one photo, hot-dog with three, named as in the archives."""
    names = [f"png{suffix}/{name}/{c + 1}.png" for c, name in enumerate(SPLIT.classes)]
    names += [f"ImageResized{suffix}/{name}/n0_1.JPEG" for name in SPLIT.classes]
    names += [f"ImageResized{suffix}/hot-dog/{name}" for name in ("image (3).jpg", "é.JPG")]
    return trees.write(root, names)


@pytest.fixture
def folder(tmp_path):
    """A folder that a test may change."""
    return tree(tmp_path / "TUBerlin")


def test_sketches_and_photos_become_images_of_their_classes(folder, tmp_path):
    where = {"data_dir": tmp_path / "tfds", "manual_dir": folder}
    photos = loading.load_items("tuberlin", "photo", SPLIT.unseen, **where)
    sketches = loading.load_items("tuberlin", "sketch", SPLIT.unseen, **where)
    assert np.bincount(photos.labels).tolist() == [1] * 30
    assert np.bincount(sketches.labels).tolist() == [1] * 30
    assert sketches.names[0].startswith("png_ready/banana/")
    assert photos.image(0, 8).shape == (8, 8, 3)
    assert set(photos.instances) == set(sketches.instances) == {""}


@pytest.mark.parametrize("suffix", ["_ready", ""])
def test_both_spellings_of_the_folders_are_found_also_one_deeper(tmp_path, suffix):
    root = tree(tmp_path / "TUBerlin", suffix)
    for manual_dir in (root, tmp_path):
        source = tuberlin.scan(manual_dir)
        assert source.root == root
        assert {m: len(files) for m, files in source.images.items()} == {
            "sketch": 250,
            "photo": 252,
        }


def test_suffixes_match_in_any_case(folder):
    found = {file.name for file in tuberlin.scan(folder).images["photo"]}
    photos = folder / "ImageResized_ready/hot-dog"
    assert {p.suffix for p in photos.iterdir()} == {".JPEG", ".jpg", ".JPG"}
    assert {f"ImageResized_ready/hot-dog/{p.name}" for p in photos.iterdir()} <= found


def test_files_are_sorted_by_name(folder):
    names = [file.name for file in tuberlin.scan(folder).images["photo"]]
    assert names == sorted(names)  # "door handle/" comes before "door/".


def test_a_macosx_folder_is_ignored(folder):
    trees.write(folder.parent, ["__MACOSX/png_ready/ant/._1.png"])
    assert tuberlin.scan(folder.parent).root == folder


def test_two_data_sets_in_a_folder_are_ambiguous(folder):
    shutil.copytree(folder, folder.with_name("copy"))
    with pytest.raises(FileNotFoundError, match=r"several: .*TUBerlin.*Set manual_dir"):
        tuberlin.scan(folder.parent)


def test_a_missing_folder_is_named(folder):
    shutil.rmtree(folder / "ImageResized_ready")
    with pytest.raises(FileNotFoundError, match=r"not complete.*ImageResized_ready or .*Resized"):
        tuberlin.scan(folder)
    with pytest.raises(FileNotFoundError, match=r"contains png_ready/.*found none"):
        tuberlin.scan(folder / "nowhere")


def test_a_missing_class_is_named(folder, caplog):
    shutil.rmtree(folder / "png_ready/bear (animal)")
    tuberlin.scan(folder)
    assert "1 of 250 classes have no folder in" in caplog.text
    assert "bear (animal)" in caplog.text


def test_an_unknown_class_suggests_the_nearest(folder):
    (folder / "png_ready/car (sedan)").rename(folder / "png_ready/car_(sedan)")
    with pytest.raises(ValueError, match=r"car_\(sedan\) \(did you mean car \(sedan\)\?\)"):
        tuberlin.scan(folder)


def test_an_empty_class_is_named(folder):
    shutil.rmtree(folder / "ImageResized_ready/t-shirt")
    trees.write(folder, ["ImageResized_ready/t-shirt/._1.jpg"])
    with pytest.raises(ValueError, match=r"1 of 250 .* contain no image.*t-shirt"):
        tuberlin.scan(folder)


def test_an_unreadable_file_is_named_with_the_reason(folder, tmp_path):
    (folder / "ImageResized_ready/hot-dog/image (3).jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(
        ValueError, match=r"hot-dog/image \(3\).jpg: it is not an image of a known format"
    ):
        loading.load_items("tuberlin", "photo", SPLIT.seen, data_dir=tmp_path, manual_dir=folder)


def test_a_broken_link_is_reported_as_unreadable(folder, tmp_path):
    (folder / "png_ready/ant/gone.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"png_ready/ant/gone.png: .*No such file"):
        loading.load_items("tuberlin", "photo", SPLIT.seen, data_dir=tmp_path, manual_dir=folder)


def test_a_name_that_is_not_utf8_is_an_error(folder):
    odd = b"caf\xe9.png"  # Latin-1
    (folder / "png_ready/ant" / odd.decode("utf-8", "surrogateescape")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"caf\\udce9.png' in .*ant is not UTF-8"):
        tuberlin.scan(folder)
