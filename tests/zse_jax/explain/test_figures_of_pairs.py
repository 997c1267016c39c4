"""Figures of pairs: which places are joined, and in which colours."""

import io

import numpy as np
import pytest

from zse_jax.explain import pair_figures
from zse_jax.explain.correspondence import Explanation
from zse_jax.explain.style import FOR, inline_svg

SKETCH, PHOTO = np.full((32, 32, 3), 255, np.uint8), np.full((32, 32, 3), 90, np.uint8)


def explanation(**changed):
    """One pair of 2 x 2 places: 0 and 1 contain strokes and match photo places 3 and 2."""
    match = np.zeros((1, 4, 4), np.float32)
    match[0, 0, 3], match[0, 1, 2], match[0, 2, 0] = 0.9, 0.8, 1.0
    attribution = np.zeros_like(match)
    attribution[0, 0, 3], attribution[0, 1, 2] = 0.1, 0.4
    made = Explanation(
        similarity=np.ones(1, np.float32),
        match=match,
        attribution=attribution,
        sketch_relevance=attribution.sum(axis=2),
        photo_relevance=attribution.sum(axis=1),
        best=match.argmax(axis=2),
        mutual=np.array([[True, True, False, False]]),
        ink=np.array([[0.2, 0.3, 0.0, 0.0]], np.float32),
        evidence="made by hand",
    )
    return made._replace(**changed)


def test_only_places_with_strokes_get_lines_largest_weight_first():
    found = pair_figures.matched_places(explanation(), 0)
    assert [(line.sketch, line.photo) for line in found] == [(1, 2), (0, 3)]
    assert [line.weight for line in found] == pytest.approx([1.0, 0.25])


def test_mutual_best_matches_come_before_all_others():
    mutual = np.array([[True, False, False, False]])
    found = pair_figures.matched_places(explanation(mutual=mutual), 0)
    assert [(line.sketch, line.mutual) for line in found] == [(0, True), (1, False)]


def test_without_positive_attribution_the_similarity_is_used():
    attribution = -np.ones((1, 4, 4), np.float32)
    found = pair_figures.matched_places(explanation(attribution=attribution), 0)
    assert [line.sketch for line in found] == [0, 1]


def test_there_are_no_more_lines_than_asked_for():
    assert len(pair_figures.matched_places(explanation(), 0, most=1)) == 1


def test_thickness_shows_the_weight_and_dashes_what_is_not_mutual():
    mutual = np.array([[False, True, False, False]])
    figure = pair_figures.lines(SKETCH, PHOTO, explanation(mutual=mutual), 0)
    thin, thick = sorted(figure.axes[0].lines, key=lambda line: line.get_linewidth())
    assert thick.get_linewidth() == pytest.approx(4.0)
    assert thin.get_linewidth() == pytest.approx(1.6)
    assert thick.get_linestyle() == "-"
    assert thin.get_linestyle() == "--"


def test_numbers_are_at_both_ends():
    figure = pair_figures.lines(SKETCH, PHOTO, explanation(), 0)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "1", "2", "2"]


def test_an_empty_sketch_gets_no_lines():
    blank = explanation(ink=np.zeros((1, 4), np.float32), mutual=np.zeros((1, 4), bool))
    assert pair_figures.matched_places(blank, 0) == []
    assert pair_figures.lines(SKETCH, PHOTO, blank, 0).axes[0].lines[:] == []
    assert pair_figures.heat_maps(SKETCH, PHOTO, blank, 0)


def test_heat_is_orange_where_positive_purple_where_negative_and_absent_at_zero():
    values = np.array([1.0, 0.0, 0.0, -1.0], np.float32)
    image = pair_figures.heat_overlay(SKETCH, values).astype(int)
    size = len(image)
    positive, nothing, negative = image[0, 0], image[0, size - 1], image[size - 1, size - 1]
    assert positive[0] > positive[2] + 50
    assert negative[2] > negative[0] + 20
    assert np.ptp(nothing) < 10
    assert FOR == "#B35806"


def test_a_heat_map_needs_a_square_grid():
    with pytest.raises(ValueError, match="not form a square grid"):
        pair_figures.heat_overlay(SKETCH, np.ones(5, np.float32))


def test_relevance_alone_is_shown_of_systems_without_attention():
    maps = pair_figures.heat_maps(SKETCH, PHOTO, explanation(), 0)
    assert [(found.name, found.side) for found in maps] == [
        ("relevance", "sketch"), ("relevance", "photo"),
    ]  # fmt: skip


def test_attention_of_the_photo_is_that_of_the_strokes():
    attention = np.zeros((1, 4, 4), np.float32)
    attention[0, 0, 1] = attention[0, 1, 1] = 1.0  # strokes attend to place 1
    attention[0, 2, 2] = attention[0, 3, 2] = 1.0  # blank paper attends to place 2
    shown = pair_figures.heat_maps(
        SKETCH,
        PHOTO,
        explanation(sketch_attention=attention, photo_attention=attention.swapaxes(1, 2)),
        0,
    )
    image = next(x.image for x in shown if (x.name, x.side) == ("attention", "photo")).astype(int)
    assert image[0, -1, 0] > image[0, -1, 2] + 50
    assert np.ptp(image[-1, 0]) < 10


def test_the_figure_of_an_explanation_names_its_evidence():
    figure = pair_figures.explanation_figure(
        SKETCH, PHOTO, explanation(), 0, syntheses={"synthesis": SKETCH}, title="Why a_$5_and_$6?"
    )
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "Why a_$5_and_$6?" in words
    assert "Evidence: made by hand." in words.replace("\n", " ")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_inline_svg_uses_the_colours_of_the_page_and_unique_ids():
    figure = pair_figures.lines(SKETCH, PHOTO, explanation(), 0)
    first, second = (inline_svg(figure, text) for text in ("a <pair>", "another"))
    assert 'aria-label="a &lt;pair&gt;"' in first
    assert "var(--muted)" in first
    assert "#777777" not in first
    names = [{part.split('"')[0] for part in svg.split(' id="')[1:]} for svg in (first, second)]
    assert names[0]
    assert not names[0] & names[1]
    assert all(f"#{name}" in first for name in names[0])
