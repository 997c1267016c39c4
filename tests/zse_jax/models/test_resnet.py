"""ResNet: shapes, batch statistics on one device and on eight, and frozen statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zse_jax.models.resnet import BatchNorm, ResNet50
from zse_jax.runtime import sharding

SMALL = {"depths": (1, 2), "width": 4, "classes": 7}


def build(**changes):
    make = lambda: ResNet50(**{**SMALL, **changes}, rngs=nnx.Rngs(0))  # noqa: E731
    return nnx.jit(make)()


apply = nnx.jit(lambda model, images: model(images))


def images(count, size=32, seed=0):
    return jnp.asarray(
        np.random.default_rng(seed).standard_normal((count, size, size, 3)), "float32"
    )


def statistics(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def test_the_published_size_has_the_published_number_of_parameters():
    shapes = nnx.eval_shape(lambda: ResNet50(rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
    assert (count, shapes.features, shapes.classes) == (25_557_032, 2048, 1000)


def test_features_and_logits_have_the_documented_shapes_and_precision():
    model = build(dtype=jnp.bfloat16)
    features, logits = apply(model, images(3))
    assert (features.shape, logits.shape) == ((3, model.features), (3, 7))
    assert features.dtype == logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


def test_batch_normalisation_follows_its_formula_and_updates_the_running_averages():
    norm = BatchNorm(3, frozen=False, rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).normal(2, 3, (4, 5, 5, 3)).astype(np.float32)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(norm(jnp.asarray(x)), (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var, rtol=1e-5)


@pytest.mark.slow
def test_features_do_not_depend_on_the_batch_in_evaluation():
    model = build()
    apply(model, images(8, seed=1))
    still = nnx.view(model, use_running_average=True)
    together, before = apply(still, images(4))[0], statistics(model)
    np.testing.assert_allclose(together[:1], apply(still, images(4)[:1])[0], rtol=1e-4, atol=1e-6)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, statistics(model)))


@pytest.mark.slow
def test_frozen_statistics_are_used_in_training_and_never_updated():
    model = build(frozen_statistics=True)
    before = statistics(model)
    trained = apply(model, images(4))
    evaluated = apply(nnx.view(model, use_running_average=True), images(4))
    np.testing.assert_array_equal(trained[0], evaluated[0])
    assert jax.tree.all(jax.tree.map(np.array_equal, before, statistics(model)))
    gradient = nnx.jit(nnx.grad(lambda m: m(images(4))[1].sum()))(model)
    assert np.abs(gradient.stem_norm.scale[...]).max() > 0


@pytest.mark.slow
def test_eight_devices_have_the_batch_statistics_of_one():
    def step(model, x):
        features, _ = model(x)
        return features, nnx.state(model, nnx.BatchStat)

    x, outcomes = images(16), []
    for mesh in (sharding.make_mesh(2, 4), sharding.make_mesh(devices=jax.devices()[:1])):
        graphdef, state = nnx.split(build())
        compiled = jax.jit(
            lambda state, x, graphdef=graphdef: step(nnx.merge(graphdef, state), x),
            in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh)),
        )
        outcomes.append(jax.device_get(compiled(state, x)))
    (features, moved), (features_of_one, moved_of_one) = outcomes
    np.testing.assert_allclose(features, features_of_one, rtol=1e-4, atol=1e-5)
    for ours, one in zip(jax.tree.leaves(moved), jax.tree.leaves(moved_of_one), strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{"depths": ()}, {"depths": (1, 0)}, {"width": 0}])
def test_a_network_without_blocks_or_channels_is_an_error(changes):
    with pytest.raises(ValueError, match="must all be at least 1"):
        build(**changes)


def test_images_too_small_for_the_stages_are_an_error():
    with pytest.raises(ValueError, match="2x2 are too small for 2 stages: .* at least 4x4"):
        apply(build(), images(1, size=2))
