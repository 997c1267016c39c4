"""Rocchio's formula, and probabilities from two numbers."""

import numpy as np
import pytest

from zse_jax.retrieval import calibration
from zse_jax.retrieval.calibration import Calibration
from zse_jax.retrieval.feedback import rocchio


def unit(*values):
    return (np.array(values) / np.linalg.norm(values)).astype(np.float32)


NONE = np.empty((0, 3), np.float32)


def test_the_query_moves_by_rocchios_formula():
    query, liked = unit(1, 0, 0), np.stack([unit(0, 1, 0), unit(0, 1, 1)])
    disliked = unit(1, 0, 1)[None]
    expected = query + 0.75 * liked.mean(axis=0) - 0.15 * disliked[0]
    moved = rocchio(query, liked, disliked)
    np.testing.assert_allclose(moved, expected / np.linalg.norm(expected), rtol=1e-6)
    assert moved.dtype == np.float32


def test_without_feedback_the_query_stays():
    query = unit(1, 2, 3)
    assert rocchio(query, NONE, NONE) is query
    assert rocchio(query, query[None], NONE) == pytest.approx(query)


def test_a_probability_grows_with_the_similarity_and_is_half_at_zero_odds():
    found = Calibration(10.0, -3.0).probability(np.array([-1e4, 0.0, 0.3, 1.0, 1e4]))
    assert found.tolist() == sorted(found.tolist())
    assert found[2] == pytest.approx(0.5)
    assert 0 <= found[0] < 1e-6
    assert found[4] == pytest.approx(1)


@pytest.mark.parametrize(
    "record",
    [None, {}, {"calibration": None}, {"calibration": {"slope": 1}},
     {"calibration": {"slope": "x", "intercept": 0}},
     {"calibration": {"slope": float("nan"), "intercept": 0}}],
)  # fmt: skip
def test_a_record_without_two_numbers_has_no_calibration(record):
    assert calibration.of_record(record) is None


def test_the_calibration_of_a_record():
    record = {"calibration": {"slope": 2, "intercept": -1, "classes": ["bat"]}}
    assert calibration.of_record(record) == Calibration(2.0, -1.0)
