"""A dry run reports what a run needs and leaves nothing behind."""

import pytest

from tests.zse_jax import tiny
from zse_jax.training import dry_run

pytestmark = pytest.mark.usefixtures("tiny_system")


@pytest.mark.slow
def test_a_dry_run_measures_three_steps_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = dry_run.dry_run(tiny.config())
    assert found["optimizer"] >= 2 * found["parameters"] > 0
    assert found["training"] == pytest.approx(12 * found["step"])
    assert found["evaluations"] > 0
    output = capsys.readouterr().out
    for word in ("data: ", "parameters: ", "memory on each device: ", "time: 12 steps"):
        assert word in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_steps_that_make_the_parameters_nan_are_measured_too(tmp_path, monkeypatch):
    """As those of a system that has no teacher's knowledge yet."""
    monkeypatch.chdir(tmp_path)
    config = tiny.config().unlock()
    config.optimizer.learning_rate = float("nan")
    assert dry_run.dry_run(config)["evaluations"] > 0
