"""Comparison of runs: paired intervals, what compares, configs, curves, the page, the program."""

import json
import re
import shutil

import numpy as np
import pytest
from absl import flags
from flax import nnx

from tests.zse_jax import tiny
from zse_jax import compare as program
from zse_jax.evaluation import comparison, per_query
from zse_jax.evaluation.comparison import Run
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.evaluation.per_query import PerQuery
from zse_jax.retrievers import create
from zse_jax.retrievers.base import evaluation_view
from zse_jax.runtime import cli, sharding

pytestmark = pytest.mark.usefixtures("tiny_system")

TEST = {"embedding/exact/mAP@all": 0.25, "embedding/exact/P@10": 0.5}


def queries(values, *, task="a", sketches=None, labels=None):
    """`values`: "ranking/scope/metric" -> values of the sketches."""
    count = len(next(iter(values.values())))
    found = np.arange(count) if sketches is None else np.asarray(sketches)
    return PerQuery(
        12,
        f"Test set, complete: {count} sketches",
        task,
        {"P@10": "P@10 (R-precision)"},
        found.astype(np.uint64),
        (found % 4).astype(np.int32) if labels is None else labels,
        np.arange(count),
        {name: np.asarray(x, np.float32) for name, x in values.items()},
    )


def run(name, values=None, *, records=(), results=None, changes=None, **given):
    flat = {"evaluation.select": "token/exact/mAP@all"} | (changes or {})
    found = None if values is None else queries(values, **given)
    return Run(name, f"runs/{name}", 12, tiny.config(**flat), records, results or {}, found)


def rows(found):
    return {(row.ranking, row.scope, row.metric): row for row in found.rows}


@pytest.fixture(scope="module")
def two():
    """Values of 200 sketches, of which some are hard for both runs; the second is 0.05 better."""
    rng = np.random.default_rng(0)
    hard = rng.random(200) * 0.8
    return hard, hard + 0.05 + 0.01 * rng.standard_normal(200)


def test_the_interval_of_a_difference_is_paired(two):
    a, b = (run(name, {"token/exact/mAP@all": x}) for name, x in zip("ab", two, strict=True))
    found = comparison.compare([a, b])
    (row,) = found.rows
    (difference,) = row.differences
    assert row.values == pytest.approx([x.mean() for x in two], abs=1e-6)
    assert difference.mean == pytest.approx((two[1] - two[0]).mean(), abs=1e-6)
    error = (two[1] - two[0]).std() / np.sqrt(200)
    assert difference.low == pytest.approx(difference.mean - 1.96 * error, abs=0.4 * error)
    assert difference.high == pytest.approx(difference.mean + 1.96 * error, abs=0.4 * error)
    assert found.sketches == 200
    assert "200 sketches" in comparison.statement(found)
    shown = comparison.cells(row)[-1]
    assert re.fullmatch(r"\+\d\.\d \(\+\d\.\d to \+\d\.\d\)", shown)
    wide = comparison.compare([a, b], "classes").rows[0].differences[0]
    assert wide.mean == difference.mean


def test_sketches_are_matched_by_content_not_by_place(two):
    values = {"token/exact/mAP@all": two[0]}
    order = np.random.default_rng(1).permutation(200)[:150]
    shuffled = {"token/exact/mAP@all": two[0][order]}
    found = comparison.compare([run("a", values), run("b", shuffled, sketches=order)])
    (row,) = found.rows
    assert found.sketches == 150
    assert row.differences[0] == (0, 0, 0)
    assert row.values[0] == row.values[1] == pytest.approx(two[0][order].mean(), abs=1e-6)


