"""Query expansion: equal to its formula, and to the photos of the class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zse_jax.retrieval.fakes import fake, features
from zse_jax.retrieval import scoring
from zse_jax.retrieval.expansion import ALPHA, expand


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vectors(count, seed, width=8):
    return unit(np.random.default_rng(seed).normal(size=(count, width))).astype(np.float32)


def oracle(sketches, photos, k, rounds, blend):
    """The docstring's formula, one query after the other."""
    result = []
    for sketch in sketches.astype(np.float64):
        query = sketch
        for _ in range(rounds):
            similarity = photos @ query
            nearest = np.argsort(-similarity)[:k]
            weights = np.maximum(similarity[nearest], 0) ** ALPHA
            if weights.any():
                query = unit(blend * sketch + (1 - blend) * unit(weights @ photos[nearest]))
            else:
                query = sketch
        result.append(query)
    return np.array(result)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 3, 40]), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.3, 1.0]))
def test_queries_move_as_documented(k, rounds, blend):
    sketches, photos = vectors(5, 1), vectors(20, 2)
    found = expand(sketches, photos, k, rounds, blend)
    np.testing.assert_allclose(found, oracle(sketches, photos, k, rounds, blend), atol=1e-5)
    if blend == 1.0:
        np.testing.assert_allclose(found, sketches, atol=1e-6)


def test_a_query_without_a_similar_photo_stays():
    sketch = np.eye(4, dtype=np.float32)[:1]
    np.testing.assert_array_equal(expand(sketch, -sketch, 1), sketch)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 3, "rounds": 0}])
def test_a_number_below_one_is_an_error(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        expand(vectors(2, 1), vectors(3, 2), **wrong)


def test_clusters_of_photos_attract_the_sketches_of_their_class():
    """Photos of a class lie together, its sketches beside them: expansion finds more of them."""
    rng = np.random.default_rng(0)
    centres = vectors(10, 3, width=16)
    labels = np.repeat(np.arange(10), 20)
    photos = unit(centres[labels] + 0.15 * rng.normal(size=(200, 16))).astype(np.float32)
    sketches = unit(centres + 0.35 * rng.normal(size=(10, 16))).astype(np.float32)

    def precision(queries):
        first = np.argsort(-np.asarray(queries) @ photos.T, axis=1)[:, :20]
        return (labels[first] == np.arange(10)[:, None]).mean()

    assert precision(expand(sketches, photos, 10)) > precision(sketches) + 0.05


def test_similarities_by_expanded_queries_do_not_depend_on_the_blocks(monkeypatch):
    sketches, photos = features(13, 1), features(29, 2)
    retriever = fake()
    whole = scoring.similarity(retriever, sketches, photos, "cosine", expansion=5)
    queries, gallery = (np.asarray(retriever.embedding(x)) for x in (sketches, photos))
    expected = np.asarray(expand(queries, gallery, 5)) @ gallery.T
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", 4 * 29 * 3)
    monkeypatch.setattr(scoring, "_VECTOR_BYTES", 200)
    small = scoring.similarity(retriever, sketches, photos, "cosine", expansion=5)
    np.testing.assert_allclose(small, expected, atol=1e-5)


def test_a_ranking_of_pairs_has_no_query_to_expand():
    with pytest.raises(ValueError, match="no query"):
        scoring.similarity_blocks(fake(), features(2, 1), features(3, 2), "distance", expansion=2)
