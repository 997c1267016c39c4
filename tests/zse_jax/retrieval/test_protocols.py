"""The category-level protocol, from image batches to the table."""

import json
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
import rich
from flax import nnx

from tests.zse_jax.retrieval.fakes import batches, fake, images
from zse_jax.retrieval.metrics import CONVENTIONS, METRICS, rank_metrics
from zse_jax.retrieval.protocols import zero_shot
from zse_jax.retrievers.base import Retriever

SKETCH_LABELS = np.array([0, 0, 1, 2, 2])
PHOTO_LABELS = np.tile(np.arange(3), 7)


class Table(Retriever):
    """Scores pairs by a given matrix: an image is the number of its row or column."""

    rankings: ClassVar[dict] = {"table": "score"}

    def __init__(self, scores):
        self.scores = nnx.Variable(jnp.asarray(scores, jnp.float32))

    def encode(self, images, modality):
        pixel = images[:, 0, 0].astype(jnp.int32)
        return pixel[:, 0] * 256 + pixel[:, 1]

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
    return evaluate(keep_similarities=True)


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


def test_measures_every_ranking_in_every_convention(measured):
    assert list(measured.values) == list(measured.similarities) == ["distance", "cosine"]
    for ranking, similarity in measured.similarities.items():
        for convention in CONVENTIONS:
            expected = rank_metrics(similarity, SKETCH_LABELS, PHOTO_LABELS, ap=convention)
            assert measured.values[ranking][convention] == expected


def test_eight_devices_measure_what_one_measures(measured, sharding):
    assert evaluate(sharding=sharding).flat() == pytest.approx(measured.flat(), abs=1e-6)


def test_says_what_was_measured(measured):
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
    assert not result.similarities


def test_flat_names_carry_the_convention(measured):
    assert len(measured.flat()) == 2 * 3 * 4
    value = measured.values["distance"]["exact"]["mAP@all"]
    assert measured.flat()["distance/exact/mAP@all"] == value


def test_the_dict_is_json_without_arrays(measured):
    stored = json.loads(json.dumps(measured.to_dict()))
    assert stored["values"]["distance"]["hits"].keys() == set(METRICS)
    assert not {"similarities", "sketch_labels", "photo_labels"} & stored.keys()


def test_the_table_shows_percent_by_ranking_and_convention(measured, capsys):
    rich.print(measured.table("Sketchy"))
    printed = capsys.readouterr().out
    for word in ("Sketchy", "distance", "cosine", *CONVENTIONS, *METRICS, "5 sketches x 21 photos"):
        assert word in printed
    assert f"{100 * measured.values['cosine']['voc']['P@100']:.1f}" in printed


def test_sketches_without_a_photo_are_counted_and_left_out():
    labels = np.array([0, 0, 1, 9, 9])
    result = evaluate(sketch_labels=labels, keep_similarities=True)
    assert (result.queries, result.queries_without_match) == (5, 2)
    kept = result.similarities["distance"][:3]
    expected = rank_metrics(kept, labels[:3], PHOTO_LABELS)
    assert result.values["distance"]["exact"] == expected


def test_labels_of_different_splits_are_an_error():
    with pytest.raises(ValueError, match="None of the 5 queries"):
        evaluate(sketch_labels=SKETCH_LABELS + 100)


def test_a_misspelt_ranking_is_found_before_encoding():
    retriever = fake()
    with pytest.raises(ValueError, match="'cosines': did you mean 'cosine'"):
        evaluate(retriever, rankings=["cosines"])
    assert retriever.compilations("encode") == 0
