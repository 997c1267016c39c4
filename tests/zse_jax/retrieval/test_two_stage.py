"""Two-stage ranking: the shortlist first, by score; the others in the order of embeddings."""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from tests.zse_jax.retrieval.fakes import Fake, cosines, distances, fake, features
from tests.zse_jax.retrievers.test_zse import still
from zse_jax.retrieval import two_stage
from zse_jax.retrieval.ranking import tie_order
from zse_jax.retrieval.two_stage import two_stage_blocks


def ranks(*arguments, **options):
    """All blocks together, as ranks from 1 (the best)."""
    blocks = list(two_stage_blocks(*arguments, **options))
    rows = [np.arange(len(values)) + rows.start for rows, values in blocks]
    values = np.concatenate([np.asarray(values) for _, values in blocks])
    assert np.concatenate(rows).tolist() == list(range(len(values)))
    assert values.dtype == np.float32
    return -values


def oracle(first, second, k):
    """The ranks by numpy, one sketch after the other."""
    result = np.empty(first.shape, np.float32)
    ties = tie_order(first.shape[1])
    for row, (embedding, score) in enumerate(zip(first, second, strict=True)):
        order = ties[np.argsort(-embedding[ties], kind="stable")]
        listed, others = order[:k], order[k:]
        result[row, listed] = 1 + (score[listed] > score[listed][:, None]).sum(1)
        result[row, others] = k + 1 + (embedding[others] > embedding[others][:, None]).sum(1)
    return result


@pytest.mark.parametrize("pairs", [None, 7])
@pytest.mark.parametrize(("queries", "gallery", "k"), [(1, 2, 1), (13, 29, 5), (8, 32, 31)])
def test_the_shortlist_is_ordered_by_score_and_the_rest_by_embedding(queries, gallery, k, pairs):
    sketches, photos = features(queries, 1), features(gallery, 2)
    expected = oracle(cosines(sketches, photos), distances(sketches, photos), k)
    np.testing.assert_array_equal(ranks(fake(), sketches, photos, k, pairs=pairs), expected)


@pytest.mark.parametrize("k", [29, 1000])
def test_a_shortlist_of_the_whole_gallery_is_exact_ranking(k):
    sketches, photos = features(13, 1), features(29, 2)
    scores = np.asarray(fake().score(sketches, photos))
    np.testing.assert_array_equal(ranks(fake(), sketches, photos, k), oracle(scores, scores, 29))


def test_the_first_k_are_the_k_nearest_embeddings():
    sketches, photos = features(13, 1), features(29, 2)
    found = ranks(fake(), sketches, photos, 7) <= 7
    nearest = np.argsort(-cosines(sketches, photos), axis=1)[:, :7]
    assert (found.sum(1) == 7).all() and np.take_along_axis(found, nearest, 1).all()


@given(st.data())
def test_tied_photos_share_their_first_rank(data):
    gallery, k = data.draw(st.sampled_from([(1, 1), (2, 1), (7, 3), (12, 12)]))  # compiles for each
    draw = st.lists(st.integers(0, 3), min_size=gallery, max_size=gallery)
    first, second = (np.array([data.draw(draw)], np.float32) for _ in range(2))
    similarity, ties = jax.numpy.asarray(first), jax.numpy.asarray(tie_order(gallery))
    order, shortlist = two_stage._shortlist(similarity, ties, k=k, approximate=False)
    scores = np.take_along_axis(second, np.asarray(shortlist), axis=1)
    values = two_stage._values(similarity, order, shortlist, jax.numpy.asarray(scores))
    np.testing.assert_array_equal(-np.asarray(values), oracle(first, second, k))


@pytest.mark.parametrize("place", [np.asarray, jax.device_put, "disk"])
def test_features_may_be_in_any_place(place, tmp_path):
    def mapped(leaf):
        file = np.memmap(tmp_path / str(leaf.ndim), dtype=leaf.dtype, mode="w+", shape=leaf.shape)
        file[:] = leaf
        return file

    sketches, photos = features(13, 1), features(29, 2)
    expected = ranks(fake(), sketches, photos, 5)
    placed = jax.tree.map(mapped if place == "disk" else place, photos)
    np.testing.assert_array_equal(ranks(fake(), sketches, placed, 5), expected)


