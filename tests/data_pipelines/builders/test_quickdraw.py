"""The layout of QuickDraw Extended, and Google's drawings rendered as sketches."""

import json
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import images, loading, prepared, splits
from data_pipelines.builders import quickdraw
from data_pipelines.builders.quickdraw import drawings
from data_pipelines.builders.quickdraw.quickdraw import Quickdraw
from tests.data_pipelines.builders import trees

SPLIT = splits.get("quickdraw")

GOOGLE = {
    **{name: name.replace("_", " ") for name in SPLIT.classes},
    "crocodilian": "crocodile",
    "eiffel tower": "The Eiffel Tower",
    "hot-air_balloon": "hot air balloon",
    "motorcycle": "motorbike",
    "teddy_bear": "teddy-bear",
}
"""Class -> Google's name of its file."""

CROSS = [[[0, 255], [0, 255]], [[0, 255], [255, 0]]]


def line(key, drawing=CROSS, **fields):
    """One drawing in Google's format."""
    known = {"word": "x", "countrycode": "DE", "timestamp": "2017-03-09 00:28:55.637750 UTC"}
    return json.dumps(
        {**known, "recognized": True, "key_id": str(key), "drawing": drawing, **fields}
    )


def with_photos(root):
    """Every class with two photos."""
    return trees.write(root, [f"images/{c}/{n}.jpg" for c in SPLIT.classes for n in "ab"])


