"""Frozen layers: not trained, and computed once with the results of computing them every time."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import efficient_default
from tests.zse_jax import tiny
from tests.zse_jax.random_weights import drawn, drawn_state
from zse_jax.checkpoints import arrays
from zse_jax.models.backbone import BACKBONES, Divisible
from zse_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, Variant
from zse_jax.retrievers import create
from zse_jax.runtime import sharding
from zse_jax.training import frozen_cache, loop
from zse_jax.training.step import merge_model, placed, set_up

MODEL = {
    "backbone": "efficientnet_narrow", "image_size": tiny.SIZE, "imagenet_classes": 7,
    "embedding_width": 6, "seen_classes": 24, "frozen_statistics": True, "frozen_blocks": 3,
    "knowledge_weight": 0.0, "contrastive_weight": 1.0, "classifier_scale": 16.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A backbone with one block a stage, as narrow as possible, and generated images."""
    monkeypatch.setitem(VARIANTS, "narrow", Variant(0.1, 0.2, tiny.SIZE))
    made = functools.partial(EfficientNetLite, "narrow")
    monkeypatch.setitem(BACKBONES, "efficientnet_narrow", made)
    tiny.install(monkeypatch.setattr)


def config(**flat):
    made = efficient_default.get_config()
    made.model.update(MODEL)
    made.data.update(name="doodles", split="doodles", workers=0)
    made.init_from = "random"
    made.train.update(steps=2, batch_size=4, sampler="class_group:2", mirror=True, variants=2)
    made.optimizer.update(learning_rate=1e-2, warmup_steps=0)
    made.evaluation.update(every=0, batch_size=8)
    made.update_from_flattened_dict(flat)
    return made.lock()


def run(made):
    """The parameters before and after training, and the losses."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    setup = set_up(made, mesh)
    model = drawn(lambda: create(made.model.to_dict(), rngs=nnx.Rngs(0)))
    state = placed(drawn_state(setup), model, setup)
    before = jax.tree.map(np.array, arrays.flat_arrays(state["model"]))
    items = loop.data_selection.training_items(made)
    if made.train.cache_frozen:
        later = frozen_cache.later(items, setup.model, mirror=True, variants=2)
        batches = loop.training_batches(made, setup.model, mesh, later.items)
        frozen_cache.fill(later, merge_model(setup.definition, state), made, mesh)
        every = [values for some in later.items for values in some.computed.values]
        assert later.size == sum(values.nbytes for values in every)
        maps = [values[:, i] for values in every[:2] for i in range(values.shape[1])]
        assert len(maps) == 4 and not any(
            np.array_equal(*pair) for pair in itertools.combinations(maps, 2)
        )
    else:
        batches = loop.training_batches(made, setup.model, mesh)
    losses = []
    for _ in range(made.train.steps):
        state, metrics = setup.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return before, arrays.flat_arrays(state["model"]), losses


@pytest.mark.slow
def test_training_with_the_cache_equals_training_without_it_and_frozen_blocks_stay():
    before, plain, losses = run(config())
    _, cached, same = run(config(**{"train.cache_frozen": True}))
    np.testing.assert_allclose(same, losses, rtol=1e-4)
    changed = {name for name in before if not np.array_equal(before[name], plain[name])}
    frozen = ("backbone/stem", *(f"backbone/blocks/{i}/" for i in range(3)))
    statistics = ("norm/mean", "norm/var")
    assert not [name for name in changed if name.startswith(frozen) or name.endswith(statistics)]
    assert "backbone/blocks/3/project/kernel" in changed and "projection/kernel" in changed
    for name in changed:
        np.testing.assert_allclose(cached[name], plain[name], atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_both_parts_of_a_backbone_make_the_whole():
    model = drawn(lambda: create(config().model.to_dict(), rngs=nnx.Rngs(0))).backbone
    assert isinstance(model, Divisible)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    whole, parts = nnx.jit(lambda m, x: (m(x), m.upper(m.lower(x, 3), 3)))(model, images)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    blocks = {model.block_of(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert blocks == set(range(model.depth + 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.frozen_statistics": False}, "needs config.model.frozen_statistics=true"),
        ({"model.frozen_blocks": 99}, "has 7 blocks"),
        ({"model.backbone": "resnet50", "model.imagenet_classes": 1000}, "cannot be frozen"),
    ],
)
def test_impossible_settings_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        set_up(config(**changes), sharding.make_mesh())


def filled(made, changes=None):
    """The cached output of a run of `made`, whose parameters are drawn and then multiplied."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model = drawn(lambda: create(made.model.to_dict(), rngs=nnx.Rngs(0)))
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    for path, value in state:
        for name, factor in (changes or {}).items():
            if name in path:
                value[...] = value[...] * factor
    items = [some.every(40) for some in loop.data_selection.training_items(made)]
    later = frozen_cache.later(items, model, mirror=made.train.mirror)
    frozen_cache.fill(later, model, made, mesh)
    return [np.array(some.computed.values[0]) for some in later.items]


def test_runs_with_the_same_frozen_layers_and_images_share_a_folder(tmp_path, monkeypatch):
    values = {"train.cache_frozen": True, "train.variants": 1, "train.frozen_dir": str(tmp_path)}
    first = filled(config(**values | {"train.frozen_dir": None}))
    kept = filled(config(**values))
    folders = set(tmp_path.iterdir())
    decoded = []
    real = frozen_cache.Items.image

    def image(self, i, size, variant=0):
        decoded.append(self.modality)
        return real(self, i, size, variant)

    monkeypatch.setattr(frozen_cache.Items, "image", image)
    other = config(**values | {"model.contrastive_weight": 0.0, "seed": 3})
    read = filled(other, {"projection": 2.0})
    assert set(tmp_path.iterdir()) == folders
    for arrays_ in (kept, read):
        for one, same in zip(first, arrays_, strict=True):
            np.testing.assert_array_equal(one, same)
    assert not decoded
    changed = filled(config(**values), {"stem": 2.0})
    assert len(list(tmp_path.iterdir())) == 2 * len(folders)
    assert set(decoded) == {"sketch", "photo"} and not np.array_equal(changed[0], first[0])
    filled(config(**values | {"train.mirror": False}))
    assert len(list(tmp_path.iterdir())) == 3 * len(folders)


def test_without_frozen_layers_there_is_nothing_to_cache():
    made = config(**{"model.frozen_blocks": 0, "train.cache_frozen": True})
    model = set_up(made, sharding.make_mesh()).model
    items = loop.data_selection.training_items(made)
    with pytest.raises(ValueError, match="set config.model.frozen_blocks"):
        frozen_cache.later(items, model)
    made = config(**{"train.cache_frozen": True, "train.augment": 0.1})
    later = frozen_cache.later(items, set_up(made, sharding.make_mesh()).model)
    with pytest.raises(ValueError, match=r"config.train.augment=0"):
        loop.training_batches(made, model, sharding.make_mesh(), later.items)
