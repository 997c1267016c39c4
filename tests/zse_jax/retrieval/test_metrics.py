"""Ranking metrics: the published numbers, a slow oracle, and what must hold of any ranking."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from zse_jax.retrieval import metrics
from zse_jax.retrieval.metrics import CONVENTIONS, METRICS, query_metrics, rank_metrics


def oracle(similarity, query_labels, gallery_labels, ap):
    """The definitions, one query and one rank at a time."""
    rows = []
    for scores, label in zip(similarity, query_labels, strict=True):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        relevant = [bool(gallery_labels[i] == label) for i in order]
        possible = sum(relevant)
        if possible == 0:
            continue
        row = {}
        for name, k in (("mAP@all", len(relevant)), ("mAP@200", 200)):
            head = relevant[:k]
            precision = [sum(head[: i + 1]) / (i + 1) for i in range(len(head))]
            if ap == "voc":
                precision = [max(precision[i:]) for i in range(len(precision))]
            total = sum(p for p, hit in zip(precision, head, strict=True) if hit)
            divisor = sum(head) if ap == "hits" else min(k, possible)
            row[name] = total / divisor if divisor else 0.0
        for name, k in (("P@100", 100), ("P@200", 200)):
            count = min(k, possible)
            row[name] = sum(relevant[:count]) / count
        rows.append(row)
    return {name: sum(row[name] for row in rows) / len(rows) for name in METRICS}


@st.composite
def problems(draw, ties=False, matched=True):
    """Similarity [Q, G] and labels; `matched`: the gallery has a photo of every query's class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, gallery = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 7, 40, 130, 260, 450]))
    classes = draw(st.integers(1, 4))
    # Exactly representable in float32, and distinct unless ties are asked for.
    size = queries * gallery
    values = rng.integers(0, 5, size) if ties else rng.permutation(size)
    gallery_labels = rng.integers(0, classes, gallery)
    known = gallery_labels if matched else np.append(gallery_labels[:1], np.arange(classes))
    query_labels = rng.choice(known, queries)
    if not matched:
        query_labels[0] = gallery_labels[0]
    return values.reshape(queries, gallery).astype(np.float32), query_labels, gallery_labels


@pytest.mark.parametrize("prefix", ["", "few_"])
def test_voc_reproduces_the_published_evaluator(golden, prefix):
    case = golden("metrics")
    result = rank_metrics(
        -case[f"{prefix}distance"],
        case[f"{prefix}query_label"],
        case[f"{prefix}gallery_label"],
        ap="voc",
    )
    assert list(result) == ["mAP@all", "mAP@200", "P@100", "P@200"]
    np.testing.assert_allclose(list(result.values()), case[f"{prefix}result"], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*no photo in the gallery")
@pytest.mark.parametrize("ap", CONVENTIONS)
@pytest.mark.parametrize("ties", [False, True])
@settings(max_examples=25)
@given(data=st.data())
def test_equals_the_definition(ap, ties, data):
    problem = data.draw(problems(ties=ties, matched=False))
    result = rank_metrics(*problem, ap=ap)
    assert result == pytest.approx(oracle(*problem, ap), abs=1e-9)


@pytest.mark.parametrize("ap", CONVENTIONS)
@settings(max_examples=30)
@given(problem=problems())
def test_a_perfect_ranking_is_one(ap, problem):
    _, query_labels, gallery_labels = problem
    perfect = (query_labels[:, None] == gallery_labels).astype(np.float32)
    result = rank_metrics(perfect, query_labels, gallery_labels, ap=ap)
    assert result == pytest.approx(dict.fromkeys(METRICS, 1.0))


@settings(max_examples=30)
@given(problem=problems(ties=True))
def test_exact_reads_lowest(problem):
    values = query_metrics(*problem)
    for name in METRICS:
        assert (values["exact"][name] <= values["voc"][name] + 1e-12).all()
        assert (values["exact"][name] <= values["hits"][name] + 1e-12).all()


@pytest.mark.parametrize("ap", CONVENTIONS)
@settings(max_examples=30)
@given(problem=problems())
def test_only_the_order_of_similarities_counts(ap, problem):
    similarity, *labels = problem
    transformed = np.exp(similarity.astype(np.float64) / 300) - 3
    assert rank_metrics(transformed, *labels, ap=ap) == rank_metrics(similarity, *labels, ap=ap)


@pytest.mark.parametrize("ap", CONVENTIONS)
@settings(max_examples=30)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_the_order_of_the_gallery_does_not_count(ap, problem, seed):
    similarity, query_labels, gallery_labels = problem
    shuffle = np.random.default_rng(seed).permutation(len(gallery_labels))
    shuffled = rank_metrics(similarity[:, shuffle], query_labels, gallery_labels[shuffle], ap=ap)
    assert shuffled == rank_metrics(similarity, query_labels, gallery_labels, ap=ap)


def test_ties_keep_the_order_of_the_gallery():
    equal = np.zeros((1, 3), np.float32)
    first = rank_metrics(equal, np.array([1]), np.array([1, 0, 0]))
    last = rank_metrics(equal, np.array([1]), np.array([0, 0, 1]))
    assert (first["mAP@all"], last["mAP@all"]) == pytest.approx((1, 1 / 3))


def test_a_random_ranking_is_at_chance():
    rng = np.random.default_rng(0)
    query_labels, gallery_labels = rng.integers(0, 8, 200), np.repeat(np.arange(8), 150)
    similarity = rng.standard_normal((200, 1200), dtype=np.float32)
    chance = metrics.chance_level(query_labels, gallery_labels)
    assert chance == pytest.approx(1 / 8)
    result = rank_metrics(similarity, query_labels, gallery_labels)
    assert result["mAP@all"] == pytest.approx(chance, abs=0.01)
    assert result["P@100"] == pytest.approx(chance, abs=0.01)


def test_blocks_of_queries_do_not_show(monkeypatch):
    rng = np.random.default_rng(1)
    problem = rng.random((11, 30)), rng.integers(0, 3, 11), rng.integers(0, 3, 30)
    whole = rank_metrics(*problem)
    monkeypatch.setattr(metrics, "_BLOCK", 100)
    assert rank_metrics(*problem) == whole


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, jnp.bfloat16, np.float16])
def test_every_number_type_ranks_alike(dtype):
    values = np.array([[0, 1, 1, 0]])
    labels = np.array([7]), np.array([0, 7, 0, 7])
    assert rank_metrics(values.astype(dtype), *labels) == rank_metrics(values, *labels)


