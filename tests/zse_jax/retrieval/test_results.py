"""Evaluation results: intervals, classes, confusions, tables, JSON."""

import json

import numpy as np
import pytest
import rich
from rich.console import Console

from zse_jax.retrieval.metrics import (
    CONVENTIONS,
    METRICS,
    accuracy_at,
    chance,
    query_metrics_of,
)
from zse_jax.retrieval.ranking import rank
from zse_jax.retrieval.results import Evaluation

NAMES = ["ant", "bee", "cat", "dog"]


def evaluation(similarity, sketch_labels, photo_labels, **given):
    """Category level, by one ranking called "score"."""
    labels = np.asarray(sketch_labels), np.asarray(photo_labels)
    ranked = rank(np.asarray(similarity, np.float32), *labels)
    share = float(np.nanmean(chance(ranked)))
    return Evaluation(
        name="A split",
        by_query={"score": query_metrics_of(ranked)},
        chances=dict.fromkeys(CONVENTIONS, share),
        seconds={"metrics": 0.1},
        sketch_labels=labels[0],
        photo_labels=labels[1],
        top={"score": ranked.top},
        top_similarity={"score": ranked.top_similarity},
        **given,
    )


def random_evaluation(queries=60, gallery=300, classes=3, seed=0, **given):
    rng = np.random.default_rng(seed)
    sketch_labels, photo_labels = rng.integers(0, classes, queries), rng.integers(0, 3, gallery)
    similarity = rng.random((queries, gallery)) + 0.3 * (sketch_labels[:, None] == photo_labels)
    return evaluation(similarity, sketch_labels, photo_labels, **given)


def printed(table):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


# Intervals


def test_an_interval_is_where_means_of_other_samples_lie():
    result = random_evaluation(queries=400)
    values = result.by_query["score"]["exact"]["mAP@all"]
    low, high = result.intervals()["score"]["exact"]["mAP@all"]
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_every_value_lies_in_its_interval_which_grows_with_confidence():
    result = random_evaluation()
    narrow, wide = result.intervals(0.5)["score"], result.intervals(0.99)["score"]
    for scope, named in result.values["score"].items():
        for name, value in named.items():
            assert wide[scope][name].low <= narrow[scope][name].low <= value
            assert value <= narrow[scope][name].high <= wide[scope][name].high


def test_intervals_are_the_same_in_every_run_and_computed_once():
    first, second = random_evaluation(), random_evaluation()
    assert first.intervals() == second.intervals() != first.intervals(seed=1)
    assert first.intervals() is first.intervals()


