"""The first table after an evaluation: what was ranked, its convention, the published values."""

import dataclasses

import numpy as np
import pytest

from configs import (
    clip_quickdraw,
    clip_sketchy_fine_grained,
    clip_sketchy_split2,
    clip_tuberlin,
    cross_sketchy_quickdraw,
    cross_sketchy_tuberlin,
    cross_tuberlin_quickdraw,
    demo,
    efficient_sketchy_split2,
    quickdraw,
    sketchy,
    sketchy_generalized,
    sketchy_split2,
    tuberlin,
)
from tests.zse_jax import tiny
from zse_jax.evaluation import published, tables
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.evaluation.tables import Ranked
from zse_jax.retrieval import metrics
from zse_jax.retrieval.results import Evaluation
from zse_jax.retrievers.registry import SYSTEMS
from zse_jax.runtime import sharding

COMPLETE = Ranked("unseen classes of a split", (12_694, 12_694), (12_553, 12_553))
NAMES = [*metrics.METRICS, *metrics.FIRST_PHOTOS]


def results(*rankings, scopes=metrics.CONVENTIONS, names=NAMES):
    """An evaluation of four sketches; the value of a metric says which one it is."""
    by_query = {
        ranking: {
            scope: {
                name: np.full(4, (10 * i + j) / 100 + 0.001 * k) for j, name in enumerate(names)
            }
            for i, scope in enumerate(scopes)
        }
        for k, ranking in enumerate(rankings)
    }
    return Evaluation(
        name="A split",
        by_query=by_query,
        chances=dict.fromkeys(scopes, 0.1),
        seconds={},
        sketch_labels=np.array([0, 0, 1, 1]),
        photo_labels=np.repeat([0, 1], 300),
        top={},
        top_similarity={},
    )


def cells(table):
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def first(config, ranked=COMPLETE, rankings=("token", "relation"), **given):
    found = results(*rankings, **given)
    return tables.first_table(config, config.model.system, ranked, found, "step 1")


def test_a_row_has_the_metrics_and_convention_of_the_paper_and_its_values():
    table = first(sketchy_split2.get_config())
    names = [column.header for column in table.columns]
    assert names == [
        "ranking", "convention", "mAP@200", "P@200", f"{tables.COMPARE}: mAP@200 / P@200",
    ]  # fmt: skip
    token, relation = cells(table)
    assert [token[0], token[1], token[-1]] == ["token", "voc", "50.4 / 60.2"]
    assert [relation[0], relation[1], relation[-1]] == ["relation", "voc", "52.5 / 62.4"]
    assert str(token[2]).splitlines()[0] == "11.0"  # voc mAP@200
    assert str(relation[3]).splitlines()[0] == "13.1"
    assert "ZSE (Lin et al., CVPR 2023)" in table.caption


@pytest.mark.parametrize(
    ("config", "scope", "named", "values"),
    [
        (sketchy, "voc", ("mAP@all", "P@100"), {"token": (73.6, 80.8), "relation": (69.8, 79.7)}),
        (tuberlin, "voc", ("mAP@all", "P@100"), {"token": (56.9, 63.7), "relation": (54.2, 65.7)}),
        (quickdraw, "voc", ("mAP@all", "P@200"), {"token": (14.2, 20.2), "relation": (14.5, 21.6)}),
        (clip_sketchy_split2, "hits", ("mAP@200", "P@200"), {"embedding": (72.3, 72.5)}),
        (clip_tuberlin, "hits", ("mAP@all", "P@100"), {"embedding": (65.1, 73.2)}),
        (clip_quickdraw, "hits", ("mAP@all", "P@200"), {"embedding": (20.2, 38.8)}),
        (clip_sketchy_fine_grained, "class", ("Acc@1", "Acc@5"), {"embedding": (28.68, 62.34)}),
        (cross_sketchy_tuberlin, "voc", ("mAP@all", "P@100"), {}),
        (cross_sketchy_quickdraw, "voc", ("mAP@all", "P@200"), {}),
        (cross_tuberlin_quickdraw, "voc", ("mAP@all", "P@200"), {}),
    ],
)
def test_every_published_setting_has_its_paper(config, scope, named, values):
    config = config.get_config()
    found = published.reported(config, config.model.system)
    assert found.own
    assert (found.scope, found.metrics, found.values) == (scope, named, values)


def test_what_the_table_of_papers_names_exists():
    assert published.PAPERS.keys() <= {system.paper for system in SYSTEMS.values()}
    for papers in published.PAPERS.values():
        for paper in papers:
            assert paper.values.keys() <= published.BENCHMARKS.keys()
            for name, values in paper.values.items():
                count = len(published.BENCHMARKS[name].metrics)
                assert all(len(row) == count for row in values.values())
    known = {*metrics.METRICS, *metrics.ACCURACY}
    assert all(known >= set(each.metrics) for each in published.BENCHMARKS.values())


@pytest.mark.parametrize("config", [demo, sketchy_generalized])
def test_without_a_paper_there_is_no_mark(config):
    table = first(config.get_config())
    names = [column.header for column in table.columns]
    assert names == ["ranking", "convention", "mAP@all", "P@10"]
    assert {row[1] for row in cells(table)} == {"exact"}
    assert "no paper reports this setting" in table.caption


