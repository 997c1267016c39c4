"""Pages of results, more like this, thumbs, probabilities, and drawings that say too little."""

import cv2
import numpy as np
import pytest

from zse_jax.gallery import index, search, sketch_input
from zse_jax.gallery.search import Feedback
from zse_jax.retrieval.calibration import Calibration

from .conftest import photo

PHOTOS = 9


@pytest.fixture(scope="module")
def searcher(zse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("feedback")
    for number in range(PHOTOS):
        photo(folder / "album" / f"p{number}.png", number)
    index.build([folder / "album"], folder / "index", zse)
    return search.Searcher(index.open(folder / "index"))


def ids(results):
    return [hit.id for hit in results.hits]


def test_pages_continue_each_other(searcher, drawing):
    whole = searcher(drawing, PHOTOS, 0)
    pages = [searcher(drawing, 4, 0, skip=skip) for skip in (0, 4, 8, 12)]
    assert [hit for page in pages for hit in page.hits] == whole.hits
    assert [hit.rank for hit in pages[1].hits] == [5, 6, 7, 8]
    assert pages[3].hits == []
    with pytest.raises(ValueError, match="skip=-1"):
        searcher(drawing, skip=-1)


def test_more_like_a_photo_finds_it_first_and_compares_no_pairs(searcher, drawing):
    last = searcher(drawing, PHOTOS, 0).hits[-1].id
    found = searcher(drawing, PHOTOS, feedback=Feedback(like=last))
    assert found.hits[0].id == last
    assert found.hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert {hit.stage for hit in found.hits} == {"shortlist"}


def test_thumbs_move_the_query_and_leave_out_what_is_wrong(searcher, drawing):
    before = searcher(drawing, PHOTOS, 0)
    wrong, right = before.hits[0].id, before.hits[-1].id
    found = searcher(drawing, PHOTOS, 0, feedback=Feedback(more=[right], fewer=[wrong]))
    assert sorted(ids(found)) == sorted(set(ids(before)) - {wrong})
    assert ids(found).index(right) < len(found.hits) - 1
    tables = searcher.gallery.tables
    vectors = [np.array(tables.by_id(one, ["embedding"])["embedding"]) for one in (right, wrong)]
    sketch = searcher._encoder(before.sketch[None], "sketch", 1).embedding[0]
    query = sketch + 0.75 * vectors[0] - 0.15 * vectors[1]
    wanted = query @ vectors[0] / np.linalg.norm(query)
    similarity = next(hit.similarity for hit in found.hits if hit.id == right)
    assert similarity == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(KeyError, match="no photo"):
        searcher(drawing, feedback=Feedback(like="0" * 24))


def test_the_probability_is_that_of_the_sketch_and_not_of_the_changed_query(
    searcher, drawing, monkeypatch
):
    monkeypatch.setattr(searcher, "_calibration", Calibration(5.0, -1.0))
    plain = searcher(drawing, PHOTOS, 0)
    for hit in plain.hits:
        assert hit.probability == pytest.approx(1 / (1 + np.exp(1 - 5 * hit.similarity)), abs=1e-5)
    wanted = {hit.id: pytest.approx(hit.probability, abs=1e-5) for hit in plain.hits}
    for changed in (
        searcher(drawing, PHOTOS, PHOTOS),
        searcher(drawing, PHOTOS, 0, expand=3),
        searcher(drawing, PHOTOS, 0, feedback=Feedback(more=[plain.hits[4].id])),
    ):
        assert {hit.id: hit.probability for hit in changed.hits} == wanted
    like = searcher(drawing, feedback=Feedback(like=plain.hits[0].id))
    assert {hit.probability for hit in like.hits} == {None}


def canvas(draw):
    pixels = np.full((512, 512, 3), 255, np.uint8)
    draw(pixels)
    return pixels


@pytest.mark.parametrize(
    "draw",
    [
        lambda p: cv2.circle(p, (100, 100), 9, (0, 0, 0), -1),
        lambda p: cv2.line(p, (100, 100), (120, 106), (0, 0, 0), 9),
        lambda p: cv2.line(p, (50, 400), (460, 80), (0, 0, 0), 9),
        lambda p: cv2.polylines(
            p, [np.array([(50, 250), (200, 256), (350, 247), (470, 252)], np.int32)], False, 0, 9
        ),
        lambda p: cv2.line(p, (100, 100), (250, 280), (0, 0, 0), 30),
    ],
    ids=["dot", "short", "line", "by hand", "thick"],
)
def test_a_dot_or_a_line_says_too_little(draw):
    assert sketch_input.says_too_little(canvas(draw))


@pytest.mark.parametrize(
    "draw",
    [
        lambda p: cv2.circle(p, (100, 100), 40, (0, 0, 0), 9),
        lambda p: cv2.ellipse(p, (256, 256), (200, 40), 0, 0, 360, (0, 0, 0), 9),
        lambda p: cv2.polylines(
            p, [np.array([(100, 400), (250, 100), (400, 400)], np.int32)], False, 0, 9
        ),
        lambda p: (
            cv2.line(p, (200, 60), (200, 450), 0, 9),
            cv2.line(p, (160, 120), (240, 120), 0, 9),
        ),
    ],
    ids=["ring", "flat", "angle", "sword"],
)
def test_a_small_simple_drawing_says_enough(draw):
    assert not sketch_input.says_too_little(canvas(draw))
