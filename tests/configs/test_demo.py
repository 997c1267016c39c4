"""The first steps of the demo are the recorded ones, so that its published results can be had."""

import contextlib

import jax
import numpy as np
import pytest

from configs import demo
from zse_jax.runtime import sharding
from zse_jax.training import loop, step

FIRST_LOSSES = (3.2435, 3.0186, 2.8233)
"""Of seed 0, on jax 0.10.2 and 0.12.0. Rounding of other processors changes the fourth digit."""


@pytest.mark.slow
def test_the_first_losses_of_the_demo_are_the_recorded_ones():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = demo.get_config()
    setup = step.set_up(step.complete(config), mesh)
    state, losses = setup.init(), []
    with contextlib.closing(loop.training_batches(config, setup.model, mesh)) as batches:
        for _ in FIRST_LOSSES:
            state, metrics = setup.step(state, next(batches))
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, FIRST_LOSSES, rtol=2e-3)
