"""A search can be limited to photos of folders, dates, orientations and file types."""

import datetime
import operator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.zse_jax.gallery import test_search
from tests.zse_jax.gallery.conftest import photo
from zse_jax.gallery import filters, index, photos, search, tables
from zse_jax.gallery.filters import Filter, parse

DAY = datetime.date


def taken(file, time, tag=ExifTags.Base.DateTimeOriginal, size=(48, 40)):
    """Writes a photo with a date in its metadata."""
    exif = Image.Exif()
    (exif.get_ifd(ExifTags.IFD.Exif) if tag != ExifTags.Base.DateTime else exif)[tag] = time
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(file))).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file, exif=exif)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six photos in folders with awkward names."""
    place = tmp_path_factory.mktemp("photos")
    taken(place / "a_b/one.jpg", "2021:05:31 23:59:59")
    taken(place / "a_b/deep/two.jpg", "2021:06:01 00:00:00", size=(40, 48))
    taken(place / "a%b's/three.jpg", "2022:01:01 08:00:00", size=(40, 40))
    photo(place / "axb/four.png", 4)
    photo(place / "axb/five.webp", 5)
    photo(place / "caf\udce9/six.png", 6, (40, 48))
    return place


@pytest.fixture(scope="module")
def searcher(folder, zse, tmp_path_factory):
    place = tmp_path_factory.mktemp("index") / "index"
    index.build(folder, place, zse)
    return search.Searcher(index.open(place), zse)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"folders": ["a_b"]}, "one two"),  # in SQL, _ and % could mean any text
        ({"folders": ["a_b/deep", "a%b's"]}, "three two"),
        ({"folders": ["caf\udce9"]}, "six"),
        ({"folders": ["a_"]}, ""),
        ({"after": "2021-06"}, "three two"),
        ({"before": "2021-06-01"}, "one"),
        ({"after": "2021", "before": "2022"}, "one two"),
        ({"orientation": "Landscape"}, "five four one"),
        ({"orientation": "portrait"}, "six two"),
        ({"orientation": "square"}, "three"),
        ({"types": ["png", ".WebP"]}, "five four six"),
        ({"types": ["jpg"], "orientation": "portrait", "after": "2021", "folders": ["."]}, "two"),
    ],
)
def test_only_photos_that_pass_are_found(searcher, folder, drawing, monkeypatch, given, names):
    monkeypatch.chdir(folder)
    where = parse(**given)
    found = searcher(drawing, where=where)
    assert sorted(Path(hit.path).stem for hit in found.hits) == names.split()
    assert found.photos == len(found.hits)
    assert found.about["filter"] == str(where)


def test_the_order_and_the_similarities_are_those_of_the_whole_search(searcher, drawing):
    everything = searcher(drawing)
    assert "filter" not in everything.about
    some = searcher(drawing, k=2, where=Filter(types=("jpeg",)))
    expected = [hit for hit in everything.hits if hit.path.endswith("jpg")][:2]
    assert [hit.path for hit in some.hits] == [hit.path for hit in expected]
    np.testing.assert_allclose(
        [hit.similarity for hit in some.hits], [hit.similarity for hit in expected], atol=1e-5
    )
    expanded = searcher(drawing, expand=2, where=Filter(types=("png",)))
    assert {Path(hit.path).suffix for hit in expanded.hits} == {".png"}


def test_a_filter_also_limits_an_approximate_search(searcher, monkeypatch):
    table = index.open(searcher.gallery.uri).tables
    vectors = np.random.default_rng(0).standard_normal((400, table.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    new = tables.Tables.create(f"{searcher.gallery.uri}-large", {"checkpoint": ""}, table.width)
    rows = [
        {"id": f"{i:024}", "path": f"/{'rare' if i % 100 == 7 else 'usual'}/{i}", "embedding": v}
        for i, v in enumerate(vectors)
    ]
    new.put(rows, False)
    monkeypatch.setattr(tables, "PARTITION", 20)
    new.index()
    assert new.is_approximate
    monkeypatch.setattr(tables, "PROBED", 1)  # an index that has more than are searched
    numbers, similarity = new.nearest(vectors[7], 10, Filter(folders=("/rare",)).sql)
    assert new.rows(numbers.tolist(), ["path"])[0]["path"] == "/rare/7"
    np.testing.assert_allclose(similarity, np.sort(vectors[7::100] @ vectors[7])[::-1], atol=1e-5)


def test_the_choices_of_an_index(searcher, folder):
    found = searcher.choices()
    assert dict(found.folders) == {
        str(folder): 6, f"{folder}/a_b": 2, f"{folder}/a_b/deep": 1, f"{folder}/a%b's": 1,
        f"{folder}/axb": 2, f"{folder}/caf\\xe9": 1,
    }  # fmt: skip
    assert found.types == ["jpeg", "png", "webp"]
    assert (found.first, found.last) == (DAY(2021, 5, 31), DAY(2022, 1, 1))


def test_an_index_without_photos_has_no_choices(zse, tmp_path):
    about = {"checkpoint": str(zse)}
    assert filters.choices(tables.Tables.create(tmp_path / "i", about, 8)) == ([], [], None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"after": "31.5.2021"}, r"--after=31.5.2021 is not a day: write YYYY-MM-DD"),
        ({"before": "2021-02-30"}, "--before=2021-02-30 is not a day"),
        ({"after": "2022", "before": "2021"}, "No photo was taken from 2022-01-01 on and before"),
        ({"orientation": "landscap"}, r"landscap \(did you mean landscape\?\): choose one of"),
        ({"folders": ["ftp://host"]}, "cannot start with ftp"),
    ],
)
def test_wrong_filters(given, message):
    with pytest.raises(ValueError, match=message):
        parse(**given)


def test_a_type_that_the_index_does_not_have(searcher, drawing):
    with pytest.raises(ValueError, match=r"type 'jepg' \(did you mean jpeg\?\). Its types are jp"):
        searcher(drawing, where=Filter(types=("jepg",)))
    assert not searcher(drawing, where=Filter(("/nowhere",))).hits


@pytest.mark.parametrize(
    ("tag", "time", "expected"),
    [
        (ExifTags.Base.DateTimeOriginal, "2021:05:31 12:00:00", (2021, 5, 31)),
        (ExifTags.Base.DateTimeDigitized, "2021:05:31 12:00:00.123", (2021, 5, 31)),
        (ExifTags.Base.DateTime, "2021:05:31 12:00:00", (2021, 5, 31)),
        (ExifTags.Base.DateTimeOriginal, "0000:00:00 00:00:00", None),
        (ExifTags.Base.DateTimeOriginal, "    :  :     :  :  ", None),
    ],
)
def test_the_date_of_a_photo(tmp_path, tag, time, expected):
    read = photos.read(taken(tmp_path / "a.jpg", time, tag), 32)
    assert (read.format, read.taken and read.taken.timetuple()[:3]) == ("jpeg", expected)


def test_an_index_of_an_early_version_is_upgraded_without_encoding(album, zse, tmp_path, drawing):
    place = tmp_path / "index"
    index.build(album, place, zse)
    index.Tables(place)._photos.drop_columns([*tables.DESCRIPTION])
    before = index.open(place).tables.columns("path", "embedding").to_pylist()
    searcher = search.Searcher(index.open(place), zse)
    assert len(searcher(drawing).hits) == 5
    assert len(searcher(drawing, where=Filter((f"{album}/deep",))).hits) == 1
    assert searcher.choices().types == []
    with pytest.raises(ValueError, match=r"earlier version .* of 5 photos. Run .*index sync"):
        searcher(drawing, where=Filter(types=("png",)))
    changes, _ = index.sync(album, place, zse)
    assert (changes.updated, changes.reused) == (5, 5)
    after = index.open(place).tables.columns("path", "embedding", "format").to_pylist()
    assert {row.pop("format") for row in after} == {"png"}
    by_path = operator.itemgetter("path")
    assert sorted(after, key=by_path) == sorted(before, key=by_path)
    assert index.sync(album, place, zse)[0].unchanged == 5
    searcher._refreshed = -1e9
    assert len(searcher(drawing, where=Filter(types=("png",))).hits) == 5


def test_the_program_filters(searcher, folder, drawing, capsys):
    arguments = [f"--index={searcher.gallery.uri}", f"--sketch={drawing}"]
    test_search.run(*arguments, "--type=jpg", "--after=2021-06", "--orientation=square")
    output = capsys.readouterr().out
    assert "The nearest of 1 photo," in output and "three.jpg" in output
    with pytest.raises(ValueError, match=r"No photo of the index .* is in .*nowhere"):
        test_search.run(*arguments, f"--folder={folder}/nowhere")
    with pytest.raises(ValueError, match=rf"No photo of {folder} is .*2031"):
        test_search.run(*arguments, f"--photos={folder}", "--after=2031")
