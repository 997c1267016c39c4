"""Figures of evaluations: curves by depth, bars of classes, the map."""

import numpy as np
import pytest

from zse_jax.explain import evaluation_figures as figures

RIGHT = np.array([[True, False, True], [False, False, True]])


def test_curves_are_means_after_the_first_k_photos():
    curve = figures.depth_curve(RIGHT, np.array([2, 1]))
    assert curve.precision.tolist() == pytest.approx([0.5, 0.25, 0.5])
    assert curve.recall.tolist() == pytest.approx([0.25, 0.25, 1.0])
    assert curve.accuracy.tolist() == pytest.approx([0.5, 0.5, 1.0])


def test_sketches_without_right_photos_are_excluded():
    curve = figures.depth_curve(RIGHT, np.array([2, 0]))
    assert curve.accuracy.tolist() == [1.0, 1.0, 1.0]


def test_each_ranking_has_a_different_line():
    curve = figures.depth_curve(RIGHT, np.array([2, 1]))
    axes = figures.precision_recall({"token": curve, "relation": curve}, chance=0.1).axes[0]
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == ["token", "relation", "chance"]
    assert len({line.get_linestyle() for line in named}) == 3
    np.testing.assert_array_equal(
        named[0].get_xydata(),
        np.stack([curve.recall, curve.precision], axis=1),
    )


@pytest.mark.parametrize("draw", [figures.precision_recall, figures.found_within])
def test_no_two_rankings_have_the_same_line(draw):
    """Of many, as many are drawn as there are lines that differ."""
    curve = figures.depth_curve(RIGHT, np.array([2, 1]))
    names = ["token", "relation", *(f"relation@{k}" for k in range(10, 20))]
    lines = draw(dict.fromkeys(names, curve)).axes[0].lines
    named = [line for line in lines if line.get_label() in names]
    assert [line.get_label() for line in named] == names[: len(named)]
    looks = {(line.get_color(), line.get_linestyle()) for line in named}
    assert len(looks) == len(named) > 2


def test_fine_grained_curves_count_sketches_whose_photo_is_found():
    curve = figures.depth_curve(RIGHT, np.array([2, 1]))
    axes = figures.found_within({"relation": curve}, chance=0.25).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.5, 1.0]
    assert axes.lines[1].get_ydata().tolist() == [0.25, 0.5, 0.75]


def test_classes_are_sorted_and_have_intervals():
    figure = figures.class_bars(
        ["cat", "hot_dog"],
        np.array([0.7, 0.2]),
        np.array([[0.6, 0.75], [0.1, 0.4]]),
        metric="mAP@all", mean=0.5, chance=0.1,
    )  # fmt: skip
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hot dog", "cat"]
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.7]
    ends = axes.collections[0].get_segments()
    assert np.concatenate(ends)[:, 0].tolist() == pytest.approx([0.1, 0.4, 0.6, 0.75])
    assert {"20", "70", "mean", "chance"} <= {text.get_text() for text in axes.texts}


def clusters(classes, each=6):
    """Vectors of well-separated classes."""
    generator = np.random.default_rng(0)
    centers = np.eye(classes, 16, dtype=np.float32)
    labels = np.repeat(np.arange(classes), each)
    noise = 0.02 * generator.standard_normal((len(labels), 16), dtype=np.float32)
    return centers[labels] + noise, labels


@pytest.mark.slow
def test_the_map_preserves_neighbours_and_is_deterministic():
    vectors, labels = clusters(3)
    places = figures.project(vectors)
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(places, figures.project(vectors))


def test_a_map_needs_four_images():
    with pytest.raises(ValueError, match="4 or more"):
        figures.project(np.ones((3, 2), np.float32))


@pytest.mark.parametrize("classes", [3, 9])
def test_the_map_names_every_class(classes):
    vectors, labels = clusters(classes, each=4)
    names = [f"class_{i}" for i in range(classes)]
    axes = figures.embedding_map(vectors[:, :2], labels, labels % 2 == 0, names).axes[0]
    labels_shown = {text.get_text() for text in [*axes.texts, *axes.get_legend().get_texts()]}
    assert {f"class {i}" for i in range(classes)} | {"sketch", "photo"} <= labels_shown
