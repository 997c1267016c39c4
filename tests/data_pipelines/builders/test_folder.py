"""A user's own folder: any depth, any image type, pairs by name or from a CSV file."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from data_pipelines import class_names, images, loading, splits
from data_pipelines.builders import folder
from tests.data_pipelines.builders import trees

NAMES = (
    "sketch/cat/tom.png",
    "sketch/cat/tom-1.PNG",
    "sketch/cat/by anna (5)/tom_2.bmp",
    "sketch/grüner Hund/rex-1.gif",
    "sketch/grüner Hund/unknown.tif",
    "photo/cat/tom.JPG",
    "photo/cat/2019/felix.webp",
    "photo/grüner Hund/2020/summer/rex.jpeg",
)


@pytest.fixture
def root(tmp_path):
    """A folder that a test may change."""
    return trees.write(tmp_path / "mine", NAMES)


def pairs(root):
    """Sketch -> its photo, without the modality folder; skips unpaired sketches."""
    sketches = folder.scan(root).images["sketch"]
    return {
        sketch.name.removeprefix("sketch/"): sketch.instance.removeprefix("photo/")
        for sketch in sketches
        if sketch.instance
    }


def test_images_of_any_depth_and_type_are_loaded(root, tmp_path):
    where = {"data_dir": tmp_path / "tfds", "manual_dir": root}
    classes = ("grüner Hund", "cat")
    sketches = loading.load_items("folder", "sketch", classes, **where)
    photos = loading.load_items("folder", "photo", classes, **where)
    assert sorted(sketches.names + photos.names) == sorted(NAMES)
    assert sketches.labels.tolist() == [0, 0, 1, 1, 1]
    for items in (sketches, photos):
        shades = [int(items.image(i, 8).mean()) for i in range(len(items))]
        assert np.abs(np.subtract(shades, [NAMES.index(name) for name in items.names])).max() <= 2


@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_every_suffix_is_a_type_that_decodes(tmp_path, suffix):
    pillow_heif.register_heif_opener()
    for modality in ("sketch", "photo"):
        path = tmp_path / modality / "cat" / f"1{suffix.upper()}"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 8), "red").save(path, Image.registered_extensions()[suffix])
    (photo,) = folder.scan(tmp_path).images["photo"]
    decoded = images.decode(photo.read())
    assert decoded.shape == (8, 16, 3)
    np.testing.assert_allclose(decoded[4, 8], [255, 0, 0], atol=4)


def test_pairs_reach_the_items(root, tmp_path):
    where = {"data_dir": tmp_path / "tfds", "manual_dir": root}
    sketches = loading.load_items("folder", "sketch", ["cat"], **where)
    photos = loading.load_items("folder", "photo", ["cat"], **where)
    assert set(photos.instances) == set(photos.names)
    assert set(sketches.instances) == {"photo/cat/tom.JPG"}


def test_the_parent_folder_is_accepted(root):
    assert folder.scan(root.parent).root == root


def test_names_pair_with_or_without_a_number(root):
    assert pairs(root) == {
        "cat/tom.png": "cat/tom.JPG",
        "cat/tom-1.PNG": "cat/tom.JPG",
        "cat/by anna (5)/tom_2.bmp": "cat/tom.JPG",
        "grüner Hund/rex-1.gif": "grüner Hund/2020/summer/rex.jpeg",
    }


def test_the_whole_name_has_priority_over_the_name_without_number(root):
    trees.write(root, ["photo/cat/tom-1.jpg"])
    assert pairs(root)["cat/tom-1.PNG"] == "cat/tom-1.jpg"
    assert pairs(root)["cat/tom.png"] == "cat/tom.JPG"


def test_names_pair_only_within_their_class(root):
    trees.write(root, ["sketch/cat/rex.png"])
    assert "cat/rex.png" not in pairs(root)


def test_equal_subfolders_disambiguate_equal_names(root):
    trees.write(root, [f"{m}/cat/{day}/1.png" for m in ("sketch", "photo") for day in "ab"])
    found = pairs(root)
    assert (found["cat/a/1.png"], found["cat/b/1.png"]) == ("cat/a/1.png", "cat/b/1.png")


def test_a_name_of_several_photos_is_reported_and_not_paired(root, caplog):
    trees.write(root, ["photo/cat/a/1.png", "photo/cat/b/1.png", "sketch/cat/1-1.png"])
    assert "cat/1-1.png" not in pairs(root)
    assert "1 sketch has the name of several photos" in caplog.text
    assert "sketch/cat/1-1.png: photo/cat/a/1.png, photo/cat/b/1.png" in caplog.text


def test_unpaired_sketches_are_reported(root, caplog):
    pairs(root)
    assert "1 of 5 sketches" in caplog.text
    assert "sketch/grüner Hund/unknown.tif" in caplog.text


def test_names_pair_in_any_unicode_normalisation(root):
    trees.write(root, ["sketch/cat/caf\u00e9.png", "photo/cat/cafe\u0301.png"])
    assert pairs(root)["cat/caf\u00e9.png"] == "cat/cafe\u0301.png"


def test_a_csv_file_replaces_pairing_by_name(root):
    (root / "pairs.csv").write_text(
        "\ufeffsketch,photo,artist\r\nsketch/cat/tom.png,./photo/cat/2019/felix.webp,me\r\n\r\n"
        '"sketch/cat/by anna (5)/tom_2.bmp",photo/cat/tom.JPG,"anna, 5"\r\n'
    )
    assert pairs(root) == {
        "cat/tom.png": "cat/2019/felix.webp",
        "cat/by anna (5)/tom_2.bmp": "cat/tom.JPG",
    }


@pytest.mark.parametrize(
    ("form", "encoding"),
    [
        ("sketch\\cat\\tom.png,photo\\cat\\2019\\felix.webp", "utf-8"),
        ("sketch/cat/tom.png;photo/cat/2019/felix.webp", "utf-8-sig"),
        ("sketch/cat/tom.png\tphoto/cat/2019/felix.webp", "utf-16"),
        ("{root}/sketch/cat/tom.png,{root}/photo/cat/2019/felix.webp", "utf-8"),
    ],
    ids=["backslashes", "semicolons", "tabs", "absolute"],
)
def test_csv_files_of_spreadsheets_and_of_windows(root, form, encoding):
    separator = next(mark for mark in ",;\t" if mark in form)
    lines = f"sketch{separator}photo\r\n{form.format(root=root)}\r\n"
    (root / "pairs.csv").write_bytes(lines.encode(encoding))
    assert pairs(root) == {"cat/tom.png": "cat/2019/felix.webp"}


def test_a_csv_file_with_only_a_header_means_no_pairs(root):
    (root / "pairs.csv").write_text("sketch,photo\n")
    assert pairs(root) == {}


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("photo,drawing\n", "first line of .*pairs.csv must be sketch,photo, .* 'photo,drawing'"),
        ("", "first line of .*pairs.csv must be sketch,photo, .* ''"),
        (
            "sketch,photo\nsketch/cat/tim.png,photo/cat/tom.JPG\n",
            r"line 2: there is no sketch 'sketch/cat/tim.png' \(did you mean sketch/cat/tom.png\?",
        ),
        (
            "sketch,photo\n\nsketch/cat/tom.png,photo/x/y.jpg\n",
            "line 3: there is no photo 'photo/x",
        ),
        ("sketch,photo\nsketch/cat/tom.png\n", "line 2: the photo is missing"),
        (
            "sketch,photo\nsketch/cat/tom.png,photo/grüner Hund/2020/summer/rex.jpeg\n",
            "line 2: sketch/cat/tom.png has class 'cat', but its photo .* has class 'grüner Hund'",
        ),
        (
            "sketch,photo\nsketch/cat/tom.png,photo/cat/tom.JPG\n"
            "sketch/cat/tom.png,photo/cat/2019/felix.webp\n",
            "line 3: sketch/cat/tom.png is paired with .*felix.webp, but in line 2 with .*tom.JPG",
        ),
    ],
)
def test_a_wrong_line_of_the_csv_file_is_named(root, lines, error):
    (root / "pairs.csv").write_text(lines)
    with pytest.raises(ValueError, match=error):
        folder.scan(root)


def test_at_most_20_wrong_lines_are_listed(root):
    (root / "pairs.csv").write_text("sketch,photo\n" + "a,b\n" * 1000)
    with pytest.raises(ValueError, match=r"(?s)at most 20 .*line 21: ") as error:
        folder.scan(root)
    assert "line 22" not in str(error.value)


def test_a_csv_file_in_another_encoding_is_an_error(root):
    (root / "pairs.csv").write_bytes("sketch,photo\nsketch/grüner Hund,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match="pairs.csv is not a CSV file in UTF-8"):
        folder.scan(root)


def test_a_class_of_one_modality_suggests_the_nearest(root):
    trees.write(root, ["sketch/kat/1.png", "photo/bird/1.png"])
    (root / "photo/cat").rename(root / "photo/Cat")
    with pytest.raises(
        ValueError, match=r"cat \(did you mean Cat\?\), kat.*2 of 3 in .*: Cat .*bird"
    ):
        folder.scan(root)


def test_a_class_without_images_is_named(root):
    for modality in ("sketch", "photo"):
        (root / modality / "dog").mkdir()
    with pytest.raises(ValueError, match="1 of 3 class folders in .* contain no image .*dog"):
        folder.scan(root)


def test_images_outside_of_class_folders_are_an_error(tmp_path):
    root = trees.write(tmp_path, ["sketch/1.png", "photo/1.png"])
    with pytest.raises(ValueError, match="sketch has no class folders"):
        folder.scan(root)


def test_a_missing_modality_is_named(tmp_path):
    root = trees.write(tmp_path, ["sketch/cat/1.png"])
    with pytest.raises(FileNotFoundError, match=r"no folder .*photo"):
        folder.scan(root)


def test_hidden_files_and_other_file_types_are_ignored_and_listed(root):
    hidden = ["cat/.DS_Store", "cat/deep/._1.png", "cat/deep/notes.txt", "cat/.git/1.png"]
    trees.write(root, [f"sketch/{name}" for name in [*hidden, "stray.png"]])
    expected = ["stray.png", "cat/.DS_Store", "cat/.git", "cat/deep/._1.png", "cat/deep/notes.txt"]
    assert folder.scan(root).ignored == [f"sketch/{name}" for name in expected]


def test_thumbnails_trash_and_resource_forks_are_no_images(root):
    thumbnails = [f"photo/cat/@eaDir/tom.JPG/{size}.jpg" for size in ("XL", "M")]
    others = ["sketch/cat/._tom.png", "photo/cat/Thumbs.db", "photo/cat/#recycle/old.jpg"]
    folders = ["photo/@eaDir/x.jpg", "sketch/__MACOSX/cat/1.png", "sketch/.git/1.png"]
    trees.write(root, [*thumbnails, *others, *folders])
    found = folder.scan(root)
    assert sorted(f.name for files in found.images.values() for f in files) == sorted(NAMES)
    left_out = {"photo/cat/@eaDir", "photo/cat/#recycle", "photo/@eaDir", "sketch/.git"}
    left_out |= {"sketch/__MACOSX", "sketch/cat/._tom.png", "photo/cat/Thumbs.db"}
    assert set(found.ignored) == left_out


def test_pipes_are_ignored_and_folders_linked_twice_are_listed_once(root):
    os.mkfifo(root / "photo/cat/pipe.jpg")
    (root / "photo/cat/again").symlink_to("2019")
    found = folder.scan(root)
    assert len(found.images["photo"]) == 3
    assert {"photo/cat/pipe.jpg", "photo/cat/again"} >= set(found.ignored) > {"photo/cat/pipe.jpg"}


def test_files_that_cannot_be_stored_are_all_reported_by_the_check(root):
    for name in (b"photo/cat/caf\xe9.jpg", b"sketch/cat/\xe9/1.png", b"sketch/cat/\xe9.txt"):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (root / "photo/cat/up").symlink_to("..")
    with splits.collecting_errors() as errors:
        found = folder.scan(root)
    assert sorted(f.name for files in found.images.values() for f in files) == sorted(NAMES)
    assert len(errors) == 3
    assert all("Rename the file" in str(e) or "Remove it" in str(e) for e in errors)
    assert "photo/cat/caf\\xe9.jpg" in found.ignored
    with pytest.raises(ValueError, match=r"caf\\udce9.jpg' in .*cat is not UTF-8"):
        (root / "photo/cat/up").unlink()
        (root / "sketch" / "cat" / os.fsdecode(b"\xe9") / "1.png").unlink()
        folder.scan(root)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_has_one_name_however_its_folders_are_encoded(root, tmp_path, form):
    names = [unicodedata.normalize(form, f"sketch/Café /{i}.png") for i in range(2)]
    names += [unicodedata.normalize("NFC", "photo/Café/1.jpg")]
    names += [unicodedata.normalize("NFD", "photo/Café/2.jpg")]
    trees.write(root, names)
    found = folder.scan(root)
    for modality in ("sketch", "photo"):
        assert [f.class_name for f in found.images[modality]].count("Café") == 2
    where = {"data_dir": tmp_path / "tfds", "manual_dir": root}
    (cafe,) = class_names.listed(unicodedata.normalize("NFD", '"Café"'))
    assert len(loading.load_items("folder", "photo", [cafe], **where)) == 2


def test_links_are_followed_and_cycles_are_an_error(root):
    elsewhere = trees.write(root.parent / "elsewhere", ["1.png"])
    (root / "photo/cat/more").symlink_to(elsewhere)
    assert "photo/cat/more/1.png" in {file.name for file in folder.scan(root).images["photo"]}
    (root / "photo/cat/2019/up").symlink_to("..")
    with pytest.raises(ValueError, match=r"cat/2019/up points to"):
        folder.scan(root)