def test_infinities_rank_first_and_last():
    similarity = np.array([[-np.inf, np.inf, 0.0]])
    assert rank_metrics(similarity, np.array([1]), np.array([0, 1, 1]))["mAP@all"] == 1


def test_jax_arrays_are_taken():
    similarity = jnp.array([[0.1, 0.9]])
    assert rank_metrics(similarity, jnp.array([3]), jnp.array([0, 3]))["mAP@all"] == 1


def test_queries_without_a_photo_are_left_out_with_a_warning():
    similarity = np.array([[0.9, 0.1], [0.5, 0.6]])
    with pytest.warns(UserWarning, match="1 of 2 queries are of a class that has no photo"):
        result = rank_metrics(similarity, np.array([0, 5]), np.array([0, 1]))
    assert result == dict.fromkeys(METRICS, 1.0)
    assert np.isnan(
        query_metrics(similarity, np.array([0, 5]), np.array([0, 1]))["hits"]["mAP@200"]
    ).tolist() == [
        False,
        True,
    ]


@pytest.mark.filterwarnings("ignore:.*no photo in the gallery")
def test_no_query_with_a_photo_is_an_error():
    with pytest.raises(ValueError, match="None of the 2 queries"):
        rank_metrics(np.zeros((2, 2)), np.array([4, 5]), np.array([0, 1]))


def test_nan_is_an_error_that_says_where():
    similarity = np.zeros((3, 4))
    similarity[2, 1] = np.nan
    with pytest.raises(ValueError, match="query 2 with gallery photo 1 is NaN"):
        rank_metrics(similarity, np.zeros(3, int), np.zeros(4, int))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "shapes", [((2, 3), 3, 2), ((2, 3), 2, 4), ((6,), 2, 3), ((2, 3, 1), 2, 3)]
)
def test_shapes_that_do_not_fit_are_named(shapes):
    shape, queries, gallery = shapes
    with pytest.raises(ValueError, match=r"shapes \[Q, G\], \[Q\] and \[G\], but have \("):
        rank_metrics(np.zeros(shape), np.zeros(queries, int), np.zeros(gallery, int))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_rank_is_an_error(shape):
    with pytest.raises(ValueError, match="Nothing to rank"):
        query_metrics(np.zeros(shape), *(np.zeros(n, int) for n in shape))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_convention_is_an_error():
    with pytest.raises(ValueError, match=r"'coco'.*exact, voc, hits"):
        rank_metrics(np.zeros((1, 1)), np.zeros(1, int), np.zeros(1, int), ap="coco")