def with_drawings(root, content=None, *, folder="ndjson", name="{}.ndjson"):
    """One file per class, of two drawings; `content` maps classes to other lines."""
    for c, class_name in enumerate(SPLIT.classes):
        path = root / folder / name.format(GOOGLE[class_name])
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (content or {}).get(class_name, [line(10 * c), line(10 * c + 1)])
        path.write_text("".join(f"{text}\n" for text in lines))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with only photos, to be copied."""
    return with_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def root(photos, tmp_path):
    """A folder with only photos, which a test may change."""
    return shutil.copytree(photos, tmp_path / "QuickDraw")


def sketches(root, **options):
    """Class -> the names of its sketches, without their folder and suffix."""
    found = {}
    for file in quickdraw.scan(root, **options).images["sketch"]:
        name = file.name.removeprefix(f"sketches/{file.class_name}/").removesuffix(".png")
        found.setdefault(file.class_name, []).append(name)
    return found


def test_images_of_the_archive_are_loaded(root, tmp_path):
    trees.write(root, [f"sketches/{c}/{n}.png" for c in SPLIT.classes for n in range(3)])
    where = {"data_dir": tmp_path / "tfds", "manual_dir": root.parent}
    items = loading.load_items("quickdraw", "sketch", SPLIT.unseen, **where)
    assert np.bincount(items.labels).tolist() == [3] * 30
    assert items.names[:2] == ("sketches/bat/0.png", "sketches/bat/1.png")
    assert set(items.instances) == {""}
    assert len(loading.load_items("quickdraw", "photo", SPLIT.seen, **where)) == 160


def test_the_folder_names_of_the_archive_are_found(root):
    (root / "images").rename(root / "QuickDraw_images_final")
    trees.write(root, [f"QuickDraw_sketches_final/{c}/1.png" for c in SPLIT.classes])
    assert quickdraw.scan(root).file_count == 330


@pytest.mark.parametrize("folder", ["ndjson", "sketches"])
def test_drawings_are_loaded_as_sketches(root, tmp_path, folder):
    with_drawings(root, folder=folder)
    where = {"data_dir": tmp_path / "tfds", "manual_dir": root}
    items = loading.load_items("quickdraw", "sketch", SPLIT.unseen, **where)
    assert np.bincount(items.labels).tolist() == [2] * 30
    key = 10 * SPLIT.classes.index("bat")
    assert items.names[0] == f"sketches/bat/{key}.png"
    sketch = items.image(0, 64)
    assert sketch.min() < 100 and sketch.max() == 255


def test_google_class_names_are_recognized(root):
    with_drawings(root)
    assert set(sketches(root)) == set(SPLIT.classes)


def test_file_names_of_the_cloud_console_are_recognized(root):
    with_drawings(root, name="full_simplified_{}.ndjson")
    assert set(sketches(root)) == set(SPLIT.classes)


def test_other_google_classes_are_ignored_and_listed(root):
    with_drawings(root)
    for name in ("yoga", "ice cream"):
        (root / f"ndjson/{name}.ndjson").write_text(line(1))
    assert quickdraw.scan(root).ignored == ["ndjson/ice cream.ndjson", "ndjson/yoga.ndjson"]


def test_a_missing_class_is_named_with_the_nearest_file(root, caplog):
    with_drawings(root)
    (root / "ndjson/sea turtle.ndjson").rename(root / "ndjson/sea turtles.ndjson")
    source = quickdraw.scan(root)
    assert "sea_turtle" not in {file.class_name for file in source.images["sketch"]}
    assert "1 of 110 classes" in caplog.text
    assert "sea_turtle (did you mean sea turtles?)" in caplog.text


def test_a_class_in_two_files_is_named(root):
    with_drawings(root)
    (root / "ndjson/full_raw_bee.ndjson").write_text(line(1))
    with pytest.raises(ValueError, match=r"bee.ndjson and .*bee.ndjson contain drawings of 'bee'"):
        quickdraw.scan(root)


def test_both_drawings_and_images_of_sketches_are_ambiguous(root):
    trees.write(with_drawings(root), ["sketches/bee/1.png"])
    with pytest.raises(ValueError, match=r"drawings .*ndjson.* and folders of images .*sketches"):
        quickdraw.scan(root)


def test_missing_sketches_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"no folder .*sketches"):
        quickdraw.scan(root)


def test_the_first_recognized_drawings_are_used_and_the_others_counted(root, caplog):
    bee = [line(n, recognized=n != 1) for n in range(5)]
    with_drawings(root, {"bee": bee})
    assert sketches(root, drawings_per_class=2)["bee"] == ["0", "2"]
    assert "Using 220 drawings" in caplog.text
    assert "Skipped: 1 that" in caplog.text
    assert "in 1 of 110 files, all after the first 2 recognized" in caplog.text
    assert sketches(root, drawings_per_class=None)["bee"] == ["0", "2", "3", "4"]


def test_the_builder_limits_drawings_per_class(root, tmp_path):
    builder = Quickdraw(data_dir=tmp_path, drawings_per_class=1)
    assert len(builder.scan(with_drawings(root)).images["sketch"]) == 110


def test_a_class_without_recognized_drawings_is_named(root):
    with_drawings(root, {"bee": [line(1, recognized=False)]})
    with pytest.raises(ValueError, match=r"No recognized drawings in .*bee.ndjson"):
        quickdraw.scan(root)


BROKEN = {
    "{oops": "it is not JSON",
    "[1, 2]": "it has no strokes",
    '{"key_id": "7"}': "it has no strokes",
    line(7, []): "it has no strokes",
    line(7, [[[1, 2], [3]]]): "stroke 1 is not two lists of equally many coordinates",
    line(7, [*CROSS, [[], []]]): "stroke 3 is not two lists",
    line(7, [[[1, 2]]]): "stroke 1 is not two lists",
    line(7, [[["a"], [3]]]): "stroke 1 is not two lists",
    line(7, [7]): "stroke 1 is not two lists",
    line(7, [[[1, float("nan")], [3, 4]]]): "stroke 1 has coordinates that are not finite",
    line(7, [[[1, 1e300], [3, 4]]]): "stroke 1 has coordinates that are not finite",
}


def test_every_malformed_line_is_named_with_its_number(root, tmp_path):
    with_drawings(root, {"bee": [line(1), *BROKEN, "", line(2)]})
    with pytest.raises(ValueError, match=f"{len(BROKEN)} of ") as error:
        prepared.prepare("quickdraw", data_dir=tmp_path, manual_dir=root)
    for number, reason in enumerate(BROKEN.values(), start=2):
        assert f"line {number} of ndjson/bee.ndjson is not a drawing: {reason}" in str(error.value)


def test_malformed_lines_can_be_skipped(root, tmp_path):
    with_drawings(root, {"bee": [line(1), *BROKEN, "", line(2)]})
    where = {"data_dir": tmp_path, "manual_dir": root, "skip_unreadable": True}
    items = loading.load_items("quickdraw", "sketch", ["bee"], **where)
    assert items.names == ("sketches/bee/1.png", "sketches/bee/2.png")


def test_names_are_unique_if_keys_repeat_or_are_missing(root):
    with_drawings(root, {"bee": [line(1), line(1), json.dumps({"drawing": CROSS})]})
    assert sketches(root)["bee"] == ["1", "1_2", "line_3"]


def test_a_drawing_is_small_until_it_is_read(root):
    with_drawings(root, {"bee": [line(n, CROSS * 500) for n in range(100)]})
    found = [f for f in quickdraw.scan(root).images["sketch"] if f.class_name == "bee"]
    assert len(pickle.dumps(found)) < 100 * 150
    assert found[50].read() == found[51].read()


def drawn(strokes):
    """The rendered sketch of a drawing."""
    return drawings.render(drawings.strokes(line(1, strokes).encode()))


def test_strokes_become_black_lines_on_white():
    sketch = drawn(CROSS)
    assert sketch.shape == (256, 256)
    assert sketch[128, 127] == 0 and sketch[12, 12] < 100  # the middle, and an end
    assert (sketch[[0, -1]] == 255).all() and sketch[60, 128] == 255
    assert 0 < np.isin(sketch, [0, 255], invert=True).mean() < 0.05  # anti-aliased edges


@given(st.floats(0.01, 1e4), st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)))
def test_rendering_ignores_scale_and_offset_of_a_raw_drawing(scale, shift):
    house = [[[0, 80, 80, 0, 0], [90, 90, 30, 30, 90]], [[0, 40, 80], [30, 0, 30]]]
    raw = [
        [(np.array(axis) * scale + by).tolist() for axis, by in zip(stroke, shift, strict=True)]
        + [[17.0 * i for i in range(len(stroke[0]))]]
        for stroke in house
    ]
    difference = np.abs(drawn(raw).astype(int) - drawn(house))
    assert difference.mean() < 0.1 and drawn(house).min() == 0


def test_a_dot_is_visible():
    sketch = drawn([[[5], [5]]])
    assert sketch[127:129, 127:129].max() < 100
    assert (sketch < 255).sum() < 40


def test_a_straight_line_fills_the_width():
    ink = drawn([[[0, 200], [7, 7]]]) < 128
    columns = np.flatnonzero(ink.any(0))
    assert columns[0] == 255 - columns[-1] and 8 <= columns[0] <= 12
    assert ink.any(1).sum() == 4


def test_rendering_is_deterministic():
    assert (drawn(CROSS) == drawn(CROSS)).all()


def test_a_drawing_reads_as_png(root):
    file = quickdraw.scan(with_drawings(root)).images["sketch"][0]
    assert file.read().startswith(b"\x89PNG")
    decoded = images.decode(file.read())
    np.testing.assert_array_equal(decoded, np.stack([drawn(CROSS)] * 3, axis=-1))
