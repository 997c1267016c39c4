"""A dry run reports what a run needs and leaves nothing behind."""

import pytest

from tests.zse_jax import tiny
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.training import dry_run

pytestmark = pytest.mark.usefixtures("tiny_system")


@pytest.mark.slow
def test_a_dry_run_measures_three_steps_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = dry_run.dry_run(tiny.config())
    assert found["optimizer"] >= 2 * found["parameters"] > 0
    assert found["training"] == pytest.approx(12 * found["step"])
    assert found["evaluations"] > 0 and found["cache"] == 0
    assert found["total"] == pytest.approx(found["training"] + found["evaluations"])
    output = capsys.readouterr().out
    for word in (
        "data: ",
        "parameters: ",
        "memory on each device: ",
        "the test ranks ",
        "time: about ",
    ):
        assert word in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_steps_that_make_the_parameters_nan_are_measured_too(tmp_path, monkeypatch):
    """As those of a system that has no teacher's knowledge yet."""
    monkeypatch.chdir(tmp_path)
    config = tiny.config().unlock()
    config.optimizer.learning_rate = float("nan")
    assert dry_run.dry_run(config)["evaluations"] > 0


def test_an_evaluation_encodes_images_and_scores_pairs():
    evaluator = Evaluator.__new__(Evaluator)
    evaluator.sketches, evaluator.photos = range(3), range(5)
    assert dry_run.Rates(image=2.0, pair=0.5).of(evaluator) == 2.0 * 8 + 0.5 * 15
    assert dry_run.Rates(2.0, 0.5).of(None) == 0
