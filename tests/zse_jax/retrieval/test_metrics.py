"""Ranking metrics: the published numbers, a slow oracle, and properties of any ranking."""

import itertools
import re
from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from zse_jax.retrieval import metrics, ranking
from zse_jax.retrieval.metrics import (
    CONVENTIONS,
    METRICS,
    accuracy_at,
    query_metrics,
    rank_metrics,
)
from zse_jax.retrieval.ranking import rank

TOPS = {"mAP@all": None, "mAP@200": 200, "P@100": 100, "P@200": 200}


def oracle(similarity, query_labels, gallery_labels, ap, tops=TOPS):
    """The definitions, one query and one rank at a time; ties keep the gallery's order."""
    rows = []
    for scores, label in zip(similarity, query_labels, strict=True):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        relevant = [bool(gallery_labels[i] == label) for i in order]
        possible = sum(relevant)
        if possible == 0:
            continue
        row = {}
        for name in ("mAP@all", "mAP@200"):
            k = tops[name] or len(relevant)
            head = relevant[:k]
            precision = [sum(head[: i + 1]) / (i + 1) for i in range(len(head))]
            if ap == "voc":
                precision = [max(precision[i:]) for i in range(len(precision))]
            total = sum(p for p, hit in zip(precision, head, strict=True) if hit)
            divisor = sum(head) if ap == "hits" else min(k, possible)
            row[name] = total / divisor if divisor else 0.0
        for name in ("P@100", "P@200"):
            count = min(tops[name], possible)
            row[name] = sum(relevant[:count]) / count
        rows.append(row)
    return {name: sum(row[name] for row in rows) / len(rows) for name in METRICS}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ties_have_the_expected_value_over_all_their_orders(monkeypatch, on_device, seed):
    """Brute force over the permutations of a tiny gallery, for k within a group of ties too."""
    rng = np.random.default_rng(seed)
    tops = {"mAP@all": None, "mAP@200": 3, "P@100": 1, "P@200": 2}
    monkeypatch.setattr(metrics, "AVERAGE_PRECISION", {x: tops[x] for x in ("mAP@all", "mAP@200")})
    monkeypatch.setattr(metrics, "PRECISION", {x: tops[x] for x in ("P@100", "P@200")})
    if on_device:
        monkeypatch.setattr(ranking, "_sorts_on_device", lambda similarity: True)
    gallery_labels = rng.permutation([0, 0, 1, *rng.integers(0, 2, 3)])
    similarity = rng.integers(0, 3, (1, 6)).astype(np.float32)
    scores = jnp.asarray(similarity) if on_device else similarity
    found = rank(scores, np.zeros(1, int), gallery_labels)
    orders = [np.array(order) for order in itertools.permutations(range(6))]
    by_query = metrics.query_metrics_of(found)
    for convention in CONVENTIONS:
        expected = [
            oracle(similarity[:, order], [0], gallery_labels[order], convention, tops)
            for order in orders
        ]
        for name in METRICS:
            mean = np.mean([values[name] for values in expected])
            assert by_query[convention][name][0] == pytest.approx(mean, abs=1e-9)
    for k in (1, 2, 4):
        firsts = [
            (gallery_labels[order][np.argsort(-similarity[0, order], kind="stable")][:k] == 0).any()
            for order in orders
        ]
        assert accuracy_at(found, (k,))[f"Acc@{k}"][0] == pytest.approx(np.mean(firsts), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [1, 5, 60])
def test_ties_have_about_the_mean_over_random_orders(levels):
    """A gallery of 300 photos, whose orders are too many to enumerate."""
    rng = np.random.default_rng(levels)
    similarity, labels = rng.integers(0, levels, (4, 300)), (np.arange(4), rng.integers(0, 4, 300))
    noise = rng.random((100, *similarity.shape)) / 2
    orders = [query_metrics(similarity + one, *labels) for one in noise]
    expected = query_metrics(similarity, *labels)
    for convention in CONVENTIONS:
        for name in METRICS:
            values = np.array([order[convention][name].mean() for order in orders])
            found = expected[convention][name].mean()
            assert abs(values.mean() - found) < 5 * values.std() / len(orders) ** 0.5 + 1e-3


@pytest.mark.parametrize("ap", CONVENTIONS)
def test_a_constant_scorer_is_at_chance_whatever_the_order_of_the_gallery(ap):
    rng = np.random.default_rng(0)
    gallery_labels, query_labels = np.repeat(np.arange(8), 50), rng.integers(0, 8, 60)
    constant = np.zeros((60, 400), np.float32)
    found = rank_metrics(constant, query_labels, gallery_labels, ap=ap)
    order = rng.permutation(400)
    assert rank_metrics(constant, query_labels, gallery_labels[order], ap=ap) == found
    random = rng.random((60, 400))
    by_chance = rank_metrics(random, query_labels, gallery_labels, ap=ap)
    assert found == pytest.approx(by_chance, abs=0.02)
    assert found["P@100"] == pytest.approx(1 / 8)


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
@settings(max_examples=25)
@given(problem=problems(matched=False))
def test_equals_the_definition(ap, problem):
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
@given(problem=problems(ties=True), seed=st.integers(0, 1000))
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


@pytest.mark.slow
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
@given(problem=problems(matched=False))
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


def test_the_worked_example_of_the_documentation_is_what_the_code_computes(monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    example = page[page.index("### A worked example") :]

    def row(name):
        found = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", example, re.MULTILINE)
        return [cell.strip() for cell in found[1].split("|")]

    relevant = np.array(row("photo")) == "cat"
    assert len(relevant) == 10
    precision = [Fraction(int(relevant[:i].sum()), i) for i in range(1, 11)]
    assert list(map(Fraction, row("P(i)"))) == precision
    largest = [max(precision[i:]) for i in range(10)]
    assert list(map(Fraction, row("max of P(i), ..., P(10)"))) == largest

    monkeypatch.setattr(metrics, "AVERAGE_PRECISION", {"AP@all": None, "AP@5": 5})
    monkeypatch.setattr(metrics, "PRECISION", {"P@2": 2, "P@10": 10})
    monkeypatch.setattr(metrics, "METRICS", ("AP@all", "AP@5", "P@2", "P@10"))
    similarity = -np.arange(10.0)[None]
    ranked = rank(similarity, np.ones(1, int), relevant.astype(int))
    found = metrics.query_metrics_of(ranked)
    for name in metrics.METRICS:
        assert row(name) == [f"{found[scope][name][0]:.3f}" for scope in CONVENTIONS]
    sums = re.findall(r"^- `(\w+)` (AP@\w+) = \((.+)\) / (\d)", example, re.MULTILINE)
    assert len(sums) == 5
    for scope, name, terms, count in sums:
        by_hand = sum(map(Fraction, terms.split(" + "))) / int(count)
        assert float(by_hand) == pytest.approx(found[scope][name][0])


@pytest.mark.parametrize("seed", range(3))
def test_precision_of_the_first_photos_is_that_of_the_table(seed, monkeypatch):
    """Also with ties, and for a query without a relevant photo."""
    monkeypatch.setattr(metrics, "PRECISION", {"P@100": 3, "P@200": 200})
    rng = np.random.default_rng(seed)
    ranked = rank(
        rng.integers(0, 4, (6, 12)).astype(np.float32),
        np.array([0, 0, 1, 1, 2, 9]),
        rng.integers(0, 3, 12),
    )
    expected = metrics.query_metrics_of(ranked)["exact"]
    for name, k in (("P@100", 3), ("P@200", 200)):
        np.testing.assert_allclose(metrics.precision_at(ranked, k), expected[name], atol=1e-12)
