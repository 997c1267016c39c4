"""The protocols, from image batches to numbers."""

from typing import ClassVar

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings

from tests.zse_jax.retrieval.fakes import batches, fake, images
from zse_jax.retrieval import runner
from zse_jax.retrieval.encoding import encode
from zse_jax.retrieval.metrics import CONVENTIONS, METRICS, rank_metrics
from zse_jax.retrieval.protocols import fine_grained, zero_shot
from zse_jax.retrieval.ranking import rank
from zse_jax.retrieval.scoring import similarity
from zse_jax.retrieval.storage import Storage
from zse_jax.retrievers.base import Encoder

SKETCH_LABELS = np.array([0, 0, 1, 2, 2])
PHOTO_LABELS = np.tile(np.arange(3), 7)


class Table(Encoder):
    """Scores pairs by a given matrix: an image is the number of its row or column."""

    rankings: ClassVar[dict] = {"table": "score"}
    image_size = 1

    def __init__(self, scores):
        self.scores = nnx.Variable(jnp.asarray(scores, jnp.float32))

    def encode(self, images, modality):
        pixel = images[:, 0, 0].astype(jnp.int32)
        return pixel[:, 0] * 256 + pixel[:, 1]

    def embedding(self, features):
        return jnp.ones((len(features), 1))

    def score(self, sketches, photos):
        return self.scores[...][sketches[:, None], photos]


