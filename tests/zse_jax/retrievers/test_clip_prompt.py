"""CLIP-AT at a small size: interface, recipes, trainable parameters, invalid input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import clip_default
from tests.zse_jax import abstract
from tests.zse_jax.compiled import compiled
from tests.zse_jax.models.test_clip import TINY as SIZES
from tests.zse_jax.random_weights import drawn, drawn_state
from zse_jax import losses
from zse_jax.checkpoints import arrays
from zse_jax.retrieval.encoding import fingerprint
from zse_jax.retrievers import clip_prompt, create
from zse_jax.runtime import sharding
from zse_jax.training import step
from zse_jax.training.step import trainable

CLASSES = ("cat", "hot-air_balloon", "tree")
TINY = {
    "system": "clip_prompt", **SIZES, "depth": 1, "text_depth": 1, "context_length": 16,
    "class_names": CLASSES,
}  # fmt: skip
SHARED = {"prompts": "shared", "encoders": "shared"}
FINE = {"recipe": "fine_grained", **SHARED}


def build(seed=0, dtype="float32", **changes):
    rngs = {"params": seed, "dropout": seed + 1}
    made = drawn(lambda: create({**TINY, **changes}, dtype=dtype, rngs=nnx.Rngs(**rngs)), seed)
    if made.class_text is not None:
        texts = np.asarray(made.class_text[...])
        made.class_text[...] = jnp.asarray(texts / np.linalg.norm(texts, axis=1, keepdims=True))
    return made


def initialised(**changes):
    """As `build`, with the network's own initial values."""
    return nnx.clone(_initialised(tuple(changes.items())))


@functools.cache
def _initialised(changes):
    def make():
        return create({**TINY, **dict(changes)}, rngs=nnx.Rngs(params=0, dropout=1))

    return nnx.jit(make)()


def images(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return jnp.asarray(generator.integers(0, 256, (*shape, 16, 16, 3), dtype=np.uint8))


def triplets(count=4):
    labels = np.arange(count, dtype=np.int32)[:, None] % 3
    return {
        "sketches": images(count, 1, seed=1), "photos": images(count, 2, seed=2),
        "sketch_labels": jnp.asarray(labels),
        "photo_labels": jnp.asarray(np.concatenate([labels, (labels + 1) % 3], axis=1)),
    }  # fmt: skip


def groups(classes=3, k=3):
    labels = jnp.asarray(np.repeat(np.arange(classes, dtype=np.int32)[:, None], k, axis=1))
    return {
        "sketches": images(classes, k, seed=1), "photos": images(classes, k, seed=2),
        "sketch_labels": labels, "photo_labels": labels,
    }  # fmt: skip


def test_features_are_clips_embeddings_of_normalised_images_with_the_modalitys_prompt():
    model = build(pixels="clip")
    mean, deviation = (np.asarray(values) for values in clip_prompt.PIXELS["clip"])
    pixels = jnp.asarray((np.asarray(images(2)) / 255 - mean) / deviation, jnp.float32)
    sketch, photo = (
        (model.sketch_visual, model.sketch_prompt), (model.clip.visual, model.photo_prompt)
    )  # fmt: skip
    for modality, (tower, prompt) in (("sketch", sketch), ("photo", photo)):
        found = compiled(model.encode)(images(2), modality)
        want = compiled(tower.__call__)(pixels, prompt[...])
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(jnp.linalg.norm(model.embedding(found), axis=1), 1, rtol=1e-5)


def test_without_prompts_both_modalities_have_the_same_embedding():
    model = build(prompt_length=0, encoders="shared")
    sketch, photo = (
        compiled(model.encode)(images(2), modality) for modality in ("sketch", "photo")
    )
    np.testing.assert_array_equal(sketch, photo)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "prompts", "towers"),
    [({}, 2, 1), (SHARED, 1, 1), ({"encoders": "separate"}, 2, 2)],
)
def test_prompts_and_towers_are_shared_or_separate(changes, prompts, towers):
    model = initialised(**changes) if towers == 2 else build(**changes)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    assert sum(model.parameter_group(path) == "prompt" for path in paths) == prompts
    assert sum("class_token" in path for path in paths) == towers
    if towers == 2:  # copies in separate buffers
        one, other = (
            jax.tree.leaves(nnx.state(t)) for t in (model.clip.visual, model.sketch_visual)
        )
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_class_texts_are_cached_and_the_text_tower_is_removed():
    kept, model = initialised(text_tower=True), initialised()
    texts = [f"a photo of a {name}" for name in ("cat", "hot-air balloon", "tree")]
    want = kept.embedding(kept.encode_text(texts))
    np.testing.assert_allclose(kept.class_text[...], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.class_text[...], want, rtol=1e-5, atol=1e-6)
    assert not any("text" in path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)))
    with pytest.raises(ValueError, match="text_tower=True"):
        model.encode_text(texts)


