"""Cost and accuracy by K: the rows, the smallest good K, the table."""

import dataclasses
import json

import pytest

from tests.zse_jax.retrieval.test_results import printed, random_evaluation
from zse_jax.retrieval import rerank_report


def measured(**values):
    """An evaluation of ranking "score" and two-stage ones, whose mAP@all is given in percent."""
    one = random_evaluation()
    exact = one.by_query["score"]

    def with_map(percent):
        changed = {
            name: array * 0 + percent / 100 if name == "mAP@all" else array
            for name, array in exact["exact"].items()
        }
        return {**exact, "exact": changed}

    by_query = {"token": exact} | {name: with_map(value) for name, value in values.items()}
    seconds = {"rank/score": 8.0} | {
        f"rank/{name}": float(name.partition("@")[2].removesuffix("+expansion")) / 10
        for name in values
        if "@" in name
    }
    return dataclasses.replace(one, by_query=by_query, seconds=seconds)


EXAMPLE = {"score": 50.0, "score@90": 49.7, "score@30": 49.6, "score@10": 30.0}


def test_rows_go_from_the_smallest_shortlist_to_exact_ranking():
    rows = rerank_report.shortlists(measured(**EXAMPLE))
    assert [row.k for row in rows] == [10, 30, 90, 300]
    assert [row.share for row in rows] == pytest.approx([1 / 30, 0.1, 0.3, 1.0])
    assert [row.cost for row in rows] == pytest.approx([1 / 8, 3 / 8, 9 / 8, 1.0])
    assert [row.values["mAP@all"] for row in rows] == pytest.approx([0.3, 0.496, 0.497, 0.5])


def test_shortlists_by_expanded_queries_are_compared_with_the_same_exact_ranking():
    both = measured(**EXAMPLE, **{"score@30+expansion": 54.0, "score@10+expansion": 49.8})
    rows = rerank_report.shortlists(both)[4:]
    assert [(row.ranking, row.k) for row in rows] == [("score+expansion", k) for k in (10, 30, 300)]
    assert [row.values["mAP@all"] for row in rows] == pytest.approx([0.498, 0.54, 0.5])
    assert rerank_report.smallest(rows).k == 10


def test_the_smallest_good_shortlist_loses_half_a_point_at_most():
    rows = rerank_report.shortlists(measured(**EXAMPLE))
    assert rerank_report.smallest(rows).k == 30
    assert rerank_report.smallest([rows[0], rows[-1]]).k == 300


def test_the_table_names_the_smallest_good_shortlist_and_every_cost():
    text = " ".join(printed(rerank_report.shortlist_table(measured(**EXAMPLE))).split())
    assert "score: K = 30 is within 0.5 points of exact mAP@all" in text
    assert "37.5" in text and "300 │ exact" in text
    nothing_good = rerank_report.shortlist_table(measured(score=50.0, **{"score@10": 30.0}))
    assert "only the whole gallery" in " ".join(printed(nothing_good).split())


def test_without_shortlists_there_is_no_table_and_an_empty_list():
    evaluation = measured(score=50.0)
    assert rerank_report.shortlist_table(evaluation) is None
    assert rerank_report.shortlists_dict(evaluation) == {"shortlists": []}


def test_rows_are_plain_values():
    text = json.dumps(rerank_report.shortlists_dict(measured(**EXAMPLE)))
    assert json.loads(text)["shortlists"][1]["k"] == 30