def test_intervals_are_for_other_sketches_or_other_classes():
    result = random_evaluation(clusters=np.arange(60) // 3)
    sketches, classes = (
        result.intervals(over=over)["score"]["exact"]["mAP@all"] for over in ("sketches", "classes")
    )
    alone = random_evaluation().intervals()["score"]["exact"]["mAP@all"]
    assert len({sketches, classes, alone}) == 3
    assert "those of a photo together" in printed(result.table(intervals=True))
    by_class = random_evaluation(over="classes")
    assert "for other unseen classes" in printed(by_class.table(intervals=True))
    with pytest.raises(ValueError, match="choose one of sketches, classes"):
        result.intervals(over="photos")


@pytest.mark.filterwarnings("error")
def test_one_sketch_or_sketches_that_agree_have_an_interval_of_no_width():
    alone = evaluation([[0.1, 0.9]], [0], [0, 1])
    assert alone.intervals()["score"]["exact"]["mAP@all"] == (0.5, 0.5)
    agreed = evaluation(np.eye(2), [0, 1], [0, 1])
    assert agreed.intervals()["score"]["hits"]["P@200"] == (1, 1)


def test_sketches_without_a_value_are_not_sampled():
    rng = np.random.default_rng(0)
    similarity, labels, photos = rng.random((30, 90)), np.arange(30) % 3, np.arange(90) % 3
    extra = evaluation(
        np.concatenate([similarity, similarity]), np.append(labels, np.full(30, 7)), photos
    )
    assert extra.queries_without_match == 30
    assert extra.intervals() == evaluation(similarity, labels, photos).intervals()


@pytest.mark.parametrize("wrong", [{"confidence": 95.0}, {"confidence": 0.0}, {"resamples": 0}])
def test_an_impossible_confidence_is_an_error(wrong):
    with pytest.raises(ValueError, match="confidence=.* between 0 and 1, and resamples="):
        random_evaluation().intervals(**wrong)


# Classes


def test_classes_average_to_the_whole():
    result = random_evaluation()
    classes = result.by_class()
    assert [x.name for x in classes] == ["0", "1", "2"]
    assert sum(x.sketches for x in classes) == 60 and sum(x.photos for x in classes) == 300
    for name in METRICS:
        mean = sum(x.sketches * x.values["score"]["voc"][name] for x in classes) / 60
        assert mean == pytest.approx(result.values["score"]["voc"][name])


def test_a_class_without_photos_is_listed_without_values():
    result = random_evaluation(classes=4, class_names=NAMES)
    dog = result.by_class()[3]
    assert (dog.name, dog.photos, dog.values) == ("dog", 0, {})
    assert dog.sketches == result.queries_without_match > 0
    row = next(line for line in printed(result.class_table()).splitlines() if "dog" in line)
    assert row.count(" - ") == len(result.shown)


def test_the_class_table_begins_with_the_worst():
    similarity = [[0.9, 0.1, 0.2], [0.9, 0.8, 0.1], [0.9, 0.1, 0.8]]
    result = evaluation(similarity, [0, 1, 2], [0, 1, 2], class_names=NAMES)
    lines = printed(result.class_table()).splitlines()
    order = [name for line in lines for name in NAMES if f" {name} " in line.split("│")[0:2][-1]]
    assert order == ["bee", "cat", "ant"]
    assert "ant 100.0" in next(line for line in lines if "bee" in line)


# Confusion


def test_confusion_is_the_share_of_each_class_among_the_first_photos():
    similarity = [[4, 3, 2, 1, 0], [4, 3, 2, 1, 0]]
    result = evaluation(similarity, [0, 1], [0, 1, 1, 0, 2])
    assert result.query_classes.tolist() == [0, 1]
    assert result.gallery_classes.tolist() == [0, 1, 2]
    np.testing.assert_allclose(result.confusion("score"), [[0.5, 0.5, 0], [0.5, 0.5, 0]])
    deeper = evaluation([[4, 3, 2, 1, 0]], [1], [0, 1, 2, 1, 1])
    np.testing.assert_allclose(deeper.confusion("score"), [[1 / 3, 1 / 3, 1 / 3]])


@pytest.mark.parametrize("gallery", [40, 300, 900])
def test_its_diagonal_is_precision_at_100(gallery):
    result = random_evaluation(gallery=gallery, classes=4)
    confusion = result.confusion("score")
    np.testing.assert_allclose(confusion.sum(axis=1), 1)
    precision = [x.values["score"]["exact"]["P@100"] for x in result.by_class() if x.values]
    np.testing.assert_allclose(np.diagonal(confusion), precision)


def test_the_most_confused_pairs_come_first():
    similarity = [[0.9, 0.1, 0.2], [0.9, 0.8, 0.1], [0.9, 0.1, 0.8], [0.2, 0.1, 0.9]]
    result = evaluation(similarity, [0, 1, 2, 2], [0, 1, 2], class_names=NAMES)
    assert result.most_confused("score") == [("bee", "ant", 1.0), ("cat", "ant", 0.5)]
    assert result.most_confused("score", 1) == [("bee", "ant", 1.0)]
    text = printed(result.confusion_table())
    assert "100.0" in text and text.index("bee") < text.index("cat")


# The whole


def test_flat_names_carry_the_convention():
    result = random_evaluation()
    assert list(result.flat()) == [f"score/{c}/{name}" for c in CONVENTIONS for name in METRICS]
    assert result.flat()["score/exact/mAP@all"] == result.values["score"]["exact"]["mAP@all"]


def test_the_table_shows_percent_by_ranking_and_convention():
    result = random_evaluation()
    text = printed(result.table())
    for word in (
        "A split",
        "score",
        *CONVENTIONS,
        *result.labels.values(),
        "60 sketches x 300 photos",
    ):
        assert word in text
    assert f"{100 * result.values['score']['voc']['P@100']:.1f}" in text
    assert "Another" in printed(result.table("Another"))


def test_the_table_shows_intervals_when_asked():
    result = random_evaluation()
    low, high = result.intervals()["score"]["voc"]["mAP@all"]
    text = printed(result.table(intervals=True))
    assert f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}" in text and "95 %" in text


