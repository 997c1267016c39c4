"""Search: the order is that of the system's rankings, and every hit has its file."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rich.console
from absl import flags
from PIL import Image, ImageDraw

import zse_jax
from data_pipelines import images
from tests.source import ROOT
from tests.zse_jax.gallery.conftest import photo, written_checkpoint
from zse_jax.gallery import index, search
from zse_jax.retrieval import expansion, scoring
from zse_jax.retrieval.calibration import Calibration
from zse_jax.runtime import cli


@pytest.fixture(scope="module")
def gallery(zse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    for number in range(12):
        photo(folder / "album" / f"p{number}.png", number)
    index.build(photos=[folder / "album"], index=folder / "index", checkpoint=zse)
    return index.open(folder / "index")


@pytest.fixture(scope="module")
def searcher(gallery):
    return search.Searcher(gallery)


def similarities(gallery, drawing, ranking):
    """File name -> similarity, computed as in an evaluation."""
    retriever = zse_jax.load(gallery.checkpoint)
    size = retriever.image_size, retriever.preprocessing
    rows = gallery.tables.columns("id", "path").to_pylist()
    photos = [
        images.prepare_photo(images.decode(gallery.file(row["id"]).read_bytes()), *size)
        for row in rows
    ]
    sketch = images.prepare_sketch(images.decode(drawing.read_bytes()), *size)
    encoded = (
        scoring.jnp.asarray(retriever.encode(scoring.jnp.asarray(x), m))
        for x, m in ((sketch[None], "sketch"), (np.stack(photos), "photo"))
    )
    found = scoring.similarity(retriever, *encoded, ranking)[0]
    return dict(zip((row["path"] for row in rows), found.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rerank", "ranking", "stage"), [(0, "token", "shortlist"), (12, "relation", "rerank")]
)
def test_the_order_is_that_of_the_systems_rankings(
    gallery, searcher, drawing, rerank, ranking, stage
):
    wanted = similarities(gallery, drawing, ranking)
    results = searcher(drawing, k=12, rerank=rerank)
    found = {hit.path: hit.similarity for hit in results.hits}
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path] == pytest.approx(value, abs=1e-4)
    assert [hit.rank for hit in results.hits] == list(range(1, 13))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert {hit.stage for hit in results.hits} == {stage}
    assert results.photos == 12


@pytest.mark.slow
def test_an_expanded_query_finds_the_same_as_in_an_evaluation(gallery, searcher, drawing):
    vectors, rows = gallery.tables.embeddings()
    sketch = searcher._encoder(searcher(drawing).sketch[None], "sketch", 1).embedding
    expected = vectors @ np.asarray(expansion.expand(sketch, vectors, 4))[0]
    results = searcher(drawing, k=12, rerank=0, expand=4)
    ids = [row["id"] for row in gallery.tables.rows(rows[np.argsort(-expected)].tolist(), ["id"])]
    assert [hit.id for hit in results.hits] == ids
    np.testing.assert_allclose(
        [hit.similarity for hit in results.hits], np.sort(expected)[::-1], atol=1e-5
    )
    assert results.rankings["shortlist"] == "token+expansion"
    assert results.about["expansion"] == "by 4 photos"
    with pytest.raises(ValueError, match="expand"):
        searcher(drawing, expand=-1)


def test_an_expanded_query_orders_the_photos_nearest_to_the_sketch(gallery, searcher, drawing):
    """Their embeddings come from memory, or, with an approximate index, from the table."""
    sketch = searcher._encoder(searcher(drawing).sketch[None], "sketch", 1).embedding
    among = searcher._shortlist(sketch[0], 6)
    found, similarity = searcher._shortlist.expanded(sketch[0], among, 3)
    assert set(found) == set(among[0])
    vectors = gallery.tables.embeddings_of(found)
    query = np.asarray(expansion.expand(sketch, vectors, 3))[0]
    np.testing.assert_allclose(similarity, vectors @ query, atol=1e-5)
    assert (np.diff(similarity) <= 0).all()


def test_only_the_head_of_the_shortlist_is_scored(searcher, drawing):
    plain = searcher(drawing, k=12, rerank=0)
    some = searcher(drawing, k=12, rerank=4)
    assert [hit.stage for hit in some.hits] == ["rerank"] * 4 + ["shortlist"] * 8
    assert {h.id for h in some.hits[:4]} == {h.id for h in plain.hits[:4]}
    assert [h.id for h in some.hits[4:]] == [h.id for h in plain.hits[4:]]
    assert len(searcher(drawing, k=3).hits) == 3


def test_features_from_the_index_or_from_files_give_equal_results(gallery, zse, drawing, tmp_path):
    folder = gallery.file(gallery.tables.columns("id")["id"][0].as_py()).parent
    index.build(photos=[folder], index=tmp_path / "bare", checkpoint=zse, features=False)
    bare = index.open(tmp_path / "bare")
    assert gallery.keeps_features and not bare.keeps_features
    kept, read = (search.Searcher(g)(drawing, k=12) for g in (gallery, bare))
    assert [hit.path for hit in kept.hits] == [hit.path for hit in read.hits]
    np.testing.assert_allclose(
        [h.similarity for h in kept.hits], [h.similarity for h in read.hits], atol=1e-5
    )


def test_missing_photos_stay_in_the_shortlist(zse, drawing, album, tmp_path):
    index.build(photos=[album], index=tmp_path / "bare", checkpoint=zse, features=False)
    searcher = search.Searcher(index.open(tmp_path / "bare"))
    (album / "p1.png").unlink()
    results = searcher(drawing, k=5)
    assert results.skipped == 1
    last = results.hits[-1]
    assert (last.path, last.stage) == (str(album / "p1.png"), "shortlist")
    with pytest.raises(FileNotFoundError, match="no longer exists"):
        searcher.explain(results.sketch, last)


def test_a_searcher_sees_an_index_that_grows(zse, drawing, album, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "REFRESH_SECONDS", 0.0)
    index.build(photos=[album / "p0.png"], index=tmp_path / "index", checkpoint=zse)
    searcher = search.Searcher(index.open(tmp_path / "index"))
    assert len(searcher(drawing).hits) == 1
    index.add(tmp_path / "index", album)
    assert len(searcher(drawing).hits) == 5
    index.remove(tmp_path / "index", album)
    assert searcher(drawing).hits == []


@pytest.mark.slow
def test_a_system_that_scores_no_pairs_ranks_by_embedding(drawing, album, tmp_path):
    clip = written_checkpoint(tmp_path / "clip", "clip_prompt")
    index.build(photos=[album], index=tmp_path / "index", checkpoint=clip)
    searcher = search.Searcher(index.open(tmp_path / "index"))
    assert not searcher.reranks
    assert searcher.retriever.preprocessing == "pad"
    results = searcher(drawing)
    wanted = similarities(searcher.gallery, drawing, "embedding")
    found = {hit.path: hit.similarity for hit in results.hits}
    assert found == {path: pytest.approx(wanted[path], abs=1e-5) for path in found}
    assert {hit.stage for hit in results.hits} == {"shortlist"}
    assert results.rankings == {"shortlist": "embedding"}
    assert searcher(drawing, rerank=0).hits == results.hits
    with pytest.raises(ValueError, match="rerank=200: ClipPrompt compares embeddings"):
        searcher(drawing, rerank=200)


def test_a_sketch_can_be_an_image_of_pillow(searcher, drawing):
    with Image.open(drawing) as image:
        for given in (image, image.convert("L"), image.convert("P")):
            results = searcher(given, k=3)
            assert [hit.id for hit in results.hits] == [h.id for h in searcher(drawing, 3).hits]
            assert results.about["sketch"] == "drawing"
        assert searcher.explain(image, results.hits[0]).panels


def test_names_that_are_not_utf8_are_written(searcher, drawing, tmp_path):
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b[1m.png"))
    drawing.rename(strange)
    results = searcher(strange, k=1)
    renamed = dataclasses.replace(
        results, hits=[dataclasses.replace(results.hits[0], file=strange)]
    )
    for text in (renamed.to_json(), renamed.to_html()):
        assert b"\x1b" not in text.encode()
    assert json.loads(results.to_json())["sketch"].endswith("caf\\xe9\\x1b[1m.png")


def test_an_index_of_an_earlier_version_cannot_write_to_the_terminal(zse, album, drawing, tmp_path):
    index.build(photos=[album / "p0.png"], index=tmp_path / "index", checkpoint=zse)
    table = index.Tables(tmp_path / "index")
    row = table.columns(*table._photos.schema.names).to_pylist()[0]
    table.put([row | {"path": "/a\x1b[1m.png"}], True)
    (hit,) = search.Searcher(index.open(tmp_path / "index"))(drawing, rerank=0).hits
    assert hit.path == "/a\\x1b[1m.png"


def test_a_hit_is_explained(searcher, drawing):
    results = searcher(drawing, k=2)
    explained = searcher.explain(drawing, results.hits[0])
    assert explained.title == f"Why photo 1 ({results.hits[0].file.name})?"
    assert explained.lines.startswith("data:image/webp;base64,")
    assert explained.panels


def test_probabilities_are_in_every_form_of_the_results(searcher, drawing, monkeypatch):
    plain = searcher(drawing, k=2)
    assert plain.likely is None and plain.match_text == ""
    assert json.loads(plain.to_json())["hits"][0]["probability"] is None
    monkeypatch.setattr(searcher, "_calibration", Calibration(0.0, 1.0))
    good = searcher(drawing, k=2)
    assert good.likely == 2
    monkeypatch.setattr(searcher, "_calibration", Calibration(0.0, -3.0))
    bad = searcher(drawing, k=2)
    assert bad.likely == 0
    for results, percent, is_bad in ((good, "73 %", False), (bad, "4 %", True)):
        console = rich.console.Console(width=200)
        with console.capture() as shown:
            console.print(results.table())
        for text in (shown.get(), results.to_html()):
            assert text.count(percent) == 2
            assert ("No good match" in text) is is_bad
        chance = json.loads(results.to_json())["hits"][0]["probability"]
        assert int(100 * chance) == int(percent[:-2])


def test_sketches_that_cannot_be_searched_with(searcher, tmp_path):
    Image.new("RGB", (50, 50), "white").save(tmp_path / "blank.png")
    (tmp_path / "page.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"The sketch .*blank.png contains no strokes"):
        searcher(tmp_path / "blank.png")
    with pytest.raises(ValueError, match=r"The sketch .*page.png cannot be used: it is not an"):
        searcher(tmp_path / "page.png")
    with pytest.raises(FileNotFoundError, match="The sketch .* does not exist"):
        searcher(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\], but this one is float64"):
        searcher(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        searcher(np.zeros((40, 40, 3), np.uint8), k=0)


def test_a_folder_of_sketches_of_which_one_cannot_be_used(gallery, drawing, tmp_path, capsys):
    for name in ("a.png", "deep/b.png"):
        (tmp_path / "sketches/deep").mkdir(parents=True, exist_ok=True)
        shutil.copy(drawing, tmp_path / "sketches" / name)
    (tmp_path / "sketches/page.png").write_bytes(b"<html>")
    output = tmp_path / "found.json"
    with pytest.raises(ValueError, match=r"1 of 3 sketches cannot be used: .*page.png"):
        run(f"--index={gallery.uri}", f"--sketch={tmp_path}/sketches", f"--output={output}")
    assert [Path(one["sketch"]).name for one in json.loads(output.read_text())] == [
        "a.png", "b.png",
    ]  # fmt: skip
    assert capsys.readouterr().out.count("The nearest of 12 photos") == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: this folder contains no image"):
        run(f"--index={gallery.uri}", f"--sketch={tmp_path}/none")


def test_one_process_answers_many_sketches(gallery, drawing, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{drawing}\n\nnothing.png\n{drawing}"))
    run(f"--index={gallery.uri}", "--interactive", "--k=2")
    first, wrong, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(first["hits"]) == 2 and first["hits"] == last["hits"]
    assert wrong["sketch"] == "nothing.png" and "does not exist" in wrong["error"]
    with pytest.raises(ValueError, match="--interactive reads the names .* leave out --sketch"):
        run(f"--index={gallery.uri}", "--interactive", f"--sketch={drawing}")


def test_an_index_without_photos_is_not_searched(zse, drawing, tmp_path):
    (tmp_path / "empty").mkdir()
    index.build(tmp_path / "empty", tmp_path / "index", zse)
    with pytest.raises(ValueError, match="contains no photos, so there is nothing to search"):
        run(f"--index={tmp_path}/index", f"--sketch={drawing}")
    with pytest.raises(ValueError, match=f"^{tmp_path}/empty contains no photos"):
        run(f"--photos={tmp_path}/empty", f"--index={tmp_path}/index", f"--sketch={drawing}")


def test_a_missing_sketch_is_named_before_photos_are_indexed(album, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.png does not exist"):
        run(f"--photos={album}", f"--index={tmp_path}/index", f"--sketch={tmp_path}/nothing.png")
    assert not (tmp_path / "index").exists()


def run(*arguments):
    options = flags.FlagValues()
    argv = ["search", *map(str, arguments)]
    search.define_flags(options, argv)
    cli.parse(options, argv)
    search.main(options)


def test_the_program_prints_a_table_and_writes_json_and_a_page(gallery, drawing, tmp_path, capsys):
    given = f"--index={gallery.uri}", f"--sketch={drawing}", "--k=3", "--rerank=5"
    run(*given, f"--output={tmp_path}/found.json")
    output = capsys.readouterr().out
    assert "The nearest of 12 photos" in output
    found = json.loads((tmp_path / "found.json").read_text())
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    names = [Path(hit["path"]).name for hit in found["hits"]]
    assert all(name in output for name in names)
    run(*given, "--explain", f"--output={tmp_path}/found.html")
    page = (tmp_path / "found.html").read_text()
    assert page.count("Why photo") >= 3
    assert all(f">{name}</b>" in page for name in names)
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_several_sketches_are_searched_with(gallery, drawing, tmp_path, capsys):
    other = tmp_path / "line.png"
    image = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(image).line((5, 5, 50, 50), fill="black", width=5)
    image.save(other)
    given = f"--index={gallery.uri}", f"--sketch={drawing}", f"--sketch={other}", "--k=2"
    run(*given, f"--output={tmp_path}/found.JSON")
    assert capsys.readouterr().out.count("The nearest of 12 photos") == 2
    first, second = json.loads((tmp_path / "found.JSON").read_text())
    assert (first["sketch"], second["sketch"]) == (str(drawing), str(other))
    run(*given, f"--output={tmp_path}/found.html")
    page = (tmp_path / "found.html").read_text()
    assert "What circle.png, line.png find" in page
    assert page.count('<article class="card query">') == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sketch=y"], "--photos is missing.* --index=my-index"),
        (["--index=x"], "--sketch is missing"),
        (["--index=x", "--sketch=y", "--output=z.txt"], r"ends with .json or .html"),
        (["--index=x", "--sketch=y", "--explain"], "--explain draws pictures"),
        (["--index=x", "--index=y", "--sketch=z"], "--index is given 2 times: give it once"),
        (["--config=c"], "takes no --config"),
    ],
)  # fmt: skip
def test_the_program_reports_wrong_flags(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)


@pytest.mark.slow
def test_the_help_has_the_flags_of_all_its_modules():
    command = [sys.executable, "-m", "zse_jax.gallery.search", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("photos", "index", "checkpoint", "sketch", "folder", "after", "type", "rerank"):
        assert re.search(rf"--(\[no\])?{name}:", done.stdout), name
    assert "coordinator_address" not in done.stdout, "only in --helpfull"


def test_what_cannot_be_a_sketch_or_says_too_little(searcher, tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match="is a folder: give an image file"):
        searcher(tmp_path)
    dot = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(dot).ellipse((95, 95, 103, 103), fill="black")
    dot.save(tmp_path / "dot.png")
    assert "A dot or a single line" in searcher(tmp_path / "dot.png", k=2).doubt
    assert "dot.png: A dot or a single line" in caplog.text
