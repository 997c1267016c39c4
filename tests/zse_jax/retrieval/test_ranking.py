"""Rankings: the order of a stable sort, equal on the host and on a device."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from zse_jax.retrieval import ranking
from zse_jax.retrieval.ranking import concatenate, rank

SPECIAL = [-np.inf, np.inf, 0.0, -0.0, 1e-42, -1e-42, 1.0, np.nextafter(np.float32(1), 2), -2.5]


@st.composite
def problems(draw):
    """Similarity [Q, G] full of ties and special numbers, labels, and perhaps groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, gallery = draw(st.sampled_from([(1, 1), (5, 7), (11, 300)]))
    similarity = rng.choice(
        np.where(rng.random(40) < 0.5, rng.choice(SPECIAL, 40), rng.standard_normal(40)),
        (queries, gallery),
    ).astype(np.float32)
    labels = {
        "query_labels": rng.integers(0, 4, queries),
        "gallery_labels": rng.integers(0, 5, gallery),
    }
    if draw(st.booleans()):
        labels["query_groups"] = rng.integers(0, 4, queries)
        labels["gallery_groups"] = rng.integers(0, 3, gallery)
    return {"similarity": similarity, **labels}


def oracle(
    similarity, query_labels, gallery_labels, query_groups=None, gallery_groups=None, top=200
):
    """One query at a time, as lists."""
    for query, scores in enumerate(similarity):
        candidates = [
            photo
            for photo in range(len(scores))
            if query_groups is None or gallery_groups[photo] == query_groups[query]
        ]
        place = ranking.tie_order(len(scores)).argsort()
        order = sorted(candidates, key=lambda photo: (-scores[photo], place[photo]))
        hits = [
            position
            for position, photo in enumerate(order, start=1)
            if gallery_labels[photo] == query_labels[query]
        ]
        yield order[:top], hits, len(candidates)


def equal(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def on_device(monkeypatch):
    """Jax arrays are sorted by XLA, although this is a CPU."""
    monkeypatch.setattr(ranking, "_sorts_on_device", lambda similarity: True)


@settings(max_examples=60)
@given(problem=problems())
def test_is_a_stable_sort_of_the_candidates(problem):
    ranked = rank(**problem, top=20)
    for query, (top, hits, candidates) in enumerate(oracle(**problem, top=20)):
        kept = ranked.top[query] >= 0
        assert ranked.top[query][kept].tolist() == top
        assert ranked.hit_ranks[query][ranked.hit_ranks[query] > 0].tolist() == hits
        assert ranked.candidates[query] == candidates
        np.testing.assert_array_equal(
            ranked.top_similarity[query],
            np.where(kept, problem["similarity"][query][ranked.top[query]], np.nan),
        )


@pytest.mark.slow
@settings(max_examples=40)
@given(problem=problems())
def test_a_device_returns_what_the_host_returns(problem):
    host = rank(**problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_sorts_on_device", lambda similarity: True)
        equal(rank(**problem | {"similarity": jnp.asarray(problem["similarity"])}), host)


@settings(max_examples=20)
@given(problem=problems())
def test_float64_returns_what_float32_returns(problem):
    equal(
        rank(**problem | {"similarity": problem["similarity"].astype(np.float64)}), rank(**problem)
    )


@settings(max_examples=20)
@given(problem=problems())
def test_results_do_not_depend_on_blocks_of_queries(problem):
    whole = rank(**problem)
    cuts = (
        [slice(0, 1), slice(1, 2), slice(2, None)]
        if len(problem["similarity"]) > 2
        else [slice(None)]
    )
    of_queries = {"similarity", "query_labels", "query_groups"}
    parts = [
        rank(**{k: v[cut] if k in of_queries else v for k, v in problem.items()}) for cut in cuts
    ]
    equal(concatenate(parts), whole)


@pytest.mark.parametrize("block", [30, 100, 10_000])
def test_results_do_not_depend_on_the_block_size(monkeypatch, block):
    rng = np.random.default_rng(0)
    problem = (
        rng.integers(0, 9, (11, 30)).astype(np.float32),
        rng.integers(0, 3, 11),
        np.arange(30) % 3,
    )
    whole = rank(*problem)
    monkeypatch.setattr(ranking, "_HOST_BLOCK", block)
    monkeypatch.setattr(ranking, "_DEVICE_BLOCK", block)
    equal(rank(*problem), whole)
    monkeypatch.setattr(ranking, "_sorts_on_device", lambda similarity: True)
    equal(rank(jnp.asarray(problem[0]), *problem[1:]), whole)


def test_eight_devices_sort_their_share(on_device, sharding):
    rng = np.random.default_rng(0)
    similarity, queries, gallery = (
        rng.random((21, 64), np.float32),
        np.arange(21) % 3,
        np.arange(64) % 3,
    )
    by_photos = jax.NamedSharding(sharding.mesh, jax.P(None, *sharding.spec))
    placed = jax.device_put(similarity, by_photos)
    equal(rank(placed, queries, gallery), rank(similarity, queries, gallery))


def test_a_device_compiles_once_for_all_blocks_but_the_last(on_device):
    rng = np.random.default_rng(0)
    ranking._sort_on_device.clear_cache()
    for rows in (16, 16, 13, 16):
        rank(
            jnp.asarray(rng.random((rows, 50), np.float32)),
            rng.integers(0, 3, rows),
            np.arange(50) % 3,
        )
    assert ranking._sort_on_device._cache_size() == 2


def test_arrays_of_a_cpu_are_sorted_by_the_host(monkeypatch):
    monkeypatch.delattr(ranking, "_sort_on_device")
    assert rank(jnp.array([[0.1, 0.9]]), jnp.array([3]), jnp.array([0, 3])).top.tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, jnp.bfloat16, np.float16])
