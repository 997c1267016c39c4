"""Explanations of pairs: matches, ink, attribution, and the deletion test that judges it."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.compiled import compiled
from tests.zse_jax.retrieval.fakes import fake
from tests.zse_jax.retrievers import test_zse as zse
from zse_jax.explain import correspondence
from zse_jax.retrievers.base import Correspondence, Explainable

SIZE, SIDE = 16, 4
PLACES = SIDE * SIDE


class Blocks(Explainable):
    """Places match as the products of their grey values; the first ones count most."""

    local_evidence = "grey blocks"

    def __init__(self, image_size=SIZE):
        self.image_size = image_size
        self.weights = nnx.Param(jnp.linspace(2, -1, PLACES * PLACES).reshape(PLACES, PLACES))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def encode(self, images, modality):
        return images.reshape(len(images), -1) / 255

    def embedding(self, features):
        return features / jnp.linalg.norm(features, axis=1, keepdims=True)

    def correspond(self, sketches, photos):
        def places(images):
            grid = images.reshape(-1, SIDE, SIZE // SIDE, SIDE, SIZE // SIDE, 3) / 255
            return self.dropout(grid.mean(axis=(2, 4, 5)).reshape(-1, PLACES))

        match = jnp.einsum("bs,bp->bsp", places(sketches), places(photos))
        return Correspondence(self.similarity_of(match), match)

    def similarity_of(self, match):
        return jnp.einsum("bsp,sp->b", match, self.weights[...])


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def spatial():
    return zse.build(anchor_map="spatial")


def pictures(count, seed=0):
    return np.asarray(zse.images(count, seed))


@pytest.fixture(scope="module")
def explained():
    return correspondence.Explainer(spatial())(pictures(3), pictures(3, 1))


@pytest.mark.slow
def test_explanations_use_evaluation_mode(explained):
    model = spatial()
    loss = compiled(model.loss)
    assert loss(zse.quadruplets(1))[0] != loss(zse.quadruplets(1))[0]  # dropout is on
    still = compiled(nnx.view(model, deterministic=True).correspond)(
        zse.images(3), zse.images(3, 1)
    )
    np.testing.assert_allclose(explained.match, still.match, atol=1e-5)
    np.testing.assert_allclose(explained.similarity, still.similarity, rtol=1e-4)


def test_everything_is_a_numpy_array_of_the_documented_shape(explained):
    shapes = {
        "similarity": (3,), "match": (3, 4, 4), "attribution": (3, 4, 4),
        "sketch_relevance": (3, 4), "photo_relevance": (3, 4), "best": (3, 4), "mutual": (3, 4),
        "ink": (3, 4), "sketch_attention": (3, 16, 16), "photo_attention": (3, 16, 16),
        "sketch_importance": (3, 16), "photo_importance": (3, 16),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert isinstance(getattr(explained, name), np.ndarray), name
        assert getattr(explained, name).shape == shape, name
    assert explained.evidence == spatial().local_evidence


def test_an_explanation_does_not_depend_on_the_other_pairs(explained):
    explainer = correspondence.Explainer(spatial())
    alone = explainer(pictures(3)[1:2], pictures(3, 1)[1:2])
    np.testing.assert_allclose(alone.attribution[0], explained.attribution[1], atol=1e-6)
    np.testing.assert_array_equal(alone.best[0], explained.best[1])


@pytest.mark.slow
def test_attribution_is_the_numerical_gradient_times_the_match(explained):
    model = nnx.view(spatial(), deterministic=True)
    step = 1e-2
    for pair, s, p in ((0, 1, 2), (2, 3, 0)):
        up, down = explained.match.copy(), explained.match.copy()
        up[pair, s, p] += step
        down[pair, s, p] -= step
        above, below = (model.similarity_of(jnp.asarray(x))[pair] for x in (up, down))
        slope = (above - below) / (2 * step)
        expected = slope * explained.match[pair, s, p]
        np.testing.assert_allclose(explained.attribution[pair, s, p], expected, rtol=0.05)


def test_attribution_of_a_linear_similarity_sums_to_it():
    found = correspondence.Explainer(Blocks())(images(2), images(2, 1))
    np.testing.assert_allclose(found.attribution.sum(axis=(1, 2)), found.similarity, rtol=1e-4)
    np.testing.assert_allclose(found.sketch_relevance, found.attribution.sum(axis=2))
    np.testing.assert_allclose(found.photo_relevance, found.attribution.sum(axis=1))


def test_best_and_mutual_matches_of_a_small_matrix():
    match = np.array([[[0.9, 0.1, 0.0], [0.8, 0.7, 0.0], [0.0, 0.6, 0.5]]])
    best, mutual = correspondence.best_matches(match, np.ones((1, 3), bool))
    assert best.tolist() == [[0, 0, 1]]
    assert mutual.tolist() == [[True, False, False]]  # photo place 1 prefers sketch place 1


def test_blank_places_are_ignored_in_mutual_matches():
    match = np.array([[[0.9, 0.1, 0.0], [0.8, 0.7, 0.0], [0.0, 0.6, 0.5]]])
    _, mutual = correspondence.best_matches(match, np.array([[False, True, False]]))
    assert mutual.tolist() == [[False, True, False]]


@pytest.mark.parametrize(("paper", "stroke"), [(255, 0), (250, 120), (10, 240)])
def test_ink_is_the_share_of_a_place_that_differs_from_the_paper(paper, stroke):
    sketch = np.full((1, 8, 8, 3), paper, np.uint8)
    sketch[0, :4, 4] = stroke  # one of four columns of the upper right place
    sketch[0, 7, 0] = stroke
    np.testing.assert_allclose(correspondence.ink_share(sketch, 2), [[0, 0.25, 1 / 16, 0]])


def test_a_grid_that_does_not_divide_the_image_still_gives_shares():
    sketch = np.full((1, 7, 7, 3), 255, np.uint8)
    sketch[0, :, 5:] = 0
    np.testing.assert_allclose(correspondence.ink_share(sketch, 3)[0, ::3], 0)
    np.testing.assert_allclose(correspondence.ink_share(sketch, 3)[0, 2::3], 2 / 3, rtol=1e-6)


def test_a_sketch_without_strokes_is_not_an_error():
    blank = np.full((1, 32, 32, 3), 255, np.uint8)
    found = correspondence.Explainer(spatial())(blank, pictures(1))
    assert not found.ink.any()
    assert not found.mutual.any()


@pytest.mark.slow
def test_dropped_tokens_match_nothing_on_the_whole_grid():
    model = zse.build(keep_rate=0.5, keep_blocks=(1,), anchors=8)
    found = correspondence.Explainer(model)(pictures(2), pictures(2, 1))
    assert found.match.shape == (2, 16, 16)
    for i in range(2):
        gone = np.setdiff1d(np.arange(16), found.sketch_places[i])
        assert len(gone) == 8
        assert (found.match[i, gone] == -1).all()
        assert not found.attribution[i, gone].any()
        assert not found.ink[i, gone].any()
        assert not found.mutual[i, gone].any()
        best = found.best[i, found.sketch_places[i]]
        assert np.isin(best, found.photo_places[i]).all()
    order = np.tile(np.arange(256), (2, 1))
    curve = correspondence.deletion_curve(model, found, order, steps=4)
    np.testing.assert_allclose(curve[:, 0], found.similarity, rtol=1e-4)


def test_deletion_goes_from_all_matches_to_none():
    model = Blocks()
    found = correspondence.Explainer(model)(images(2), images(2, 1))
    order = (-found.attribution.reshape(2, -1)).argsort(axis=1)
    curve = correspondence.deletion_curve(model, found, order, steps=7)
    assert curve.shape == (2, 8)
    np.testing.assert_allclose(curve[:, 0], found.similarity, rtol=1e-4)
    np.testing.assert_allclose(curve[:, -1], 0, atol=1e-4)


def test_deletion_removes_in_the_order_given():
    model = Blocks()
    found = correspondence.Explainer(model)(images(1), images(1, 1))
    order = np.random.default_rng(0).permutation(PLACES**2)[None]
    curve = correspondence.deletion_curve(model, found, order, steps=PLACES**2)
    left = found.match.copy().reshape(-1)
    left[order[0, :10]] = 0
    expected = model.similarity_of(jnp.asarray(left.reshape(found.match.shape)))
    np.testing.assert_allclose(curve[0, 10], expected[0], rtol=1e-4)


@pytest.mark.slow
def test_removing_the_largest_attributions_lowers_the_similarity_most():
    model = spatial()
    found = correspondence.Explainer(model)(pictures(20), pictures(20, 1))
    attribution = found.attribution.reshape(20, -1)
    random = np.random.default_rng(0).random(attribution.shape)
    area = {
        name: correspondence.deletion_curve(model, found, order, steps=16).mean()
        for name, order in {
            "most": (-attribution).argsort(axis=1),
            "random": random.argsort(axis=1),
            "least": attribution.argsort(axis=1),
        }.items()
    }
    assert area["most"] < area["random"] < area["least"]


@pytest.mark.parametrize(
    "order", [np.zeros((2, PLACES**2), int), np.tile(np.arange(PLACES), (2, 1))], ids=str
)
def test_an_invalid_order_is_an_error(order):
    found = correspondence.Explainer(Blocks())(images(2), images(2, 1))
    with pytest.raises(ValueError, match="each of the 16 x 16 matches of 2 pairs once"):
        correspondence.deletion_curve(Blocks(), found, order)


@pytest.mark.parametrize(
    ("sketches", "photos", "message"),
    [
        (images(1)[:, :8], images(1), r"sketch images must be uint8 .*prepare_sketch"),
        (images(1), images(1)[:, :8, :8], r"photo .* \[1, 8, 8, 3\]: prepare .*prepare_photo"),
        (images(1) / 255, images(1), "uint8 .* but these are float64"),
        (images(1)[0], images(1), r"shape \[16, 16, 3\]: add the axis"),
        (images(0), images(0), "no pairs to explain"),
        (images(2), images(3), "2 sketches and 3 photos, .* pairs"),
    ],
)
def test_images_that_do_not_form_pairs_are_errors(sketches, photos, message):
    with pytest.raises(ValueError, match=message):
        correspondence.Explainer(Blocks())(sketches, photos)


def test_a_retriever_without_local_evidence_is_an_error():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="no local evidence with which to explain"):
        correspondence.Explainer(fake())(image, image)