def numbered(count):
    numbers = np.arange(count)
    pixel = np.stack([numbers // 256, numbers % 256, numbers * 0], axis=-1).astype(np.uint8)
    return pixel[:, None, None]


def evaluate(retriever=None, sketch_labels=SKETCH_LABELS, **arguments):
    return zero_shot(
        retriever or fake(),
        batches(images(len(sketch_labels), 1), sketch_labels),
        batches(images(len(PHOTO_LABELS), 2), PHOTO_LABELS),
        **arguments,
    )


@pytest.fixture(scope="module")
def measured():
    return evaluate()


def similarities(sketch_labels=SKETCH_LABELS):
    retriever = fake()
    sketches, photos = (
        encode(retriever, batches(images(len(labels), seed), labels), modality)[0]
        for labels, seed, modality in ((sketch_labels, 1, "sketch"), (PHOTO_LABELS, 2, "photo"))
    )
    return {name: similarity(retriever, sketches, photos, name) for name in retriever.rankings}


@pytest.mark.parametrize("prefix", ["", "few_"])
def test_reproduces_the_published_evaluator_end_to_end(golden, prefix):
    case = {name: golden("metrics")[prefix + name] for name in ("distance", "result")}
    sketch_labels, photo_labels = (
        golden("metrics")[f"{prefix}{name}_label"] for name in ("query", "gallery")
    )
    queries, gallery = case["distance"].shape
    result = zero_shot(
        Table(-case["distance"]),
        batches(numbered(queries), sketch_labels, size=16),
        batches(numbered(gallery), photo_labels, size=64),
        tile=(7, 50),
    )
    measured = [result.values["table"]["voc"][name] for name in METRICS]
    np.testing.assert_allclose(measured, case["result"], rtol=0, atol=1e-5)
    through_the_function = rank_metrics(-case["distance"], sketch_labels, photo_labels, ap="voc")
    assert result.values["table"]["voc"] == pytest.approx(through_the_function, abs=1e-12)


def test_measures_every_ranking_in_every_convention(measured):
    expected = similarities()
    assert list(measured.values) == list(expected) == ["distance", "cosine"]
    for ranking, scores in expected.items():
        ranked = rank(scores, SKETCH_LABELS, PHOTO_LABELS)
        np.testing.assert_array_equal(measured.top[ranking], ranked.top)
        np.testing.assert_array_equal(measured.top_similarity[ranking], ranked.top_similarity)
        for convention in CONVENTIONS:
            values = rank_metrics(scores, SKETCH_LABELS, PHOTO_LABELS, ap=convention)
            assert measured.values[ranking][convention] == values


def test_results_do_not_depend_on_blocks(measured, monkeypatch):
    whole = runner.scoring.similarity_blocks

    def by_two(*arguments, **options):
        for rows, block in whole(*arguments, **options):
            for start in range(rows.start, rows.stop, 2):
                stop = min(start + 2, rows.stop)
                yield slice(start, stop), block[start - rows.start : stop - rows.start]

    monkeypatch.setattr(runner.scoring, "similarity_blocks", by_two)
    result = evaluate()
    assert result.values == measured.values
    np.testing.assert_array_equal(result.top["distance"], measured.top["distance"])


def test_eight_devices_measure_what_one_measures(measured, sharding):
    assert evaluate(sharding=sharding).flat() == pytest.approx(measured.flat(), abs=1e-6)


def test_the_evaluation_describes_what_was_measured(measured):
    assert (measured.queries, measured.gallery, measured.classes) == (5, 21, 3)
    assert measured.queries_without_match == 0
    assert measured.chance == pytest.approx(1 / 3)
    assert list(measured.seconds) == [
        "encode/sketch",
        "encode/photo",
        "rank/distance",
        "metrics",
        "rank/cosine",
    ]
    np.testing.assert_array_equal(measured.sketch_labels, SKETCH_LABELS)
    np.testing.assert_array_equal(measured.photo_labels, PHOTO_LABELS)


def test_rankings_and_conventions_can_be_chosen():
    result = evaluate(rankings=["cosine"], conventions=["voc"])
    assert list(result.flat()) == [f"cosine/voc/{name}" for name in METRICS]


def test_name_notes_and_class_names_are_kept():
    given = {"name": "A split", "notes": {"seed": 3}, "class_names": ["ant", "bee", "cat"]}
    result = evaluate(**given)
    assert {key: getattr(result, key) for key in given} == given


def test_features_may_be_kept_on_disk(measured, tmp_path):
    storage = Storage(where="disk", folder=tmp_path, key="these images")
    assert evaluate(storage=storage).values == measured.values


def test_finished_tiles_are_kept_in_the_folder(measured, tmp_path):
    retriever = fake()
    first, again = (evaluate(retriever, folder=tmp_path) for _ in range(2))
    assert first.values == again.values == measured.values
    assert [path.name for path in tmp_path.iterdir()] == ["distance"]


def test_sketches_without_a_photo_are_counted_and_excluded():
    labels = np.array([0, 0, 1, 9, 9])
    result = evaluate(sketch_labels=labels)
    assert (result.queries, result.queries_without_match) == (5, 2)
    assert result.chance == pytest.approx(1 / 3)
    expected = rank_metrics(similarities()["distance"][:3], labels[:3], PHOTO_LABELS)
    assert result.values["distance"]["exact"] == expected


def test_the_gallery_may_contain_classes_without_a_sketch():
    """The generalized setting: photos of seen classes are distractors."""
    scores = np.array([[0.3, 0.9, 0.5], [0.3, 0.1, 0.5]])
    result = zero_shot(
        Table(scores),
        batches(numbered(2), np.array([1, 1])),
        batches(numbered(3), np.array([0, 4, 1])),
        conventions=["exact"],
    )
    assert result.values["table"]["exact"]["mAP@all"] == pytest.approx((1 / 2 + 1) / 2)
    assert result.queries_without_match == 0
    assert result.gallery_classes.tolist() == [0, 1, 4]


@pytest.mark.filterwarnings("error")
def test_a_gallery_smaller_than_k_has_values():
    result = zero_shot(
        Table([[0.9, 0.1]]),
        batches(numbered(1), np.array([3])),
        batches(numbered(2), np.array([3, 3])),
    )
    assert set(result.flat().values()) == {1.0}
    assert result.top["table"].shape == (1, 2)


def test_labels_of_different_splits_are_an_error():
    with pytest.raises(ValueError, match="None of the 5 queries"):
        evaluate(sketch_labels=SKETCH_LABELS + 100)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rankings": ["cosines"]}, "'cosines': did you mean 'cosine'"),
        ({"rankings": []}, "rankings is empty: choose from"),
        ({"conventions": ["coco"]}, "Unknown convention"),
        ({"conventions": []}, "conventions is empty"),
        ({"shortlists": [0]}, r"shortlists=\(0,\) must be"),
    ],
)
def test_invalid_options_are_errors_before_encoding(wrong, message):
    retriever = fake()
    with pytest.raises(ValueError, match=message):
        evaluate(retriever, **wrong)
    assert retriever.compilations("encode") == 0


# Two-stage ranking


@pytest.mark.slow
def test_shortlists_are_measured_beside_exact_ranking(measured):
    result = evaluate(shortlists=[4, len(PHOTO_LABELS), 1000])
    assert list(result.values) == [
        "distance",
        "distance@4",
        "distance@21",
        "distance@1000",
        "cosine",
    ]
    assert result.values["distance@21"] == result.values["distance@1000"]
    assert result.values["distance@21"] == measured.values["distance"] == result.values["distance"]
    np.testing.assert_array_equal(result.top["distance@21"], measured.top["distance"])
    assert {"rank/distance", "rank/distance@4"} < result.seconds.keys()


def test_a_shortlist_contains_the_first_of_the_embedding_ranking(measured):
    result = evaluate(shortlists=[4], rankings=["distance"])
    for query in range(len(SKETCH_LABELS)):
        shortlist = measured.top["cosine"][query, :4]
        exact = [photo for photo in measured.top["distance"][query] if photo in shortlist]
        assert result.top["distance@4"][query, :4].tolist() == exact


def test_a_shortlists_recall_is_its_share_of_the_relevant_photos(measured):
    result = evaluate(shortlists=[4, 21])
    relevant = PHOTO_LABELS[measured.top["cosine"][:, :4]] == SKETCH_LABELS[:, None]
    assert result.recalls == pytest.approx(
        {"distance@4": (relevant.sum(axis=1) / 7).mean(), "distance@21": 1.0}
    )


