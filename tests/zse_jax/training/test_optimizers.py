"""AdamW as published, schedules, clipping."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from zse_jax.training import optimizers


def options(**changes):
    config = default.get_config().optimizer
    config.update(changes)
    return config


def updates(config, gradients, parameter, steps=100):
    transformation = optimizers.create(config, steps)
    state = transformation.init(parameter)
    for gradient in gradients:
        change, state = transformation.update(gradient, state, parameter)
        parameter = optax.apply_updates(parameter, change)
    return parameter


def test_adamw_is_the_published_formula():
    gradients = [np.array([0.3, -2.0], np.float32), np.array([0.1, 0.5], np.float32)]
    rate, decay, b1, b2, eps = 1e-2, 1e-2, 0.9, 0.999, 1e-8
    p, m, v = np.array([1.0, -1.0]), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * p)
    found = updates(options(learning_rate=rate), gradients, jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(found, p, rtol=1e-5)


def test_every_parameter_decays_biases_too():
    parameters = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    found = updates(options(learning_rate=0.1), [zero], parameters)
    np.testing.assert_allclose(found["bias"], 1 - 0.1 * 1e-2, rtol=1e-6)
    np.testing.assert_allclose(found["kernel"], 1 - 0.1 * 1e-2, rtol=1e-6)


def test_clipping_bounds_the_gradient_and_is_off_by_default():
    free = optimizers.create(options(b1=0.0), 10)
    clipped = optimizers.create(options(b1=0.0, clip_norm=1.0), 10)
    assert len(clipped.init(jnp.zeros(2))) == 2
    assert optimizers.create(options(), 10).init(jnp.zeros(2))[0].mu.shape == (2,)
    gradient = jnp.array([30.0, 40.0])
    state = clipped.update(gradient, clipped.init(jnp.zeros(2)), jnp.zeros(2))[1]
    np.testing.assert_allclose(state[1][0].mu, gradient / 50, rtol=1e-5)
    state = free.update(gradient, free.init(jnp.zeros(2)), jnp.zeros(2))[1]
    np.testing.assert_allclose(state[0].mu, gradient, rtol=1e-5)


def test_the_learning_rate_is_constant_by_default():
    rate = optimizers.learning_rate(options(), 100)
    assert [float(rate(step)) for step in (0, 50, 99)] == [pytest.approx(1e-5)] * 3


def test_cosine_warms_up_and_ends_at_its_fraction():
    config = options(learning_rate=1.0, schedule="cosine", warmup_steps=10, final_fraction=0.1)
    rate = optimizers.learning_rate(config, 110)
    found = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 0.55, 0.1], atol=1e-6)


def test_a_run_without_steps_has_any_warm_up():
    optimizers.learning_rate(options(warmup_steps=10), 0)


def test_a_group_can_have_its_own_learning_rate():
    parameters = {"prompt": jnp.ones(2), "norm": {"bias": jnp.ones(2)}}
    gradients = {"prompt": jnp.array([0.3, -2.0]), "norm": {"bias": jnp.array([0.1, 5.0])}}
    groups = {"prompt": "prompt", "norm/bias": "norm"}
    config = options(learning_rate=1e-3)
    config.learning_rates = {"prompt": 1e-2}
    transformation = optimizers.create(config, 100, groups, ("prompt", "norm"))
    state = transformation.init(parameters)
    found, _ = transformation.update(gradients, state, parameters)
    for rate, change, gradient in (
        (1e-2, found["prompt"], gradients["prompt"]),
        (1e-3, found["norm"]["bias"], gradients["norm"]["bias"]),
    ):
        np.testing.assert_allclose(change, -rate * (np.sign(gradient) + 1e-2), rtol=1e-5)
    with pytest.raises(ValueError, match="learning_rates='promt'.*did you mean 'prompt'"):
        config.learning_rates = {"promt": 1e-2}
        optimizers.create(config, 100, groups, ("prompt", "norm"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adamv"}, r"config.optimizer.name='adamv'.*did you mean 'adamw'"),
        ({"schedule": "cosin"}, r"config.optimizer.schedule='cosin'.*'cosine'"),
        ({"warmup_steps": 500}, r"warmup_steps=500 must lie between 0 and config.train.steps=100"),
    ],
)
def test_wrong_values_name_their_key(changes, message):
    with pytest.raises(ValueError, match=message):
        optimizers.create(options(**changes), 100)
