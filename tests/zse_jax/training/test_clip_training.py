"""CLIP-AT from config to checkpoint to ranking, and its baselines, on a few drawn images."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zse_jax
from configs import clip_sketchy_fine_grained, clip_sketchy_split2
from data_pipelines import loading, splits
from tests.zse_jax import abstract, shared_steps, small_systems, tiny
from tests.zse_jax.compiled import compiled
from tests.zse_jax.random_weights import drawn_state
from zse_jax.checkpoints import arrays
from zse_jax.evaluation import text_baseline
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.runtime import sharding
from zse_jax.training import loop, step

pytestmark = pytest.mark.slow

SMALL = {
    "model.image_size": 8, "model.patch_size": 4, "model.width": 16, "model.depth": 1,
    "model.heads": 2, "model.embed_dim": 8, "model.text_width": 8, "model.text_depth": 1,
    "train.batch_size": 8, "log.tensorboard": False, "evaluation.every": 2,
    "evaluation.batch_size": 8, "evaluation.sketch_stride": 1, "evaluation.photo_stride": 1,
    "optimizer.warmup_steps": 0, "optimizer.schedule": "constant",
}  # fmt: skip
FINE = {"train.sampler": "instance_group:3", "train.steps": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small data set in place of doodles, one device, and shared steps: saves compilation."""
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(loading, "load_items", tiny.load_items)
    shared_steps.install(monkeypatch.setattr)


def config(module=clip_sketchy_split2, arg="tiny", **changes):
    made = module.get_config(arg)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    made.update_from_flattened_dict({**SMALL, **changes})
    return made.lock()


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        (clip_sketchy_split2, {}),
        (clip_sketchy_fine_grained, FINE),
    ],
    ids=["category", "fine_grained"],
)
def test_a_checkpoint_loads_and_ranks_with_its_class_texts(tmp_path, module, changes):
    results = loop.train(config(module, **{"train.steps": 2, **changes}), tmp_path)
    select = "class/Acc@1" if changes else "exact/mAP@all"
    assert 0 <= results["validation"][f"embedding/{select}"] <= 1
    model = zse_jax.load(tmp_path)
    assert model.class_names == splits.get("doodles").seen
    assert model.class_text.shape == (24, 8)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    encode = compiled(model.encode)
    score = compiled(model.score)(encode(images, "sketch"), encode(images, "photo"))
    assert score.shape == (3, 3)
    assert np.isfinite(score).all()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    made = config(clip_sketchy_fine_grained, checkpoint__every=2, evaluation__every=0, **FINE)
    loop.train(made, tmp_path / "whole")
    parts = shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(parts / "checkpoints/4")
    (parts / "metrics.json").unlink()
    loop.train(made, parts)
    one, other = (
        arrays.flat_arrays(nnx.state(zse_jax.load(tmp_path / name / "checkpoints/4")))
        for name in ("whole", "parts")
    )
    for name, array in one.items():
        if "orders" not in name:
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_raw_clip_is_saved_and_measured_without_a_step(tmp_path):
    results = loop.train(config(arg="tiny,raw"), tmp_path)
    assert results["step"] == 0
    assert results["validation"] == results["untrained"]
    assert zse_jax.load(tmp_path).photo_prompt is None


def test_class_names_in_place_of_sketches_rank_the_photos():
    made = config(arg="tiny,text", model__class_names=splits.get("doodles").seen)
    mesh = sharding.make_mesh()
    setup = step.set_up(made, mesh)
    model = step.merge_model(setup.definition, drawn_state(setup))
    evaluator = Evaluator(made, mesh, 1, 1)
    found = evaluator(model).flat()
    names = splits.get("doodles").unseen
    features = model.embedding(model.encode_text(list(names)))  # tiny's template is the bare name
    photos = evaluator.photos
    pixels = jnp.asarray(np.stack([photos.image(i, 8) for i in range(len(photos))]))
    similarity = np.asarray(features @ model.embedding(compiled(model.encode)(pixels, "photo")).T)
    order = np.argsort(-similarity, axis=1, kind="stable")
    hits = photos.labels[order] == np.arange(len(names))[:, None]
    precision = np.cumsum(hits, axis=1) / np.arange(1, len(photos) + 1)
    want = ((precision * hits).sum(1) / hits.sum(1)).mean()
    np.testing.assert_allclose(found["embedding/exact/mAP@all"], want, rtol=1e-4)


def test_a_system_without_a_text_encoder_is_an_error():
    model = abstract.retriever({"system": "zse", **small_systems.ZSE})
    with pytest.raises(ValueError, match="ZSE cannot encode text.*queries=sketch"):
        text_baseline.class_queries(model, tiny.load_items("doodles", "sketch", ["cat"]))
