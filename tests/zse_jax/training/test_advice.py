"""Warnings say what was seen and what to do, and are silent otherwise."""

from types import SimpleNamespace

import numpy as np
import pytest

from zse_jax.training import advice, loop

CLASSES = np.repeat(np.arange(5), 20)


def test_memory_is_compared_before_it_is_allocated():
    assert advice.memory("The activations", 10**9, 2 * 10**9) == ""
    found = advice.memory("The activations", 3 * 10**9, 2 * 10**9)
    assert "3.00 GB" in found
    assert "2.00 GB are free" in found
    assert "--config.train.batch_size" in found
    assert advice.free_memory() > 0


def test_nearly_equal_similarities_are_a_collapse():
    similarities = np.full((4, 6), 0.997) + 0.0005 * np.eye(4, 6)
    assert "all 24 similarities" in advice.collapse(similarities)
    similarities[1, 2] = 0.9
    assert advice.collapse(similarities) == ""


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        # E[AP] = ((R - 1) / (N - 1) (N - H) + H) / N with R of N relevant and H = 1 + ... + 1 / N.
        ("token/exact/mAP@all", (19 / 99 * (100 - 5.187378) + 5.187378) / 100),
        ("token/exact/P@100", 0.2),
        ("token/class/Acc@5", 5 / 20),
        ("token/all/Acc@5", 5 / 100),
        ("token/all/Acc@10", 10 / 100),
    ],
)
def test_chance_is_the_expected_value_of_a_random_ranking(select, expected):
    assert advice.chance_level(select, CLASSES, CLASSES) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("value", "warned"), [(0.21, True), (0.3, False)])
def test_a_metric_at_chance_is_reported(value, warned):
    found = advice.at_chance("token/exact/mAP@all", value, 0.23)
    assert bool(found) == warned
    assert not warned or "is 21.0, and a random ranking has 23.0" in found
    assert advice.at_chance("a/b/c", 0.0, None) == ""


def test_a_run_prints_each_warning_once():
    said = []
    run = SimpleNamespace(report=SimpleNamespace(say=said.append), warned=set())
    for sentence in ("Seen: 1.", "Seen: 1.2.", "", "Other: x."):
        loop.Run.warn(run, sentence)
    assert said == ["warning: Seen: 1.", "warning: Other: x."]