@pytest.mark.slow
def test_a_complete_clip_passes_on_the_layer_norms_of_both_branches():
    source, target = build(1, text_tower=True), build(2, text_tower=True)
    clip_prompt.copy_parameters(target, source)
    for path, value in nnx.to_flat_state(nnx.state(source, nnx.Param)):
        found = dict(nnx.to_flat_state(nnx.state(target, nnx.Param)))[path]
        np.testing.assert_array_equal(found[...], value[...], err_msg=str(path))
    with pytest.raises(ValueError, match="needs --config.model.encoders=separate_norms"):
        clip_prompt.copy_parameters(build(2, encoders="shared"), source)


@pytest.mark.slow
def test_the_category_loss_is_the_weighted_sum_of_its_terms():
    model, batch = initialised(), triplets()
    loss, terms = compiled(model.loss)(batch)
    sketch = compiled(model.encode)(batch["sketches"][:, 0], "sketch")
    near, far = (compiled(model.encode)(batch["photos"][:, i], "photo") for i in range(2))
    labels, scale = batch["sketch_labels"][:, 0], 1 / 0.07
    triplet = losses.cosine_triplet(sketch, near, far, margin=0.3)
    classification = sum(
        losses.text_classification(x, model.class_text[...], labels, scale=scale)
        for x in (sketch, near)
    )
    np.testing.assert_allclose(terms["triplet"], triplet, rtol=1e-4)
    np.testing.assert_allclose(terms["classification"], classification, rtol=1e-4)
    np.testing.assert_allclose(loss, triplet + 0.5 * classification, rtol=1e-4)


def numpy_distances(model, batch):
    def vectors(name, modality):
        flat = compiled(model.encode)(batch[name].reshape(-1, 16, 16, 3), modality)
        return np.asarray(model.embedding(flat), np.float64).reshape(*batch[name].shape[:2], -1)

    sketch, photo = vectors("sketches", "sketch"), vectors("photos", "photo")
    return 1 - np.einsum("ckd,cjd->ckj", sketch, photo)


@pytest.mark.slow
@pytest.mark.parametrize("hardest", [True, False])
def test_the_fine_grained_negative_is_another_photo_of_the_class(hardest):
    model, batch = build(**FINE, hardest_negative=hardest), groups()
    distance = numpy_distances(model, batch)
    delta = np.array(
        [
            [
                c[i, i]
                - (min(c[i, j] for j in range(3) if j != i) if hardest else c[i, (i + 1) % 3])
                for i in range(3)
            ]
            for c in distance
        ]
    )
    _, terms = compiled(model.loss)(batch)
    np.testing.assert_allclose(terms["triplet"], np.maximum(delta + 0.3, 0).mean(), rtol=1e-4)
    want = losses.relative_distance_divergence(
        jnp.asarray(delta, jnp.float32), jnp.arange(3, dtype=jnp.int32)
    )
    np.testing.assert_allclose(terms["delta"], want, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_the_fine_grained_loss_is_the_weighted_sum_of_its_terms():
    loss, terms = compiled(build(**FINE).loss)(groups())
    want = (
        terms["triplet"] + 0.5 * terms["classification"] + 0.1 * terms["delta"] + terms["shuffle"]
    )
    np.testing.assert_allclose(loss, want, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("term", ["classification", "delta", "shuffle"])
def test_a_term_of_weight_zero_is_not_computed(term):
    _, terms = compiled(build(**FINE, **{f"{term}_weight": 0.0}).loss)(groups())
    assert {"triplet", "classification", "delta", "shuffle"} - terms.keys() == {term}


def test_patches_are_shuffled_by_two_different_orders_drawn_for_each_batch():
    model = build(**FINE)
    first, second = model._two_orders(500)
    assert (np.asarray(first) != np.asarray(second)).any(axis=1).all()
    for order in (first, second):
        assert (np.sort(order, axis=1) == np.arange(4)).all()
        assert len(np.unique(order, axis=0)) == 24
    assert (np.asarray(model._two_orders(500)[0]) != np.asarray(first)).any()


GROUPS = {
    "layer_norm": {"prompt", "layer_norm"},
    "prompts": {"prompt"},
    "published": {"prompt", "layer_norm", "encoder"},
    "all": {"prompt", "layer_norm", "encoder"},
}


def run(steps=10, optimizer=(), branches_equal=False, **changes):
    """A train state before and after some steps of the category recipe, and its setup."""
    config = clip_default.get_config()
    config.model.update({**TINY, **changes})
    config.train.steps = steps
    config.optimizer.update({"learning_rate": 1e-2, **dict(optimizer)})
    setup = step.set_up(config, sharding.make_mesh(devices=jax.devices()[:1]))
    state = drawn_state(setup)
    if branches_equal:
        flat = dict(nnx.to_flat_state(state["model"]))
        for path in flat:
            if path[0] == "sketch_visual":
                flat[path][...] = jnp.copy(flat["clip", "visual", *path[1:]][...])
    before = {k: np.array(v) for k, v in arrays.flat_arrays(state["model"]).items()}
    for _ in range(steps):
        state, _ = setup.step(state, triplets())
    return before, arrays.flat_arrays(state["model"]), state, setup


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "encoders"),
    [
        ("layer_norm", "separate_norms"),
        ("layer_norm", "shared"),
        ("layer_norm", "separate"),
        ("prompts", "separate_norms"),
        ("published", "shared"),
        ("all", "shared"),
    ],
)
def test_only_what_is_trainable_changes_bit_for_bit(choice, encoders):
    before, after, state, setup = run(trainable=choice, encoders=encoders)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    _, groups = trainable(setup.model)
    assert set(groups.values()) == GROUPS[choice]
    # The keys' bias has no gradient, because softmax ignores it. It is part of the fused bias.
    assert changed == set(groups)
    moments = {name for name in arrays.flat_arrays(state["optimizer"]) if "/mu/" in name}
    assert {name.partition("/mu/")[2] for name in moments} == set(groups)
    parts = {
        "layer_norm": ("prompt", "norm"),
        "prompts": ("prompt",),
        "published": ("qkv", "positions"),
        "all": ("mlp",),
    }
    assert all(any(part in name for name in changed) for part in parts[choice])
    if choice in ("layer_norm", "prompts"):
        assert all(any(part in name for part in parts[choice]) for name in changed)
    assert not any("logit_scale" in name or "class_text" in name for name in changed)


