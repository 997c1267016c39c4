"""Bootstrap intervals: they contain the true mean as often as they promise, in simulations."""

import numpy as np
import pytest

from zse_jax.retrieval.intervals import bootstrap

RUNS = 300


def coverage(simulate):
    """The share of simulated evaluations whose interval contains the mean of the population."""
    inside = 0
    for seed in range(RUNS):
        values, strata, clusters, truth = simulate(np.random.default_rng(seed))
        ((low, high),) = bootstrap(values[None], strata, clusters, resamples=200, seed=seed)
        inside += low <= truth <= high
    return inside / RUNS


def test_sketches_of_classes_that_differ():
    """Class means from 0.1 to 0.9, and unequal classes: 100 % without strata."""
    means = np.linspace(0.1, 0.9, 5)
    labels = np.repeat(np.arange(5), [8, 10, 12, 14, 16])

    def simulate(rng):
        values = means[labels] + 0.05 * rng.standard_normal(len(labels))
        return values, labels, np.arange(len(labels)), means[labels].mean()

    assert coverage(simulate) == pytest.approx(0.95, abs=0.035)


def test_sketches_of_the_same_photo():
    """Five sketches of each photo, as in Sketchy: about 60 % without clusters."""
    labels, photos = np.repeat(np.arange(4), 60), np.repeat(np.arange(48), 5)

    def simulate(rng):
        values = 0.1 * rng.standard_normal(48)[photos] + 0.05 * rng.standard_normal(240)
        return labels / 4 + values, labels, photos, 3 / 8

    assert coverage(simulate) == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize("sketches", [1, 3])
def test_other_classes(sketches):
    """The true mean is that of all classes; each run draws 20 of them."""
    labels = np.repeat(np.arange(20), sketches)

    def simulate(rng):
        values = (
            0.5 + 0.2 * rng.standard_normal(20)[labels] + 0.02 * rng.standard_normal(len(labels))
        )
        return values, np.zeros_like(labels), labels, 0.5

    assert coverage(simulate) == pytest.approx(0.95, abs=0.04)


def test_classes_with_one_sketch_are_resampled_together():
    labels = np.arange(20)

    def simulate(rng):
        return 0.5 + 0.1 * rng.standard_normal(20), labels, labels, 0.5

    assert coverage(simulate) == pytest.approx(0.95, abs=0.04)