@pytest.mark.slow
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("queries", "k"), [(3, 1), (21, 5)])
def test_eight_devices_return_what_one_returns(sharding, queries, k, on_device):
    sketches, photos = features(queries, 1), features(29, 2)
    expected = ranks(fake(), sketches, photos, k)
    if on_device:
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        sketches, photos = jax.device_put((sketches, photos), everywhere)
    found = ranks(fake(), sketches, photos, k, sharding=sharding, pairs=4)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_equals_scoring_each_sketch_by_itself():
    retriever = still()
    sketches, photos = (
        jax.random.normal(jax.random.key(i), (n, 17, 16)) for i, n in enumerate((5, 11))
    )
    scores = np.concatenate([retriever.score(sketches[i : i + 1], photos) for i in range(5)])
    similarity = retriever.embedding(sketches) @ retriever.embedding(photos).T
    expected = oracle(np.asarray(similarity), scores, 6)
    np.testing.assert_array_equal(ranks(retriever, sketches, photos, 6, pairs=4), expected)


@pytest.mark.slow
def test_a_device_scores_no_more_than_the_given_pairs_at_once(sharding):
    Fake.pairs.clear()
    for mesh in (None, sharding):
        ranks(fake(), features(13), features(29), 7, pairs=4, sharding=mesh)
    assert set(Fake.pairs) == {4}


def test_compiles_once_whatever_the_number_of_sketches():
    retriever = fake()
    for queries in (13, 50):
        ranks(retriever, features(queries), features(29), 5, pairs=20)
    assert retriever.compilations("score_pairs") == 1


def test_a_shortlist_scores_only_its_own_pairs(capsys):
    ranks(fake(), features(13), features(29), 5, progress="two-stage")
    assert "65/65" in capsys.readouterr().err


def test_the_shortlist_may_be_approximate():
    sketches, photos = features(13, 1), features(29, 2)
    found = ranks(fake(), sketches, photos, 5, approximate=True)
    assert (np.sort(found, axis=1) == np.arange(1, 30)).all()


def test_an_approximate_shortlist_that_misses_photos_still_ranks_them():
    order, scores = np.array([[2, 0, 1, 3]]), np.array([[0.1, 0.2]], np.float32)
    similarity = np.array([[0.8, 0.7, 0.9, 0.6]], np.float32)
    arrays = similarity, order, np.array([[1, 2]]), scores
    values = two_stage._values(*map(jax.numpy.asarray, arrays))
    assert values.tolist() == [[-3, -2, -1, -4]]


@pytest.mark.parametrize("k", [0, -3])
def test_an_empty_shortlist_is_an_error(k):
    with pytest.raises(ValueError, match=f"k={k}: the shortlist must contain at least 1 of the 5"):
        two_stage_blocks(fake(), features(2), features(5), k)


def test_no_pairs_at_once_are_an_error():
    with pytest.raises(ValueError, match="pairs=0"):
        two_stage_blocks(fake(), features(2), features(5), 2, pairs=0)


@pytest.mark.parametrize("kind", ["embedding", "score"])
def test_a_retriever_without_both_kinds_is_an_error(kind):
    class One(Fake):
        rankings = {"only": kind}  # noqa: RUF012

    missing = {"embedding": "score", "score": "embedding"}[kind]
    with pytest.raises(ValueError, match=f"Of kind '{missing}', One has none"):
        two_stage_blocks(One(rngs=nnx.Rngs(0)), features(2), features(5), 2)


def test_a_ranking_of_the_wrong_kind_is_an_error():
    with pytest.raises(ValueError, match="Fake has cosine, and 'distance' is of the other kind"):
        two_stage_blocks(fake(), features(2), features(5), 2, first="distance")


def test_an_unknown_ranking_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'distance'"):
        two_stage_blocks(fake(), features(2), features(5), 2, second="distnace")


def test_nan_is_an_error_that_names_the_pair():
    class Broken(Fake):
        def score_pairs(self, sketches, photos):
            return super().score_pairs(sketches, photos) * jax.numpy.where(
                photos["vector"][:, 0] == 7, jax.numpy.nan, 1
            )

    sketches, photos = features(6, 1), features(20, 2)
    photos["vector"][17, 0] = 7
    sketch = int(np.argmax(np.argmax(cosines(sketches, photos)[:, 17:18], axis=1) == 0))
    with pytest.raises(FloatingPointError, match=f"distance .* sketch {sketch} with photo 17, "):
        ranks(Broken(rngs=nnx.Rngs(0)), sketches, photos, 19)


def test_scores_of_another_shape_are_an_error():
    class Broken(Fake):
        def score_pairs(self, sketches, photos):
            return self.score(sketches, photos)

    with pytest.raises(ValueError, match=r"Broken.score_pairs returned shape \(6, 6\) for 6"):
        ranks(Broken(rngs=nnx.Rngs(0)), features(3), features(5), 2)