def test_sketches_without_a_value_do_not_count():
    a = run("a", {"token/exact/mAP@all": [0.5, np.nan, 0.3]})
    b = run("b", {"token/exact/mAP@all": [0.6, np.nan, 0.6]})
    (row,) = comparison.compare([a, b]).rows
    assert row.values == pytest.approx((0.4, 0.6))
    assert row.differences[0].mean == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"task": "other"}, "it ranked other photos, or by another protocol"),
        ({"sketches": range(10, 14)}, "it ranked other sketches"),
    ],
)
def test_runs_of_other_test_sets_are_shown_without_a_difference(given, why):
    values = {"token/exact/mAP@all": [0.5, 0.25, 0.5, 0.75]}
    found = comparison.compare([run("a", values), run("b", values, **given), run("c", values)])
    (row,) = found.rows
    assert row.values == (0.5, 0.5, 0.5)
    assert row.differences[0] is None
    assert any(f"b is not compared with a: {why}." in x for x in comparison.remarks(found))


def test_a_run_without_values_by_sketch_names_the_command_that_writes_them():
    results = {"step": 9, "test": {"token/exact/mAP@all": 0.5}}
    results["setting"] = {"evaluation": {"test_sketch_stride": 1, "test_photo_stride": 2}}
    old = run("b", results=results)
    found = comparison.compare([run("a", {"token/exact/mAP@all": [0.25, 0.25]}), old])
    assert found.rows[0].values == (0.25, 0.5)
    assert found.rows[0].differences == (None,)
    assert "no run compares" in comparison.statement(found)
    shown = "\n".join(comparison.remarks(found))
    assert "python -m zse_jax.evaluate --checkpoint=runs/b --queries=runs/b/queries.npz" in shown
    assert "b: step 9. Test set of doodles at the end of training, strides (1, 2)" in shown


def test_one_run_in_three_that_does_not_compare_leaves_the_others():
    values = {"token/exact/mAP@all": [0.5, 0.25]}
    found = comparison.compare([run("a", values), run("b"), run("c", values)])
    assert [*found.incomparable] == ["b"]
    assert found.rows[0].values == (0.375, None, 0.375)
    assert found.rows[0].differences[0] is None
    assert found.rows[0].differences[1] == (0, 0, 0)


def test_systems_without_a_common_ranking_are_compared_by_their_selected_one():
    zse = {"token/exact/mAP@all": [0.5, 0.25], "relation/exact/mAP@all": [0.75, 0.25]}
    clip = {"embedding/exact/mAP@all": [0.5, 0.5]}
    select = {"evaluation.select": "embedding/exact/mAP@all"}
    found = comparison.compare([run("a", zse), run("b", clip, changes=select)])
    (row, *others) = found.rows
    assert (row.ranking, row.values) == (comparison.SELECTED, (0.375, 0.5))
    assert row.differences[0].mean == pytest.approx(0.125)
    assert [x.ranking for x in others] == ["token", "relation", "embedding"]
    assert all(x.differences == (None,) for x in others)


def test_precision_comes_once_and_says_where_it_is_the_r_precision():
    values = {
        f"token/{scope}/{name}": [0.5, 0.25]
        for scope in ("exact", "voc")
        for name in ("mAP@all", "P@10")
    }
    found = comparison.compare([run("a", values), run("b", values)])
    names = [comparison.metric_name(found, row) for row in found.rows]
    assert names == ["mAP@all exact", "P@10 (R-precision)", "mAP@all voc"]
    shown = [comparison.metric_name(found, row) for row in comparison.first_rows(found)]
    assert shown == ["mAP@all exact", "P@10 (R-precision)"]  # no paper reports doodles


def test_the_keys_that_differ_have_the_values_of_all_runs():
    runs = [
        run("a"), run("b", changes={"train.steps": 20}), run("c", changes={"data.held_out": 0.2}),
    ]  # fmt: skip
    assert comparison.config_differences(runs) == {
        "data.held_out": (0.0, 0.0, 0.2),
        "train.steps": (12, 20, 12),
    }
    assert comparison.config_table(runs[:1] + [run("d")]) is None


