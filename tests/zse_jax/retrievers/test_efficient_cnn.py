"""EfficientCNN at a small size: its loss, its interface, and the batches that it rejects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax import abstract
from tests.zse_jax.random_weights import drawn
from zse_jax import losses
from zse_jax.models import layers
from zse_jax.retrievers import create, registry
from zse_jax.retrievers.efficient_cnn import EfficientCNN, Teacher, class_knowledge

TINY = {
    "system": "efficient_cnn",
    "image_size": 16,
    "depths": (1, 1),
    "width": 4,
    "imagenet_classes": 7,
    "embedding_width": 6,
    "seen_classes": 5,
}


def build(seed=0, dtype="float32", **changes):
    return drawn(lambda: create({**TINY, **changes}, dtype=dtype, rngs=nnx.Rngs(seed)), seed)


def taught(**changes):
    model = build(**changes)
    if model.knowledge is not None:
        model.knowledge[...] = jnp.asarray(
            np.random.default_rng(0).dirichlet(np.ones(7), 5), jnp.float32
        )
    return model


_encode = nnx.jit(lambda model, images: model.encode(images, "photo"))
_loss = nnx.jit(lambda model, batch: model.loss(batch))


def embed(model, images):
    """Embeddings as in evaluation."""
    return _encode(nnx.view(model, use_running_average=True), images)


def normalise(images):
    return layers.normalise(images, layers.IMAGENET_MEAN, layers.IMAGENET_STD)


def pixels(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (*shape, 16, 16, 3), dtype=np.uint8))


def groups(labels=(3, 0, 4), size=2):
    label = jnp.repeat(jnp.asarray(labels, jnp.int32)[:, None], size, axis=1)
    return {
        "sketches": pixels(len(labels), size, seed=1),
        "photos": pixels(len(labels), size, seed=2),
        "sketch_labels": label,
        "photo_labels": label,
    }


def test_pixels_are_normalised_to_the_mean_and_std_of_imagenet():
    image = jnp.asarray([124, 116, 104], jnp.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(normalise(image).ravel(), 0, atol=0.02)
    white = jnp.full((1, 1, 1, 3), 255, jnp.uint8)
    want = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalise(white).ravel(), want, rtol=1e-5)


def test_features_are_unit_embeddings_and_score_is_their_cosine():
    model = taught()
    sketches, photos = embed(model, pixels(3)), embed(model, pixels(4, seed=1))
    assert sketches.shape == (3, 6)
    np.testing.assert_allclose(jnp.linalg.norm(sketches, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.embedding(photos), photos)
    np.testing.assert_allclose(model.score(sketches, photos), sketches @ photos.T, rtol=1e-4)


def test_the_pooled_features_can_be_ranked_by_and_training_is_the_same():
    model, other = taught(), taught(retrieval_layer="features")
    pooled, _ = nnx.jit(lambda model, x: model(x))(
        nnx.view(other.backbone, use_running_average=True), normalise(pixels(3))
    )
    np.testing.assert_allclose(embed(other, pixels(3)), losses.unit(pooled), rtol=1e-5)
    roots = embed(taught(retrieval_layer="root_features"), pixels(3))
    want = losses.unit(jnp.sign(pooled) * jnp.sqrt(jnp.abs(pooled)))
    np.testing.assert_allclose(roots, want, atol=1e-5)
    assert jax.tree.structure(nnx.state(other)) == jax.tree.structure(nnx.state(model))
    assert _loss(other, groups())[0] == _loss(model, groups())[0]
    with pytest.raises(ValueError, match="choose one of projection, features, root_features"):
        abstract.retriever({**TINY, "retrieval_layer": "feature"})


@pytest.mark.slow
def test_loss_is_the_weighted_sum_of_its_three_terms_on_the_right_images():
    model = taught(
        quadruplet_weight=2.0, classification_weight=0.5, knowledge_weight=3.0,
        label_smoothing=0.1, margin=0.4, cross_margin=0.2,
    )  # fmt: skip
    batch = groups()
    loss, terms = _loss(model, batch)
    images = jnp.concatenate([batch["sketches"], batch["photos"]], axis=1).reshape(-1, 16, 16, 3)
    features, imagenet = nnx.jit(lambda model, x: model.backbone(normalise(x)))(taught(), images)
    embeddings = model.projection(features)
    logits = model.classifier(embeddings)
    labels = jnp.repeat(jnp.asarray([3, 0, 4]), 4)
    is_sketch = np.tile([True, True, False, False], 3)
    quadruplet = losses.domain_balanced_quadruplet(
        embeddings[is_sketch], embeddings[~is_sketch], labels[is_sketch], labels[~is_sketch],
        margin=0.4, cross_margin=0.2,
    )  # fmt: skip
    classification = losses.semantic_classification(logits, labels, smoothing=0.1)
    knowledge = losses.knowledge_preservation(imagenet, model.knowledge[...][labels])
    np.testing.assert_allclose(terms["quadruplet"], quadruplet, rtol=1e-3)
    np.testing.assert_allclose(terms["classification"], classification, rtol=1e-3)
    np.testing.assert_allclose(terms["knowledge"], knowledge, rtol=1e-3)
    want = 2 * quadruplet + 0.5 * classification + 3 * knowledge
    np.testing.assert_allclose(loss, want, rtol=1e-3)


@pytest.mark.slow
def test_every_parameter_receives_a_gradient_and_the_knowledge_does_not():
    model, batch = taught(), groups()
    gradients = nnx.jit(nnx.grad(lambda model: model.loss(batch)[0]))(model)
    flat = dict(nnx.to_flat_state(gradients))
    assert not [path for path, leaf in flat.items() if not np.abs(leaf[...]).max() > 0]
    assert not any("knowledge" in path for path in flat)


def test_a_loss_of_weight_0_is_not_computed():
    model = build(quadruplet_weight=0.0, knowledge_weight=0.0)
    assert model.knowledge is None
    loss, terms = _loss(model, groups())
    assert terms.keys() == {"accuracy", "classification"}
    assert loss == terms["classification"]


@pytest.mark.slow
def test_knowledge_that_was_not_prepared_makes_the_loss_nan():
    unprepared = nnx.jit(lambda: create(TINY, rngs=nnx.Rngs(0)))()
    loss, terms = _loss(unprepared, groups())
    assert np.isnan(terms["knowledge"])
    assert np.isnan(loss)


def test_training_moves_the_running_averages_and_encoding_uses_them():
    model = taught()
    before = embed(model, pixels(2))
    _loss(model, groups())
    after = embed(model, pixels(2))
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_array_equal(embed(model, pixels(2)), after)


def test_frozen_statistics_do_not_move():
    model = taught(frozen_statistics=True)
    before = embed(model, pixels(2))
    _loss(model, groups())
    np.testing.assert_array_equal(embed(model, pixels(2)), before)


def test_the_published_network_is_a_resnet_50_with_two_more_heads():
    shapes = abstract.retriever({"system": "efficient_cnn"})
    count = sum(x.size for x in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
    assert count == 25_557_032 + 2049 * 512 + 513 * 100


def test_bfloat16_computes_in_bfloat16_with_float32_variables_and_embeddings():
    model = taught(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}
    embedding = embed(model, pixels(2))
    assert embedding.dtype == jnp.float32
    reference = embed(taught(), pixels(2))
    assert 0 < jnp.linalg.norm(embedding - reference) < 0.1


def change(batch, **entries):
    return {**batch, **entries}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"photo_labels": jnp.asarray([[3, 3], [0, 0], [1, 1]])},
         r"only one domain .*: 1 \(photos\), 4 \(sketches\)"),
        ({name: jnp.full((3, 2), 2) for name in ("sketch_labels", "photo_labels")},
         "All images of this batch are of class 2: at least two classes"),
        ({name: jnp.asarray([[9], [0], [1]]) for name in ("sketch_labels", "photo_labels")},
         "A label of this batch is 9, but the network has seen_classes=5"),
        ({"photos": pixels(2, 2)}, r"same P classes, but have shapes \(3, 2, .*\(2, 2"),
        ({"photos": pixels(3, 0)}, "The 3 classes of this batch have no photos"),
    ],
    ids=["one domain", "one class", "unknown label", "other classes", "no photos"],
)  # fmt: skip
def test_batches_without_both_domains_or_negatives_are_errors(entries, message):
    with pytest.raises(ValueError, match=message):
        build().loss(change(groups(), **entries))


def test_a_single_group_is_an_error_under_jit_too():
    model = build()
    with pytest.raises(ValueError, match="This batch has 1 class"):
        jax.jit(model.loss)(groups(labels=(1,)))


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="seen_classes=0 must be positive"):
        EfficientCNN(seen_classes=0, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_the_teacher_returns_the_softmax_of_the_imagenet_head():
    model = nnx.view(taught(), use_running_average=True)
    predictions = _encode(Teacher(model.backbone, 16), pixels(3))
    _, logits = nnx.jit(lambda model, x: model(x))(model.backbone, normalise(pixels(3)))
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(predictions, jax.nn.softmax(logits), rtol=1e-4)


def test_class_knowledge_is_the_mean_prediction_of_each_class():
    predictions = np.random.default_rng(0).dirichlet(np.ones(4), 5).astype(np.float32)
    knowledge = class_knowledge(predictions, np.array([1, 0, 1, 2, 1]), ["a", "b", "c"])
    np.testing.assert_allclose(knowledge[1], predictions[[0, 2, 4]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(knowledge[0], predictions[1])


def test_a_class_without_photos_for_the_teacher_is_an_error():
    with pytest.raises(ValueError, match="no photos of 2 of 4 seen classes: a, d"):
        class_knowledge(np.ones((2, 3), np.float32), np.array([1, 2]), list("abcd"))


def test_a_network_for_other_classes_takes_over_everything_but_the_classifier():
    source, same, other = build(seed=1), build(), build(seen_classes=3)
    kept = np.array(other.classifier.kernel[...])
    for target in (same, other):
        registry.copy_parameters("efficient_cnn", target, source)
        np.testing.assert_array_equal(target.projection.kernel[...], source.projection.kernel[...])
    np.testing.assert_array_equal(same.classifier.kernel[...], source.classifier.kernel[...])
    np.testing.assert_array_equal(other.classifier.kernel[...], kept)
    with pytest.raises(ValueError, match="do not fit this config.model"):
        registry.copy_parameters("efficient_cnn", build(embedding_width=5), source)


@pytest.mark.parametrize("layer", ["projection", "features"])
def test_the_width_of_its_vectors_is_known_without_tracing(layer):
    model = build(retrieval_layer=layer)
    traced = super(type(model), model).vector_width
    assert model.vector_width == traced == embed(model, pixels(1)).shape[1]
