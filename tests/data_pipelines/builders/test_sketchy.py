"""The layouts of Sketchy, errors in a folder, and the metadata of the prepared data set."""

import json
import shutil

import pytest

from data_pipelines import prepared
from data_pipelines.builders import sketchy
from tests.data_pipelines.conftest import flat_image

SKETCHES = "256x256/sketch/tx_000000000000_ready"
PHOTOS = "256x256/photo/tx_000000000000_ready"


@pytest.mark.parametrize("suffix", ["_ready", ""])
def test_both_spellings_of_the_folders_are_found(new_sketchy, suffix):
    source = sketchy.scan(new_sketchy(suffix=suffix, extension=True))
    assert (len(source.images["sketch"]), len(source.images["photo"])) == (500, 375)


def test_the_parent_folder_is_accepted(new_sketchy):
    folder = new_sketchy()
    assert sketchy.scan(folder.parent).root == folder


def test_the_extension_is_optional(new_sketchy):
    assert len(sketchy.scan(new_sketchy()).images["photo"]) == 250


def test_a_sketch_is_paired_with_its_photo(sketchy_source):
    found = sketchy.scan(sketchy_source).images
    drawn = {file.name: file.instance for file in found["sketch"]}
    assert drawn[f"{SKETCHES}/airplane/n0000_1-2.png"] == "n0000_1"
    photos = {file.name: file.instance for file in found["photo"]}
    assert photos[f"{PHOTOS}/airplane/n0000_1.jpg"] == "n0000_1"
    assert photos["EXTEND_image_sketchy_ready/airplane/n0000_9.JPEG"] == ""


def test_files_are_sorted_by_name(sketchy_source):
    names = [file.name for file in sketchy.scan(sketchy_source).images["sketch"]]
    assert names == sorted(names)


def test_a_missing_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, problem in (("empty", "is empty"), ("nowhere", "does not exist")):
        folder = tmp_path / name
        with pytest.raises(FileNotFoundError, match=f"manual_dir {folder} {problem}"):
            prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=folder)
    with pytest.raises(FileNotFoundError, match="256x256/"):
        sketchy.scan(tmp_path)


def test_missing_sketches_are_an_error(new_sketchy):
    folder = new_sketchy()
    shutil.rmtree(folder / "256x256/sketch")
    with pytest.raises(FileNotFoundError, match=r"not complete.*sketch/tx_000000000000_ready"):
        sketchy.scan(folder)


def test_a_class_in_one_modality_only_is_named(new_sketchy, caplog):
    folder = new_sketchy()
    shutil.rmtree(folder / SKETCHES / "zebra")
    source = sketchy.scan(folder)
    assert "zebra" not in {file.class_name for file in source.images["sketch"]}
    assert f"1 of 125 classes have no folder in {folder / SKETCHES}" in caplog.text
    assert "zebra" in caplog.text


def test_a_class_without_photos_in_the_extension_needs_no_warning(new_sketchy, caplog):
    folder = new_sketchy(extension=True)
    shutil.rmtree(folder / "EXTEND_image_sketchy_ready" / "zebra")
    sketchy.scan(folder)
    assert "no folder" not in caplog.text


def test_an_unknown_class_suggests_the_nearest(new_sketchy):
    folder = new_sketchy()
    (folder / PHOTOS / "wine_bottle").rename(folder / PHOTOS / "wine-bottle")
    with pytest.raises(ValueError, match=r"wine-bottle \(did you mean wine_bottle\?\)"):
        sketchy.scan(folder)


def test_an_empty_class_is_named(new_sketchy):
    folder = new_sketchy()
    for file in (folder / SKETCHES / "bee").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"contain no image.*bee"):
        sketchy.scan(folder)


def damage(folder):
    """Three files that do not decode; returns their names."""
    names = [
        f"{SKETCHES}/airplane/n0000_0-1.png",
        f"{SKETCHES}/zebra/n0124_1-2.png",
        f"{PHOTOS}/zebra/n0124_0.jpg",
    ]
    for name, content in zip(names, [b"", b"GIF89a", flat_image("zebra", 0)[:45]], strict=True):
        assert (folder / name).exists()
        (folder / name).write_bytes(content)
    return names


def test_unreadable_images_are_an_error_that_lists_all(new_sketchy, tmp_path):
    folder = new_sketchy()
    names = damage(folder)
    with pytest.raises(ValueError, match="3 of 750 images") as error:
        prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=folder)
    assert all(name in str(error.value) for name in names)
    assert not (tmp_path / "sketchy/1.0.0").exists()


def test_unreadable_images_can_be_skipped_and_are_listed(new_sketchy, tmp_path, caplog):
    folder = new_sketchy()
    names = damage(folder)
    made = prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=folder, skip_unreadable=True)
    assert set(json.loads((made / "metadata.json").read_text())["unreadable"]) == set(names)
    assert "3 of 750 images" in caplog.text
    assert all(name in caplog.text for name in names)
    records, index = prepared.open_split(made, "sketch")
    assert len(records) == 498
    assert not set(names) & set(index.names)


def test_files_that_are_not_images_are_listed(new_sketchy):
    folder = new_sketchy()
    (folder / SKETCHES / "bee" / "checked.txt").write_text("ok")
    assert sketchy.scan(folder).ignored == [f"{SKETCHES}/bee/checked.txt"]


def test_the_original_bytes_are_stored(sketchy_source, data_dir):
    records, index = prepared.open_split(data_dir / "sketchy/1.0.0", "photo")
    for i in (0, 100, 374):
        assert records[index.rows[i]] == (sketchy_source / index.names[i]).read_bytes()


def test_another_source_than_the_prepared_one_is_an_error(new_sketchy, sketchy_source, data_dir):
    prepared.prepare("sketchy", data_dir=data_dir, manual_dir=sketchy_source)
    with pytest.raises(ValueError, match=r"875 images\) and does not match .* \(750 images"):
        prepared.prepare("sketchy", data_dir=data_dir, manual_dir=new_sketchy())


def test_the_real_images_are_complete(sketchy_folder):
    source = sketchy.scan(sketchy_folder)
    instances = {file.instance for file in source.images["photo"]}
    assert all(file.instance in instances for file in source.images["sketch"])
