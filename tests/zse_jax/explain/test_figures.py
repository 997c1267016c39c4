"""Figures, checked by their elements instead of pixels."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from zse_jax.explain.figures import MUTED, RIGHT, WRONG, retrieval_grid, training_curves

TOP = np.array([[1, 3, 2, 0], [2, 0, 1, 3]])
SKETCH_LABELS, PHOTO_LABELS = np.array([0, 1]), np.array([0, 0, 1, 1])


class Photos(dict):
    """A gallery that records which photos were read."""

    def __missing__(self, index):
        self[index] = np.full((8, 8, 3), index, np.uint8)
        return self[index]


def grid(photos=None, **arguments):
    return retrieval_grid(
        np.full((2, 8, 8, 3), 255, np.uint8),
        Photos() if photos is None else photos,
        arguments.pop("top", TOP),
        sketch_labels=SKETCH_LABELS,
        photo_labels=PHOTO_LABELS,
        **arguments,
    )


def shown(figure):
    """Value of each image, in the order of drawing: sketch and photos of each row."""
    return [int(image.get_array()[0, 0, 0]) for image in figure.axes[0].images]


def test_a_dollar_sign_is_not_a_formula():
    names = ["a_$5_and_$6", "b $x^2$"]
    figure = grid(class_names=names, similarity=np.ones(TOP.shape), title=r"$\\frac{$ of $1")
    figure.savefig(io.BytesIO())
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    curves = training_curves([{"step": 1, "loss": 2.0, "$a$/mAP@all": 0.5}], title="$_$")
    curves.savefig(io.BytesIO(), format="svg")


def frames(figure):
    return [
        (
            to_hex(patch.get_edgecolor()).upper(),
            "solid" if patch.get_linestyle() in ("-", "solid") else patch.get_linestyle(),
        )
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle)
    ]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_photos_are_in_the_order_of_their_rank():
    assert shown(grid(columns=3)) == [255, 1, 3, 2, 255, 2, 0, 1]


def test_only_photos_that_are_shown_are_read():
    photos = Photos()
    grid(photos, columns=1)
    assert sorted(photos) == [1, 2]


def test_right_and_wrong_differ_by_colour_and_by_line():
    figure = grid(columns=2)
    right, wrong, sketch = (RIGHT, "solid"), (WRONG, "--"), (MUTED, "solid")
    assert frames(figure) == [sketch, right, wrong, sketch, right, wrong]


def test_with_instances_only_the_matching_photo_is_right():
    own = {"sketch_instances": np.array([3, 7]), "photo_instances": np.array([5, 3, 7, 6])}
    figure = grid(columns=2, **own)
    right, wrong, sketch = (RIGHT, "solid"), (WRONG, "--"), (MUTED, "solid")
    assert frames(figure) == [sketch, right, wrong, sketch, right, wrong]
    assert frames(grid(columns=3, **own))[2:4] == [wrong, wrong]


def test_a_row_may_end_early():
    assert shown(grid(top=np.array([[1, -1], [2, 0]]))) == [255, 1, 255, 2, 0]


def test_classes_are_named():
    names = texts(grid(columns=2, class_names=("hot-air_balloon", "a_class_with_a_very_long_name")))
    assert names[-6:] == ["hot-air balloon"] * 2 + ["a class with a v…"] * 3 + ["hot-air balloon"]


def test_without_names_labels_are_shown():
    assert texts(grid(columns=1))[-4:] == ["0", "0", "1", "1"]


def test_a_small_gallery_gives_fewer_columns():
    assert len(shown(grid(columns=10))) == 2 * (1 + 4)


def test_the_grid_is_drawn_without_a_display():
    assert png(grid(title="Unseen classes")).startswith(b"\x89PNG")


def test_the_grid_of_real_images_is_drawn(sketchy_folder):
    from PIL import Image

    files = sorted(sketchy_folder.rglob("photo/**/airplane/*.jpg"))[:4]
    photos = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    figure = grid(photos, class_names=("airplane", "zebra"))
    assert len(figure.axes[0].images) == 10
    assert png(figure)


def test_inconsistent_labels_are_an_error(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"shape \(1, 4\) .* there are 2 sketch labels and 4"):
        grid(top=TOP[:1])
    with pytest.raises(ValueError, match="photo indices up to 4"):
        grid(top=TOP + 1)


def test_similarities_are_under_photos_and_the_first_right_rank_under_the_sketch():
    similarity = np.array([[0.9, 0.8, 0.7, 0.6], [4.0, 3.0, 2.0, 1.0]], np.float32)
    instances = {"sketch_instances": np.array([3, 9]), "photo_instances": np.array([5, 3, 7, 3])}
    shown_ = texts(grid(columns=1, similarity=similarity, **instances))
    assert "0.900" in shown_
    assert "4.00" in shown_
    assert "first right: 1" in shown_
    assert "first right: > 4" in shown_
    assert "first right: 2" in texts(
        grid(columns=1, similarity=similarity, top=TOP[:, [2, 0, 1, 3]])
    )


def test_without_ground_truth_frames_are_plain():
    figure = grid(columns=2, judged=False, similarity=np.zeros((2, 4), np.float32))
    assert frames(figure) == [(MUTED, "solid")] * 6
    assert not [text for text in texts(figure) if "right" in text]


def test_stacked_curves_are_above_each_other():
    wide, narrow = (training_curves(RECORDS, stacked=x).get_size_inches() for x in (False, True))
    assert wide[0] > 2 * wide[1]
    assert narrow[0] < narrow[1]


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="Nothing to show: 2 sketches, 4 photos, 0 columns"):
        grid(columns=0)


RECORDS = [
    {"step": 0, "unseen/relation/exact/mAP@all": 0.1, "unseen/relation/voc/mAP@all": 0.2},
    {"step": 10, "train/loss": 4.0},
    {"step": 20, "train/loss": 3.0, "unseen/token/exact/mAP@all": 0.3},
    {"step": 10, "train/loss": 2.0},
    {"step": 30, "train/loss": float("nan"), "unseen/relation/exact/mAP@all": 0.4},
]


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_curves_show_the_loss_and_each_ranking():
    figure = training_curves(RECORDS)
    loss, metric = figure.axes
    assert lines(loss) == {"train": [[10, 2], [20, 3]]}  # step 10 once, no NaN
    assert lines(metric) == {"relation": [[0, 0.1], [30, 0.4]], "token": [[20, 0.3]]}
    assert png(figure).startswith(b"\x89PNG")


def test_curves_show_chance():
    _, metric = training_curves(RECORDS, chance=0.125).axes
    assert lines(metric)["chance"] == [[0, 0.125], [1, 0.125]]
    _, metric = training_curves(RECORDS, classes="validation classes").axes
    assert metric.get_title(loc="left") == "validation classes, exact/mAP@all"
    assert "chance" not in lines(metric)


def test_a_run_without_evaluations_has_one_panel():
    assert len(training_curves([{"step": 1, "loss": 1.0}]).axes) == 1


def test_no_record_is_an_error():
    with pytest.raises(ValueError, match="No record contains a finite 'loss' or 'exact/mAP@all'"):
        training_curves([{"step": 1, "images_per_second": 3.0}])