def test_the_caption_names_what_was_measured_and_what_was_excluded():
    notes = {"seed": 7, "excluded": ["cat", "dog"], "training_data_unknown": ["vit.npz"]}
    notes |= {"data": "folder", "split": "own", "file_lists": "none", "strides": (1, 1)}
    result = random_evaluation(classes=4, notes=notes)
    text = " ".join(printed(result.table()).split())
    left_out = f"{result.queries_without_match} sketches without a photo of their class excluded"
    for words in (f"chance {100 * result.chance:.1f}", left_out, "seed 7", "excluded cat, dog",
                  "the training data of vit.npz are not recorded"):  # fmt: skip
        assert words in text
    assert not any(word in text for word in ("split own", "lists", "strides"))


def test_fine_grained_results_name_the_ranked_photos(capsys):
    ranked = rank(np.eye(3), np.arange(3), np.arange(3))
    result = Evaluation(
        name="Chairs",
        by_query={"score": {"class": accuracy_at(ranked), "all": accuracy_at(ranked)}},
        chances={"class": 0.5, "all": 0.01},
        seconds={},
        sketch_labels=np.zeros(3, int),
        photo_labels=np.zeros(3, int),
        top={"score": ranked.top},
        top_similarity={"score": ranked.top_similarity},
        scope="ranked among",
    )
    assert result.metrics == ("Acc@1", "Acc@5", "Acc@10")
    rich.print(result.table())
    text = " ".join(capsys.readouterr().out.split())
    assert "ranked among" in text and "chance 50.0 (class), 1.0 (all)" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [3, 4])
def test_the_dict_is_json_without_nan(classes):
    result = random_evaluation(
        classes=classes, class_names=NAMES, notes={"strides": (1, np.int64(2))}
    )
    stored = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert stored["name"] == "A split" and stored["notes"] == {"strides": [1, 2]}
    assert stored["values"]["score"]["hits"].keys() == set(METRICS)
    assert len(stored["intervals_95"]["score"]["hits"]["P@100"]) == 2
    assert stored["by_class"]["ant"]["photos"] > 0
    assert np.shape(stored["confusion"]["share"]["score"]) == (3, 3)
    assert stored["confusion"]["query_classes"] == NAMES[:3]
    counts = ("queries", "gallery", "classes", "queries_without_match")
    assert [stored[name] for name in counts] == [60, 300, classes, result.queries_without_match]
    assert stored["chance"] == pytest.approx(result.chance)


@pytest.mark.parametrize(
    ("photos", "shown"),
    [
        ([300, 5], ["mAP@all", "mAP@200", "P@100", "P@200"]),
        ([199, 99], ["mAP@all", "mAP@200", "P@100"]),
        ([99, 99], ["mAP@all"]),
    ],
)
def test_metrics_deeper_than_the_photos_are_shown_on_request_only(photos, shown):
    photo_labels = np.repeat(np.arange(len(photos)), photos)
    similarity = np.random.default_rng(0).random((2, len(photo_labels)))
    result = evaluation(similarity, [0, 1], photo_labels)
    assert list(result.shown) == shown
    titles = [column.header for column in result.table().columns]
    assert all(result.labels[name] in titles for name in result.metrics)
    assert result.to_dict()["values"]["score"]["exact"].keys() == {*METRICS}


@pytest.mark.parametrize(
    ("photos", "expected"),
    [([100, 300], "P@100"), ([99, 300], "P@min(100, R)"), ([12, 99], "P@100 (R-precision)")],
)
def test_precision_with_few_relevant_photos_is_named(photos, expected):
    photo_labels = np.repeat(np.arange(3), [*photos, 5])  # no sketch is of the last class
    result = evaluation(
        np.random.default_rng(0).random((2, len(photo_labels))), [0, 1], photo_labels
    )
    assert result.labels["P@100"] == expected
    assert result.labels["mAP@200"] == "mAP@200"
    assert expected in [column.header for column in result.table().columns]
    shown = [column.header for column in result.class_table().columns]
    assert (expected in shown) == (expected != "P@100 (R-precision)")
    assert result.to_dict()["metrics"]["P@100"] == expected
