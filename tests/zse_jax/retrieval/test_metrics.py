"""Ranking metrics: the published numbers, a slow oracle, and properties of any ranking."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from zse_jax.retrieval import metrics
from zse_jax.retrieval.metrics import (
    CONVENTIONS,
    METRICS,
    accuracy_at,
    query_metrics,
    rank_metrics,
)
from zse_jax.retrieval.ranking import rank


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
def test_exact_is_never_larger_than_the_other_conventions(problem):
    values = query_metrics(*problem)
    for name in METRICS:
        assert (values["exact"][name] <= values["voc"][name] + 1e-12).all()
        assert (values["exact"][name] <= values["hits"][name] + 1e-12).all()


@pytest.mark.parametrize("ap", CONVENTIONS)
@settings(max_examples=30)
@given(problem=problems())
def test_metrics_depend_only_on_the_order_of_similarities(ap, problem):
    similarity, *labels = problem
    transformed = np.exp(similarity.astype(np.float64) / 300) - 3
    assert rank_metrics(transformed, *labels, ap=ap) == rank_metrics(similarity, *labels, ap=ap)


@pytest.mark.parametrize("ap", CONVENTIONS)
@settings(max_examples=30)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_metrics_do_not_depend_on_the_order_of_the_gallery(ap, problem, seed):
    similarity, query_labels, gallery_labels = problem
    shuffle = np.random.default_rng(seed).permutation(len(gallery_labels))
    shuffled = rank_metrics(similarity[:, shuffle], query_labels, gallery_labels[shuffle], ap=ap)
    assert shuffled == rank_metrics(similarity, query_labels, gallery_labels, ap=ap)


def test_a_random_ranking_is_at_chance():
    rng = np.random.default_rng(0)
    query_labels, gallery_labels = rng.integers(0, 8, 200), np.repeat(np.arange(8), 150)
    similarity = rng.standard_normal((200, 1200), dtype=np.float32)
    expected = metrics.chance(rank(similarity, query_labels, gallery_labels))
    assert expected == pytest.approx(1 / 8)
    result = rank_metrics(similarity, query_labels, gallery_labels)
    assert result["mAP@all"] == pytest.approx(1 / 8, abs=0.01)
    assert result["P@100"] == pytest.approx(1 / 8, abs=0.01)


def test_results_do_not_depend_on_blocks_of_queries(monkeypatch):
    rng = np.random.default_rng(1)
    problem = rng.random((11, 30)), rng.integers(0, 3, 11), rng.integers(0, 3, 30)
    whole = rank_metrics(*problem)
    monkeypatch.setattr(metrics, "_BLOCK", 30)
    assert rank_metrics(*problem) == whole


@settings(max_examples=30)
@given(problem=problems(ties=True, matched=False))
def test_queries_ranked_together_have_the_metrics_of_each_alone(problem):
    similarity, query_labels, gallery_labels = problem
    whole = query_metrics(similarity, query_labels, gallery_labels)
    for query in range(len(similarity)):
        row = slice(query, query + 1)
        alone = query_metrics(similarity[row], query_labels[row], gallery_labels)
        for convention in CONVENTIONS:
            for name in METRICS:
                np.testing.assert_array_equal(alone[convention][name], whole[convention][name][row])


def test_all_photos_of_a_gallery_smaller_than_k_count():
    result = rank_metrics(np.array([[3.0, 2.0, 1.0]]), np.array([1]), np.array([0, 1, 1]))
    average = (1 / 2 + 2 / 3) / 2
    assert result == pytest.approx(
        {"mAP@all": average, "mAP@200": average, "P@100": 1 / 2, "P@200": 1 / 2}
    )


@settings(max_examples=30)
@given(problem=problems(ties=True, matched=False))
def test_accuracy_is_1_if_one_of_the_first_photos_is_relevant(problem):
    similarity, query_labels, gallery_labels = problem
    accuracy = accuracy_at(rank(similarity, query_labels, gallery_labels), (1, 5, 1000))
    for query, scores in enumerate(similarity):
        order = sorted(range(len(scores)), key=lambda i, scores=scores: (-scores[i], i))
        relevant = [bool(gallery_labels[i] == query_labels[query]) for i in order]
        for k in (1, 5, 1000):
            expected = float(any(relevant[:k])) if any(relevant) else np.nan
            np.testing.assert_equal(accuracy[f"Acc@{k}"][query], expected)


@settings(max_examples=30)
@given(problem=problems(ties=True))
def test_accuracy_grows_with_k_and_with_fewer_candidates(problem):
    similarity, query_labels, gallery_labels = problem
    photos, queries = np.arange(len(gallery_labels)), np.zeros(len(query_labels), int)
    for query, label in enumerate(query_labels):
        queries[query] = photos[gallery_labels == label][0]
    groups = {"query_groups": query_labels, "gallery_groups": gallery_labels}
    overall = accuracy_at(rank(similarity, queries, photos))
    within = accuracy_at(rank(similarity, queries, photos, **groups))
    assert list(overall) == ["Acc@1", "Acc@5", "Acc@10"]
    for accuracy in (overall, within):
        assert (accuracy["Acc@1"] <= accuracy["Acc@5"]).all()
        assert (accuracy["Acc@5"] <= accuracy["Acc@10"]).all()
    for name in overall:
        assert (within[name] >= overall[name]).all()


def test_a_class_of_one_candidate_is_always_right():
    ranked = rank(
        np.array([[0.9, 0.1]]),
        np.array([7]),
        np.array([6, 7]),
        query_groups=np.array([1]),
        gallery_groups=np.array([0, 1]),
    )
    assert {name: value.tolist() for name, value in accuracy_at(ranked).items()} == {
        "Acc@1": [1.0],
        "Acc@5": [1.0],
        "Acc@10": [1.0],
    }
    assert metrics.chance(ranked).tolist() == [1.0]


def test_queries_without_a_photo_are_excluded_with_a_warning():
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


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_convention_is_an_error():
    with pytest.raises(ValueError, match=r"'coco'.*exact, voc, hits"):
        rank_metrics(np.zeros((1, 1)), np.zeros(1, int), np.zeros(1, int), ap="coco")