def test_shortlists_need_no_exact_ranking():
    result = evaluate(rankings=["cosine"], shortlists=[4])
    assert list(result.values) == ["cosine", "distance@4"]


def test_shortlists_need_rankings_of_both_kinds():
    with pytest.raises(ValueError, match="kind 'embedding' and one of kind 'score', but Table"):
        evaluate(Table(np.zeros((5, 21))), shortlists=[4])


# Fine-grained


def fine(
    scores, sketch_instances, photo_instances, sketch_labels=None, photo_labels=None, **options
):
    queries, gallery = np.shape(scores)
    labels = (
        np.zeros(count, int) if given is None else np.asarray(given)
        for given, count in ((sketch_labels, queries), (photo_labels, gallery))
    )
    return fine_grained(
        Table(scores),
        *(batches(numbered(len(x)), x) for x in labels),
        sketch_instances=np.asarray(sketch_instances),
        photo_instances=np.asarray(photo_instances),
        **options,
    )


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_the_own_photo_is_ranked_within_the_class_and_among_all(seed):
    rng = np.random.default_rng(seed)
    photo_labels = np.repeat(np.arange(3), 7)
    instances = rng.integers(0, 21, 9)
    scores = rng.permutation(9 * 21).reshape(9, 21)
    result = fine(scores, instances, np.arange(21), photo_labels[instances], photo_labels)
    for scope, candidate in (
        ("class", photo_labels == photo_labels[instances, None]),
        ("all", np.ones((9, 21), bool)),
    ):
        own = scores[np.arange(9), instances, None]
        ranks = 1 + ((scores > own) & candidate).sum(1)
        for k in (1, 5, 10):
            assert result.values["table"][scope][f"Acc@{k}"] == pytest.approx((ranks <= k).mean())
    values = result.values["table"]
    for scope in values.values():
        assert scope["Acc@1"] <= scope["Acc@5"] <= scope["Acc@10"]
    assert all(values["class"][name] >= values["all"][name] for name in values["all"])
    assert result.chances == pytest.approx({"class": 1 / 7, "all": 1 / 21})
    assert result.chance == pytest.approx(1 / 21)
    np.testing.assert_array_equal(result.top["table"], np.argsort(-scores, axis=1))


def test_pairs_are_scored_once(monkeypatch):
    calls = []
    blocks = runner.scoring.similarity_blocks
    monkeypatch.setattr(
        runner.scoring,
        "similarity_blocks",
        lambda *arguments, **options: calls.append(arguments[3]) or blocks(*arguments, **options),
    )
    fine(np.eye(4), np.arange(4), np.arange(4))
    assert calls == ["table"]


def test_sketches_without_their_own_photo_are_counted_and_excluded():
    result = fine(np.eye(4), [0, 1, 17, -1], [0, 2, -1, 3])
    assert (result.queries, result.queries_without_match) == (4, 3)
    assert result.values["table"]["all"] == {"Acc@1": 1.0, "Acc@5": 1.0, "Acc@10": 1.0}


def test_any_of_several_photos_of_an_instance_is_correct():
    assert fine([[0.1, 0.9, 0.5]], [7], [7, 3, 7]).values["table"]["all"]["Acc@5"] == 1
    assert fine([[0.1, 0.9, 0.5]], [7], [7, 7, 3]).values["table"]["all"]["Acc@1"] == 1


def test_a_class_of_one_photo_is_always_correct():
    result = fine([[0.1, 0.9]], [5], [5, 6], [0], [0, 1])
    values = result.values["table"]
    assert (values["class"]["Acc@1"], values["all"]["Acc@1"]) == (1, 0)


def test_no_pair_is_an_error():
    with pytest.raises(ValueError, match="None of the 2 sketches has its own photo in the gallery"):
        fine(np.eye(2), [5, -1], [-1, 6])


@pytest.mark.usefixtures("unchecked")
def test_instances_that_do_not_match_the_images_are_an_error():
    with pytest.raises(ValueError, match="3 photo_instances for 2 photo images"):
        fine(np.eye(2), [0, 1], [0, 1, 2])


@pytest.mark.parametrize(
    ("sketch_labels", "photo_labels", "message"),
    [
        ([0, 0], [0, 1, 0], "Instance 1 is of class 1 .* but sketch 1, .* is of class 0"),
        ([0, 1], [0, 1, 0], "Instance 1 is of class 1 .* but photo 2, .* is of class 0"),
    ],
)
def test_instances_numbered_within_each_class_are_an_error(sketch_labels, photo_labels, message):
    instances = [0, 1, 1 if sketch_labels[1] else 2]
    with pytest.raises(ValueError, match=message):
        fine(np.eye(2, 3), [0, 1], instances, sketch_labels, photo_labels)