def test_every_number_type_ranks_the_same(dtype):
    values = np.array([[0, 1, 1, 0]])
    labels = np.array([7]), np.array([0, 7, 0, 7])
    equal(rank(values.astype(dtype), *labels), rank(values.astype(np.float32), *labels))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_device_ranks_every_floating_point_type(on_device, dtype):
    similarity = np.random.default_rng(0).standard_normal((3, 40)).astype(dtype)
    labels = np.arange(3), np.arange(40) % 3
    equal(rank(jnp.asarray(similarity), *labels), rank(similarity, *labels))


@pytest.mark.filterwarnings("error")
def test_float64_is_ranked_outside_the_range_of_float32():
    similarity = np.array([[1e300, 2e300, 1 + 1e-12, 1.0]])
    ranked = rank(similarity, np.array([0]), np.arange(4))
    assert ranked.top.tolist() == [[1, 0, 2, 3]]
    assert ranked.top_similarity.tolist() == [[np.inf, np.inf, 1.0, 1.0]]


def test_labels_may_be_names():
    ranked = rank(np.array([[0.3, 0.2, 0.1]]), np.array(["cat"]), np.array(["dog", "cat", "cat"]))
    assert ranked.hit_ranks.tolist() == [[2, 3]]


def test_hit_ranks_are_as_wide_as_the_largest_number_of_hits():
    similarity = np.tile(np.float32([4, 3, 2, 1]), (2, 1))
    gallery = np.array([5, 5, 5, 1])
    assert rank(similarity, np.array([1, 2]), gallery).hit_ranks.tolist() == [[4], [0]]
    assert rank(similarity, np.array([2, 3]), gallery).hit_ranks.shape == (2, 0)


def test_a_group_with_fewer_photos_than_top_is_padded():
    ranked = rank(
        np.array([[1.0, 2.0, 3.0]] * 2),
        np.array([0, 0]),
        np.array([0, 1, 2]),
        query_groups=np.array([4, 5]),
        gallery_groups=np.array([4, 4, 6]),
        top=3,
    )
    assert ranked.top.tolist() == [[1, 0, -1], [-1, -1, -1]]
    assert ranked.candidates.tolist() == [2, 0]
    assert ranked.hit_ranks.tolist() == [[2], [0]]
    np.testing.assert_array_equal(ranked.top_similarity, [[2, 1, np.nan], [np.nan] * 3])


@pytest.mark.parametrize("path", ["host", "device"])
def test_nan_is_an_error_that_names_query_and_photo(monkeypatch, path):
    similarity = np.zeros((3, 4), np.float32)
    similarity[2, 1] = np.nan
    if path == "device":
        monkeypatch.setattr(ranking, "_sorts_on_device", lambda similarity: True)
        similarity = jnp.asarray(similarity)
    with pytest.raises(ValueError, match="query 12 with gallery photo 1 is NaN"):
        rank(similarity, np.zeros(3, int), np.zeros(4, int), first_query=10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "shapes", [((2, 3), 3, 2), ((2, 3), 2, 4), ((6,), 2, 3), ((2, 3, 1), 2, 3)]
)
def test_shapes_that_do_not_match_are_named(shapes):
    shape, queries, gallery = shapes
    with pytest.raises(ValueError, match=r"shapes \[Q, G\], \[Q\] and \[G\], but have \("):
        rank(np.zeros(shape), np.zeros(queries, int), np.zeros(gallery, int))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_rank_is_an_error(shape):
    with pytest.raises(ValueError, match="Nothing to rank"):
        rank(np.zeros(shape), *(np.zeros(n, int) for n in shape))


def test_groups_of_one_side_only_are_an_error():
    with pytest.raises(ValueError, match=r"shapes \[\(1,\)\] for labels"):
        rank(np.zeros((1, 1)), np.zeros(1, int), np.zeros(1, int), query_groups=np.zeros(1, int))


def test_parts_of_different_rankings_are_an_error():
    labels = np.zeros(1, int), np.zeros(4, int)
    parts = [rank(np.zeros((1, 4)), *labels, top=top) for top in (2, 3)]
    with pytest.raises(ValueError, match="keep 2, 3"):
        concatenate(parts)
    with pytest.raises(ValueError, match="there are no parts"):
        concatenate([])