@pytest.mark.slow  # imports matplotlib
def test_the_page_has_the_numbers_the_configs_and_the_curves():
    records = [
        {"step": 1, "train/loss": 2.0},
        {"step": 2, "train/loss": 1.0, "validation/token/exact/mAP@all": 0.4, "setting": "x"},
    ]
    other = [records[0], records[1] | {"setting": "y"}]
    values = {"token/exact/mAP@all": [0.5, 0.25]}
    changes = {"train.steps": 20}
    runs = [run("a", values, records=records), run("<b>", values, records=other, changes=changes)]
    page = comparison.page(comparison.compare(runs))
    assert page.count('<svg class="chart"') == 3  # losses, and validations of two settings
    assert "they do not compare" in page
    assert "train.steps" in page and "37.5" in page
    assert "<b> " not in page and "&lt;b&gt;" in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    same = comparison.page(comparison.compare([runs[0], run("c", values, records=records)]))
    assert same.count('<svg class="chart"') == 2
    assert "The configs are the same." in same


def test_folders_that_are_not_two_runs_are_errors(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"nothing to compare: .*zse_jax\.compare runs/a runs/b"):
        comparison.read_runs([])
    with pytest.raises(ValueError, match=f"nothing to compare with {tmp_path}"):
        comparison.read_runs([tmp_path])
    with pytest.raises(ValueError, match="is given 2 times"):
        comparison.read_runs([tmp_path, tmp_path / "x" / ".."])
    (tmp_path / "x").mkdir()
    with pytest.raises(FileNotFoundError, match="x is not the workdir of a run"):
        comparison.read_runs([tmp_path / "x", tmp_path])
    with pytest.raises(FileNotFoundError, match="y does not exist"):
        comparison.read_runs([tmp_path / "y", tmp_path])


# The metrics of every sketch


def evaluated(changes, *strides):
    config = tiny.config(**changes)
    evaluator = Evaluator(config, sharding.make_mesh(), *strides)
    model = create(config.model, rngs=nnx.Rngs(0, dropout=1))
    return evaluator, evaluator(evaluation_view(model))


@pytest.mark.slow
def test_the_file_has_every_sketch_and_tells_other_galleries_apart(tmp_path):
    file = tmp_path / "a" / "q.npz"
    evaluator, results = evaluated({}, 1, 1)
    per_query.write(file, evaluator, results, 7)
    found = per_query.read(file)
    assert (found.step, found.ranked) == (7, str(evaluator.ranked))
    assert len(set(found.sketches.tolist())) == 24
    for name, value in results.flat().items():
        assert found.values[name].mean() == pytest.approx(value, abs=1e-6)
    part = per_query.of(*evaluated({}, 5, 1), 7)
    assert part.task == found.task
    assert part.sketches.tolist() == found.sketches[::5].tolist()
    for changes, stride in (({}, 2), ({"evaluation.protocol": "fine_grained"}, 1)):
        assert per_query.of(*evaluated(changes, 1, stride), 7).task != found.task
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"q\.npz is not a file of metrics by sketch"):
        per_query.read(file)
    assert per_query.read(tmp_path / "none.npz") is None


@pytest.mark.slow
def test_the_program_compares_finished_runs(reference, tmp_path, capsys):
    other = shutil.copytree(reference, tmp_path / "other")
    results = json.loads((reference / "metrics.json").read_text())["test"]
    options, argv = flags.FlagValues(), ["compare", f"--output={tmp_path}/c.html"]
    program.define_flags(options, argv)
    cli.parse(options, argv)
    program.main(options, str(reference), str(other))
    printed = capsys.readouterr().out
    assert "The configs are the same." in printed
    assert f"{100 * results['relation/exact/mAP@all']:.1f}" in printed
    assert "+0.0 (+0.0 to +0.0)" in printed
    assert printed.count("Test set, complete: 24 sketches x 24 photos of unseen classes") == 2
    assert "mAP@all on the unseen classes" in (tmp_path / "c.html").read_text()
    (other / per_query.FILE).unlink()
    program.main(options, str(reference), str(other))
    assert f"--queries={other}/queries.npz" in capsys.readouterr().out
