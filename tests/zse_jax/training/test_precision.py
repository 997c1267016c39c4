"""Compute in bfloat16: what stays in float32, and how close the losses are."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import demo
from data_pipelines import loading
from tests.zse_jax import small_systems
from zse_jax.retrievers import create
from zse_jax.runtime import sharding
from zse_jax.training import loop, step

# What normalisations, softmax and losses are made of, and activations (ReLU, erf, sigmoid) are not.
EXACT = {"exp", "log", "rsqrt", "sqrt", "reduce_sum", "reduce_max", "integer_pow", "square"}


def operations(jaxpr):
    """All operations of a jaxpr and of its inner jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from operations(inner.jaxpr)
            elif hasattr(inner, "eqns"):
                yield from operations(inner)


@pytest.mark.parametrize("system", ["zse", "clip_prompt", "efficient_cnn"])
def test_norms_softmax_and_losses_are_float32_and_products_bfloat16(system):
    made = small_systems.config(system, compute_dtype="bfloat16")
    model = nnx.eval_shape(
        lambda: create(made.model, dtype="bfloat16", rngs=nnx.Rngs(params=0, dropout=1))
    )
    structure, state = nnx.split(model)
    batch = {name: jnp.asarray(x) for name, x in small_systems.batch(system).items()}
    traced = jax.make_jaxpr(
        lambda state, batch: nnx.merge(structure, state, copy=True).loss(batch)
    )(state, batch)
    found = list(operations(traced.jaxpr))
    low = [
        f"{eqn.primitive.name} of {eqn.invars[0].aval}"
        for eqn in found
        if eqn.primitive.name in EXACT and eqn.invars[0].aval.dtype == jnp.bfloat16
    ]
    assert low == []
    products = [e for e in found if e.primitive.name in ("dot_general", "conv_general_dilated")]
    half = [e for e in products if e.invars[0].aval.dtype == jnp.bfloat16]
    assert len(half) > len(products) / 2
    assert all(leaf.aval.dtype == jnp.float32 for leaf in traced.jaxpr.outvars)


def doodles(name, modality, classes, **_):
    """Twelve doodles of each class, generated without a prepared data set."""
    from data_pipelines.builders.doodles import generation

    drawn = [
        doodle
        for doodle in generation.generate(0, 12, modality=modality, workers=0)
        if doodle.class_name in classes
    ]
    encoded = []
    for doodle in drawn:
        with io.BytesIO() as file:
            Image.fromarray(doodle.image).save(file, "PNG")
            encoded.append(file.getvalue())
    labels = np.array([classes.index(doodle.class_name) for doodle in drawn], np.int32)
    names, instances = (tuple(getattr(d, key) for d in drawn) for key in ("name", "instance"))
    rows = np.arange(len(drawn))
    return loading.Items(modality, encoded, rows, labels, tuple(classes), names, instances)


@pytest.mark.slow
def test_losses_in_bfloat16_track_those_in_float32(monkeypatch):
    """Means over 20 steps: within 1 % for 100 steps, within 15 % for 200.

    Measured: 0.5 % and 9 %; of the demo at its full size 0.4 % and 11 %. At the height of the
    learning rate two runs part, as any two do that differ by rounding.
    """
    monkeypatch.setattr(loading, "load_items", functools.cache(doodles))

    def losses(dtype: str) -> np.ndarray:
        config = demo.get_config("depth=2,width=32,mlp_width=64,scale_channels=8,batch_size=5")
        config.compute_dtype = dtype
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        setup = step.set_up(config, mesh)
        state, batches = setup.init(), loop.training_batches(config, setup.model, mesh)
        # As in a real run: the rounding is what is compared, and 200 steps take longer than this.
        options = {"xla_backend_optimization_level": 3}
        advance = setup.step.lower(setup.abstract, next(batches)).compile(compiler_options=options)
        found = []
        for _ in range(200):
            state, metrics = advance(state, next(batches))
            found.append(metrics["loss"])
        batches.close()
        return np.array(jax.device_get(found)).reshape(10, 20).mean(axis=1)

    exact, low = losses("float32"), losses("bfloat16")
    assert exact[-2:].mean() < 0.8 * exact[0]
    difference = np.abs(low - exact) / exact
    assert difference[:5].max() < 0.01
    assert difference.max() < 0.15
