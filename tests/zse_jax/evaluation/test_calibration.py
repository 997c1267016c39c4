"""Two numbers are fitted to pairs of held-out classes, and added to a model's record."""

import json

import numpy as np
import pytest

from zse_jax.checkpoints import hub
from zse_jax.evaluation import calibration


def test_the_fit_recovers_a_logistic_function():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 100)
    match = labels[:, None] == labels
    # Normal distributions of one width: the log odds are linear, 0 in the middle of the means.
    similarity = rng.normal(np.where(match, 0.6, 0.2), 0.2).astype(np.float32)
    found = calibration.fit(similarity, labels, labels, nearest=200)
    assert found.slope == pytest.approx((0.6 - 0.2) / 0.2**2, rel=0.1)
    assert -found.intercept / found.slope == pytest.approx(0.4, abs=0.02)


def test_only_the_nearest_photos_count():
    similarity = np.array([[0.9, 0.8, 0.3, 0.1], [0.1, 0.2, 0.7, 0.95]], np.float32)
    queries, gallery = np.array([0, 1]), np.array([0, 2, 0, 1])
    among_two = calibration.fit(similarity, queries, gallery, nearest=2)
    shown = similarity.copy()
    shown[0, 2:], shown[1, :2] = -9, -9  # far away, as if they were not there
    assert among_two == calibration.fit(shown, queries, gallery, nearest=2)
    assert among_two.probability(np.array([0.95]))[0] > 0.5


def test_one_class_cannot_be_calibrated():
    one = np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="at least two classes"):
        calibration.fit(np.ones((3, 3), np.float32), one, one)


def test_the_record_of_a_published_model_gets_the_numbers(tmp_path):
    (tmp_path / hub.WEIGHTS).touch()
    (tmp_path / hub.CONFIG).write_text(json.dumps({"library": "zse_jax", "config": {}}))
    (tmp_path / hub.TRAINED).write_text(json.dumps({"sources": [1], "unknown": []}))
    calibration.write(str(tmp_path), {"slope": 1.5, "intercept": -1.0})
    record = json.loads((tmp_path / hub.TRAINED).read_text())
    assert record == {
        "sources": [1], "unknown": [], "calibration": {"slope": 1.5, "intercept": -1.0},
    }  # fmt: skip
    with pytest.raises(ValueError, match="publish the model first"):
        calibration.write(str(tmp_path / "none"), {})
