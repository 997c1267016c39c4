"""The three losses of EfficientCNN against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zse_jax import losses
from zse_jax.losses import knowledge_preservation, semantic_classification

domain_balanced_quadruplet = jax.jit(
    losses.domain_balanced_quadruplet, static_argnames=("margin", "cross_margin")
)
margins = st.sampled_from([(0.0, 0.0), (0.3, 0.15), (1.0, 0.7)])
seeds = st.integers(0, 10**6)


def batch(seed, classes=3, per_class=2, width=5):
    """Sketches, photos, and their labels: `per_class` of each, in random order."""
    rng = np.random.default_rng(seed)
    sides = [rng.standard_normal((classes * per_class, width), dtype=np.float32) for _ in "sp"]
    labels = [rng.permutation(np.repeat(np.arange(classes), per_class)) for _ in "sp"]
    return *sides, *labels


def quadruplet_oracle(sketches, photos, sketch_labels, photo_labels, margin, cross_margin):
    """The formula in the docstring, anchor by anchor."""
    domains = [
        (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True), labels)
        for x, labels in ((sketches, sketch_labels), (photos, photo_labels))
    ]
    means = []
    for own in (0, 1):
        anchors = []
        for a, label in zip(*domains[own], strict=True):
            total = 0.0
            for domain, (members, labels) in enumerate(domains):
                distance = [max(np.linalg.norm(a - m), 1e-3) for m in members]
                same = [i for i, other in enumerate(labels) if other == label]
                others = [i for i, other in enumerate(labels) if other != label]
                p = max(same, key=lambda i, d=distance: d[i])
                n = min(others, key=lambda i, d=distance: d[i])
                total += max(0, margin + distance[p] - distance[n])
                if domain != own:
                    apart = np.linalg.norm(members[p] - members[n])
                    total += max(0, cross_margin + distance[p] - apart)
            anchors.append(total)
        means.append(np.mean(anchors))
    return np.mean(means)


@pytest.mark.slow
@given(seeds, margins)
def test_quadruplet_agrees_with_its_formula(seed, both):
    margin, cross_margin = both
    given_batch = batch(seed)
    got = domain_balanced_quadruplet(
        *map(jnp.asarray, given_batch), margin=margin, cross_margin=cross_margin
    )
    want = quadruplet_oracle(*given_batch, margin, cross_margin)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@given(seeds)
def test_quadruplet_is_symmetric_in_the_domains(seed):
    sketches, photos, sketch_labels, photo_labels = map(jnp.asarray, batch(seed))
    swapped = domain_balanced_quadruplet(photos, sketches, photo_labels, sketch_labels)
    loss = domain_balanced_quadruplet(sketches, photos, sketch_labels, photo_labels)
    np.testing.assert_allclose(loss, swapped, rtol=1e-5)


@pytest.mark.parametrize("repeat", [2, 3])
def test_quadruplet_does_not_depend_on_the_number_of_photos_per_class(repeat):
    sketches, photos, sketch_labels, photo_labels = map(jnp.asarray, batch(4))
    many = domain_balanced_quadruplet(
        sketches, jnp.tile(photos, (repeat, 1)), sketch_labels, jnp.tile(photo_labels, repeat)
    )
    once = domain_balanced_quadruplet(sketches, photos, sketch_labels, photo_labels)
    np.testing.assert_allclose(many, once, rtol=1e-5)


@pytest.mark.slow
def test_quadruplet_is_0_for_orthogonal_classes_and_its_margins_for_equal_vectors():
    labels = jnp.asarray([0, 0, 1, 1])
    apart = jnp.eye(4)[labels]
    assert domain_balanced_quadruplet(apart, apart, labels, labels, margin=0.3) == 0
    point = jnp.ones((4, 3))
    loss, gradient = jax.value_and_grad(losses.domain_balanced_quadruplet)(
        point, point, labels, labels, margin=0.3, cross_margin=0.2
    )
    np.testing.assert_allclose(loss, 0.3 + 0.3 + 0.2, rtol=1e-5)
    assert np.isfinite(gradient).all()


@given(seeds, st.floats(0, 0.5))
def test_classification_agrees_with_its_formula(seed, smoothing):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((6, 4), dtype=np.float32), rng.integers(0, 4, 6)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    got = semantic_classification(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing)
    np.testing.assert_allclose(got, -(target * np.log(p)).sum(axis=1).mean(), rtol=1e-5)


@given(seeds)
def test_knowledge_preservation_is_the_divergence_from_the_teacher(seed):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((6, 9), dtype=np.float32)
    teacher = rng.dirichlet(np.ones(9), 6).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    want = (teacher * np.log(teacher / p)).sum(axis=1).mean()
    got = knowledge_preservation(jnp.asarray(logits), jnp.asarray(teacher))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_knowledge_preservation_is_0_at_the_teacher_and_finite_for_a_certain_teacher():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), jnp.float32)
    assert abs(knowledge_preservation(logits, jax.nn.softmax(logits))) < 1e-6
    sure = jnp.eye(5)[:3]
    value, gradient = jax.value_and_grad(knowledge_preservation)(logits, sure)
    np.testing.assert_allclose(
        value, -jax.nn.log_softmax(logits)[jnp.arange(3), :3].diagonal().mean(), rtol=1e-5
    )
    assert np.isfinite(gradient).all()


def test_coinciding_embeddings_have_a_finite_loss_and_no_gradient():
    labels = jnp.arange(6) % 3

    def loss(x):
        return domain_balanced_quadruplet(x, x, labels, labels)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.ones((6, 4)))
    assert float(value) == pytest.approx(2 * 0.3 + 0.15)
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("per_class", [1, 3])
def test_contrastive_agrees_with_its_formula(per_class):
    sketches, photos, sketch_labels, photo_labels = batch(0, per_class=per_class)
    photo_labels[photo_labels == 2] = 1  # class 2 has no photo: its sketches count nothing
    got = losses.supervised_contrastive(
        *map(jnp.asarray, (sketches, photos, sketch_labels, photo_labels)), temperature=0.2
    )
    rows, columns = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (sketches, photos))
    z = rows.astype(np.float64) @ columns.T / 0.2
    same = sketch_labels[:, None] == photo_labels
    sides = []
    for values, positive in ((z, same), (z.T, same.T)):
        log_p = values - np.log(np.exp(values).sum(1, keepdims=True))
        terms = [-row[mask].mean() for row, mask in zip(log_p, positive, strict=True) if mask.any()]
        sides.append(np.mean(terms))
    np.testing.assert_allclose(got, np.mean(sides), rtol=1e-5)