@pytest.mark.parametrize(
    ("ranked", "why"),
    [
        (COMPLETE._replace(sketches=(254, 12_694)), "only for a complete test set"),
        (COMPLETE._replace(photos=(628, 12_553)), "only for a complete test set"),
        (COMPLETE._replace(test=False), "only for the test set"),
        (COMPLETE._replace(not_zero_shot="trained on 2 classes"), "not zero-shot"),
        (COMPLETE._replace(sketches=(300, 300)), "another test set"),
    ],
)
def test_published_values_stand_only_beside_a_complete_test_set(ranked, why):
    table = first(sketchy_split2.get_config(), ranked)
    assert {row[-1] for row in cells(table)} == {f"{tables.DASH} ({why})"}
    assert table.title.splitlines()[0] == str(ranked)
    assert ("12,694 sketches x 12,553 photos" in table.caption) == (why == "another test set")


def test_other_ways_to_rank_have_no_published_value():
    names = "token", "token+expansion", "relation@100"
    rows = cells(first(sketchy_split2.get_config(), rankings=names))
    assert [row[-1] for row in rows] == [
        "50.4 / 60.2",
        *2 * [f"{tables.DASH} (another way to rank)"],
    ]


def test_a_system_without_published_results_compares_with_the_first_paper_of_the_setting():
    table = first(efficient_sketchy_split2.get_config(), rankings=("embedding",))
    assert cells(table)[0][-1] == "50.4 / 60.2 (ZSE, token)\n52.5 / 62.4 (ZSE, relation)"
    assert "no result of the system's own paper is known" in table.caption


def test_the_table_of_progress_shows_before_and_after_and_what_is_missing():
    after = {"token/exact/mAP@all": 0.5, "token/exact/P@10": 0.25}
    before = {"token/exact/mAP@all": 0.125}
    ranked = Ranked("unseen classes of doodles", (5, 20), (8, 8), subset=True)
    given = demo.get_config(), "zse", ranked
    table = tables.progress_table(*given, before, after, 9, "ViT.npz")
    (row,) = cells(table)
    assert row[2:] == ["12.5\N{RIGHTWARDS ARROW}50.0", f"{tables.DASH}\N{RIGHTWARDS ARROW}25.0"]
    assert table.title.splitlines() == [
        "Validation subset: 5 of 20 sketches x 8 photos of unseen classes of doodles",
        "ViT.npz \N{RIGHTWARDS ARROW} step 9",
    ]
    alone = tables.progress_table(*given, {}, after, 9, "random values")
    assert alone.title.splitlines()[1] == "step 9"
    assert "started from random values" in alone.caption
    assert cells(alone)[0][2] == "50.0"


@pytest.mark.parametrize(("start", "said"), [(0.6, True), (0.5, False), (0.4, False)])
def test_a_start_that_is_better_than_the_selected_step_is_named(start, said):
    config = demo.get_config()
    token, relation = "token/exact/mAP@all", "relation/exact/mAP@all"
    before, after = {token: start, relation: 0.1}, {token: 0.5, relation: 0.2}
    given = config, "zse", COMPLETE, before, after, 9, "ViT.npz"
    caption = tables.progress_table(*given).caption
    assert ("the start (ViT.npz) ranks better by token and" in caption) == said


def test_without_a_paper_the_first_table_omits_metrics_deeper_than_the_classes():
    found = results("token")
    few = dataclasses.replace(found, photo_labels=np.repeat([0, 1], 9))
    given = demo.get_config(), "zse", COMPLETE
    after = {f"token/exact/{name}": 0.5 for name in ("mAP@all", "P@10")}
    for table in (
        tables.first_table(*given, few, "step 1"),
        tables.progress_table(*given, after, after, 1, labels=few.labels),
    ):
        names = [column.header for column in table.columns]
        assert names == ["ranking", "convention", "mAP@all"]


@pytest.mark.usefixtures("tiny_system")
@pytest.mark.parametrize(
    ("changes", "strides", "selection", "expected"),
    [
        ({}, (1, 1), False, "Test set, complete: 24 sketches x 24 photos of unseen classes of"),
        ({}, (1, 1), True, "Test set, complete: 24 sketches x 24 photos of unseen classes of"),
        ({}, (5, 3), False, "Part of the test set: 5 of 24 sketches x 8 of 24 photos of unseen"),
        ({}, (5, 1), True, "Validation subset: 5 of 24 sketches x 24 photos of unseen classes of"),
        (
            {"evaluation.classes": "held_out"},
            (2, 1),
            True,
            "Validation subset: 3 of 6 sketches x 6",
        ),
        ({"evaluation.classes": "held_out"}, (1, 1), True, "Validation set, complete: 6 sketches"),
        ({"evaluation.classes": "held_out"}, (1, 1), False, "Test set, complete: 24 sketches"),
        (
            {"evaluation.protocol": "fine_grained"},
            (1, 2),
            False,
            "Part of the test set: 12 of 24 sketches x 12 of 24 photos of unseen classes",
        ),
    ],
)
def test_the_first_line_says_what_is_ranked(changes, strides, selection, expected):
    evaluator = Evaluator(
        tiny.config(**changes), sharding.make_mesh(), *strides, selection=selection
    )
    shown = str(evaluator.ranked)
    assert shown.startswith(expected)
    held_out = bool(changes.get("evaluation.classes")) and selection
    assert shown.endswith(f"{'held-out seen' if held_out else 'unseen'} classes of doodles")
