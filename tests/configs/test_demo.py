"""The first steps of the demo are the recorded ones, so that its published results can be had."""

import contextlib

import cv2
import jax
import numpy as np
import pytest

from configs import demo
from data_pipelines import loading
from data_pipelines.builders.doodles import generation
from zse_jax.runtime import sharding
from zse_jax.training import loop, step

FIRST_LOSSES = (3.2435, 3.0186, 2.8233)
"""Of seed 0, on jax 0.10.2 and 0.12.0. Rounding of other processors changes the fourth digit."""

INSTANCES = 48
"""Of each class in the prepared data set."""


class Drawn:
    """The images of `doodles`, each drawn when it is read: a few steps read few of them."""

    def __init__(self, modality, classes):
        self._modality, self._classes = modality, classes

    def __getitem__(self, row):
        number, index = divmod(row, INSTANCES)
        image = generation.render(self._classes[number], index, self._modality)
        return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def load_items(name, modality, classes, **_):
    """The items of `doodles` as `loading.load_items` gives them, without preparing them."""
    instances = tuple(f"{c}_{index:04d}" for c in classes for index in range(INSTANCES))
    names = tuple(f"{modality}/{instance[:-5]}/{instance}.png" for instance in instances)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), INSTANCES)
    source, rows = Drawn(modality, classes), np.arange(len(labels))
    return loading.Items(modality, source, rows, labels, tuple(classes), instances, names)


@pytest.mark.slow
def test_the_first_losses_of_the_demo_are_the_recorded_ones(monkeypatch):
    monkeypatch.setattr(loading, "load_items", load_items)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = demo.get_config()
    setup = step.set_up(step.complete(config), mesh)
    state, losses = setup.init(), []
    with contextlib.closing(loop.training_batches(config, setup.model, mesh)) as batches:
        for _ in FIRST_LOSSES:
            state, metrics = setup.step(state, next(batches))
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, FIRST_LOSSES, rtol=2e-3)