@pytest.mark.slow
def test_only_layer_norms_and_prompts_differ_between_the_branches_after_ten_steps():
    sketch, photo = "sketch_visual/", "clip/visual/"
    before, after, *_ = run(branches_equal=True)
    own = {name.removeprefix(sketch) for name in before if name.startswith(sketch)}
    assert own == {
        name.removeprefix(photo) for name in before if name.startswith(photo) and "norm" in name
    }
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"sketch_prompt", "photo_prompt"} | {
        side + name for side in (sketch, photo) for name in own
    }
    for name in own:
        np.testing.assert_array_equal(before[sketch + name], before[photo + name])
        assert (np.asarray(after[sketch + name]) != np.asarray(after[photo + name])).any()
    assert (np.asarray(after["sketch_prompt"]) != np.asarray(after["photo_prompt"])).any()


def test_an_older_checkpoint_keeps_its_preprocessing_and_its_fingerprint():
    older, newer = build(), build(preprocessing="pad")
    assert (older.preprocessing, newer.preprocessing) == ("crop", "pad")
    assert "preprocessing" not in vars(older)
    assert fingerprint(older) != fingerprint(newer)


@pytest.mark.slow
def test_each_group_has_its_own_learning_rate():
    before, after, *_ = run(
        steps=1, optimizer={"learning_rates": {"prompt": 3e-2, "layer_norm": 1e-2}}
    )
    for name, rate in (("photo_prompt", 3e-2), ("clip/visual/norm_post/bias", 1e-2)):
        # Adam's first step is the learning rate, except for very small gradients.
        np.testing.assert_allclose(np.abs(after[name] - before[name]).max(), rate, rtol=1e-2)


def test_an_unknown_group_is_an_error():
    with pytest.raises(ValueError, match="learning_rates='promt'.*did you mean 'prompt'"):
        run(steps=1, optimizer={"learning_rates": {"promt": 1e-3}})


@pytest.mark.slow
def test_the_optimizer_of_the_published_size_is_under_three_percent_of_the_model():
    config = clip_default.get_config()
    model = abstract.retriever(config.model)
    wrt, _ = trainable(model)
    trained = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, wrt)))
    whole = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert whole == 87_849_216 + 1 + 26 * 2 * 768 + 2 * 3 * 768  # the norms of sketches are extra
    assert trained == 2 * 26 * 2 * 768 + 2 * 3 * 768
    assert 2 * trained < 0.03 * whole


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({}, groups, "'category'.*set config.train.sampler='triplet'"),
        (FINE, triplets, "'fine_grained'.*set config.train.sampler='instance_group'"),
        ({"class_names": None}, triplets, "needs the names of the seen classes"),
    ],
)
def test_a_batch_of_another_sampler_is_an_error_that_names_the_setting(changes, batch, message):
    with pytest.raises(ValueError, match=message):
        compiled(build(**changes).loss)(batch())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trainable": "norms"},
            "trainable='norms': choose one of layer_norm, prompts, published, all",
        ),
        ({"recipe": "fine"}, "recipe='fine'"),
        (
            {"prompt_depth": 2},
            "prompt_depth=2 must be from 1 to the 1 blocks of config.model.depth",
        ),
        ({"prompt_lenght": 3}, "prompt_lenght.*did you mean 'prompt_length'"),
        ({"class_names": ("x " * 30,)}, "context is 16 .* shorten"),
    ],
)
def test_settings_that_do_not_fit_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
