"""The ablation's commands are valid, and its tables have the right numbers."""

import json

import pytest

from configs import efficient_sketchy_split2
from tests.benchmarks import ablation
from tests.benchmarks.ablation import DASH
from tests.zse_jax.retrieval.test_results import random_evaluation
from zse_jax.runtime.config_io import flat, to_plain


@pytest.mark.parametrize("name", ablation.VARIATIONS)
def test_every_variation_changes_known_keys(name):
    variant, changes = ablation.VARIATIONS[name]
    config = efficient_sketchy_split2.get_config(variant)
    before = flat(to_plain(config))
    config.update_from_flattened_dict(changes)
    after = flat(to_plain(config))
    assert {key for key in after if after[key] != before[key]} == set(changes)


@pytest.mark.parametrize("name", ablation.RANKED_DIFFERENTLY)
def test_what_changes_only_the_ranking_does_not_train(name, tmp_path):
    """No value of the losses differs, so the networks of the same seed are the same."""
    variant, changes = ablation.VARIATIONS[name]
    assert variant == "lite0"
    assert changes.keys() <= {"model.retrieval_layer", "model.centred"}
    words = ablation.command(name, 2, tmp_path / f"{name}-2", {"train.steps": 108})
    assert f"--config.init_from={tmp_path / 'lite0-2'}" in words
    assert "--config.train.steps=0" in words
    assert "--config.train.steps=108" not in words


def write_run(folder, value, lines):
    folder.mkdir()
    content = {"test": {"embedding/voc/mAP@200": value}, "validation": {"other": 0.5}}
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_table_has_means_and_deviations_over_seeds(tmp_path):
    rate = {"time/steps_per_second": 0.5, "time/images_per_second": 40.0}
    lines = [{"step": 0, "validation/x": 1.0}, {"step": 60, **rate}, {"step": 90, **rate}]
    write_run(tmp_path / "lite0-0", 0.40, lines)
    write_run(tmp_path / "lite0-1", 0.50, lines)
    (tmp_path / "k.json").write_text(
        json.dumps({"values": {"embedding": {"voc": {"mAP@200": 0.25}}}})
    )
    runs = {
        "lite0": [ablation.read(tmp_path / f"lite0-{seed}") for seed in (0, 1)],
        "k": [ablation.read(tmp_path / "k.json")],
    }
    table = ablation.table(runs, ["embedding/voc/mAP@200", "missing"]).splitlines()
    assert table[2] == f"| lite0 | 2 | 45.0 ± 7.1 | {DASH} | 3.0 ± 0.0 | 40.0 ± 0.0 |"
    assert table[3] == f"| k | 1 | 25.0 | {DASH} | {DASH} | {DASH} |"
    assert ablation.read(tmp_path / "lite0-0", "validation").values == {"other": 0.5}
    with pytest.raises(ValueError, match="no metrics of 'validation'"):
        ablation.read(tmp_path / "k.json", "validation")


def test_rows_and_classes_are_those_of_an_evaluation():
    one = random_evaluation()
    saved = one.to_dict()
    ranking = next(iter(one.values))
    scope, named = next(iter(one.values[ranking].items()))
    low, high = one.intervals()[ranking][scope]["mAP@all"]
    expected = f"{100 * named['mAP@all']:.1f} ({100 * low:.1f}{DASH}{100 * high:.1f})"
    lines = ablation.rows({"real": saved}).splitlines()
    assert expected in lines[2]
    assert len(lines) == 2 + len(one.flat()) // len(one.metrics)
    by_class = ablation.classes(saved, ranking).splitlines()[2:]
    worst = min(
        (x for x in one.by_class() if x.values),
        key=lambda x: x.values[ranking][scope]["mAP@all"],
    )
    assert by_class[0].startswith(f"| {worst.name} | {worst.sketches} | {worst.photos} | ")
    assert len(by_class) == len(one.query_classes)


def test_results_of_a_run_are_not_taken_for_an_evaluation(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text('{"test": {}}')
    with pytest.raises(ValueError, match=r"not written by zse_jax\.evaluate"):
        ablation.read_evaluation(file)
