"""Evaluation of a checkpoint: its own config, other strides, JSON, pictures."""

import contextlib
import io
import json
import re
import shutil

import pytest
from absl import flags
from flax import nnx

import zse_jax
from data_pipelines import splits
from tests.zse_jax import small_systems, tiny
from zse_jax import evaluate
from zse_jax.checkpoints import reading
from zse_jax.evaluation import data_selection, training_record
from zse_jax.evaluation import evaluator as evaluator_
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.evaluation.training_record import TrainedError
from zse_jax.retrievers import create
from zse_jax.retrievers.base import evaluation_view
from zse_jax.runtime import cli, consistency, sharding
from zse_jax.training import loop

pytestmark = pytest.mark.usefixtures("tiny_system")


@pytest.fixture(scope="module")
def workdir(reference):
    return reference


def run(*arguments):
    """The program, with flags apart from those of this process."""
    options, argv = flags.FlagValues(), ["evaluate", *map(str, arguments)]
    evaluate.define_flags(options, argv)
    cli.parse(options, argv)
    evaluate.main(options)


@pytest.fixture(scope="module")
def evaluated(workdir, tmp_path_factory, tiny_system):
    """The folder of an evaluation's results, and what it printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run(f"--checkpoint={workdir}", f"--output={folder}/m.json", f"--pictures={folder}/pictures")
    return folder, output.getvalue()


@pytest.mark.slow
def test_the_program_evaluates_the_best_step_and_writes_pictures(workdir, evaluated):
    folder, output = evaluated
    written = json.loads((folder / "m.json").read_text())
    trained = json.loads((workdir / "metrics.json").read_text())
    assert written["step"] == trained["step"]
    assert written["values"]["relation"]["exact"]["mAP@all"] == pytest.approx(
        trained["test"]["relation/exact/mAP@all"]
    )
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        "retrieved-token.png", "retrieved-relation.png", "training.png",
    }  # fmt: skip
    ranked = "Test set, complete: 24 sketches x 24 photos of unseen classes of doodles"
    assert f"step {written['step']}. {ranked}" in output
    assert "relation" in output


@pytest.mark.slow
def test_a_damaged_best_step_is_replaced_only_if_asked(workdir, tmp_path, caplog, capsys):
    damaged = shutil.copytree(workdir, tmp_path / "run")
    best = reading.step_of(damaged)
    for file in (damaged / "checkpoints" / str(best) / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    quick = f"--checkpoint={damaged}", "--config.evaluation.test_sketch_stride=12"
    with pytest.raises(ValueError, match=rf"checkpoints/{best} cannot be read.*next best step is"):
        run(*quick)
    other = next(s for s in (9, 12) if s != best)
    run(*quick, f"--step={other}")
    assert not caplog.text
    run(*quick, "--allow_fallback")
    assert f"checkpoints/{best} cannot be read" in caplog.text
    assert "Reading step" in caplog.text
    steps = set(re.findall(r"step (\d+)\. Part of", capsys.readouterr().out))
    assert steps and str(best) not in steps
    with pytest.raises(FileNotFoundError, match="has no step 7: its steps are"):
        run(*quick, "--step=7")


def test_cached_features_of_other_pixels_or_other_code_are_not_used(tmp_path, monkeypatch):
    evaluator = Evaluator(tiny.config(), sharding.make_mesh(), 4, 4)
    keys = [evaluator.key(tiny.SIZE), evaluator.key(tiny.SIZE), evaluator.key(2 * tiny.SIZE)]
    row = int(evaluator.photos.rows[-1])
    evaluator.photos.source[row] += b"\0"  # the same name, other content
    keys.append(evaluator.key(tiny.SIZE))
    monkeypatch.setattr(consistency, "code_digest", lambda *_: "other")
    keys.append(evaluator.key(tiny.SIZE))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


@pytest.mark.slow
def test_an_evaluation_does_not_resume_what_other_code_computed(workdir, tmp_path, monkeypatch):
    quick = (
        f"--checkpoint={workdir}", "--config.evaluation.test_sketch_stride=12",
        "--config.evaluation.test_photo_stride=6", "--output=$HOME/m.json",
    )  # fmt: skip
    scratch = "--scratch=~/kept"
    monkeypatch.setenv("HOME", str(tmp_path))
    for wrong in ("--report=hdfs://a", "--scratch=gs://bucket/a", "--pictures=$UNSET/a"):
        with pytest.raises(ValueError, match=r"cannot start|a local disk|is not set"):
            run(*quick, wrong)
    quick = (*quick, scratch)
    assert [*tmp_path.iterdir()] == []
    run(*quick)
    run(*quick)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "m.json"}
    monkeypatch.setattr(consistency, "code_digest", lambda *_: "other")
    with pytest.raises(ValueError, match=r"code \w{12}' and not .*code other'\. Delete the folder"):
        run(*quick)


@pytest.mark.slow
def test_overrides_change_the_config_inside_the_checkpoint(workdir, capsys):
    run(f"--checkpoint={workdir}", "--config.evaluation.test_sketch_stride=4")
    printed = capsys.readouterr().out
    assert "Part of the test set: 6 of 24 sketches x 24 photos of unseen classes" in printed
    tables = printed.count("\N{BOX DRAWINGS HEAVY DOWN AND RIGHT}")
    assert tables == 5
    assert " ".join(printed.split()).count("started from random values") >= tables


@pytest.mark.slow
def test_a_wrong_override_names_the_nearest_key(workdir):
    with pytest.raises(ValueError, match="Did you mean --config.evaluation.test_sketch_stride?"):
        run(f"--checkpoint={workdir}", "--config.evaluation.test_sketch_strid=4")


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--checkpoint=runs/sketchy"):
        run()
    with pytest.raises(FileNotFoundError, match="contains no checkpoint"):
        run(f"--checkpoint={tmp_path}")


def test_the_evaluator_thins_by_strides_and_pads():
    config = tiny.config(**{"evaluation.batch_size": 16})
    evaluator = Evaluator(config, sharding.make_mesh(), 5, 3)
    assert evaluator.size == "5 sketches x 8 photos"
    assert len(evaluator.sketches.class_names) == 8


@pytest.mark.parametrize("select", ["relation/exact/mAP", "token/vox/mAP@all", "mAP@all"])
def test_an_unknown_metric_to_select_by_names_the_nearest(select):
    config = tiny.config(**{"evaluation.select": select})
    with pytest.raises(ValueError, match=r"config.evaluation.select=.*did you mean '.*/mAP@"):
        evaluator_.check_select(config, tiny.Tiny.rankings)


def test_selectable_metrics_depend_on_the_protocol_and_the_rankings():
    fine = {"evaluation.protocol": "fine_grained", "evaluation.select": "token/class/Acc@1"}
    evaluator_.check_select(tiny.config(**fine), tiny.Tiny.rankings)
    with pytest.raises(ValueError, match="did you mean 'token/all/Acc@1'"):
        changed = tiny.config(**fine | {"evaluation.select": "token/exact/Acc@1"})
        evaluator_.check_select(changed, tiny.Tiny.rankings)
    with pytest.raises(ValueError, match="did you mean 'relation/class/Acc@1'"):
        only = tiny.config(**fine | {"evaluation.rankings": ("relation",)})
        evaluator_.check_select(only, tiny.Tiny.rankings)


@pytest.mark.slow
def test_rankings_by_expanded_queries_can_select():
    select = {"evaluation.select": "token+expansion/exact/mAP@all"}
    with pytest.raises(ValueError, match="did you mean 'token/exact/mAP@all'"):
        evaluator_.check_select(tiny.config(**select), tiny.Tiny.rankings)
    expanding = tiny.config(**select | {"evaluation.expansion": 3})
    evaluator_.check_select(expanding, tiny.Tiny.rankings)
    evaluator = Evaluator(expanding, sharding.make_mesh(), 1, 1)
    model = create(expanding.model, rngs=nnx.Rngs(0, dropout=1))
    found = evaluator(evaluation_view(model), shortlists=(4,))
    assert {"token", "token+expansion", "relation@4+expansion"} < found.values.keys()
    assert found.values["token"] != found.values["token+expansion"]
    assert found.notes["expansion"] == "by 3 photos of the gallery"


@pytest.mark.slow
def test_scores_from_pooled_tokens_are_marked_and_leave_the_model_as_it_was():
    evaluator = Evaluator(
        tiny.config(**{"evaluation.pooled_tokens": True}), sharding.make_mesh(), 1, 1
    )
    small = small_systems.config("zse", **{"model.anchor_map": "spatial"}).model
    model = evaluation_view(create(small, rngs=nnx.Rngs(0, dropout=1)))
    found = evaluator(model)
    assert found.notes["scores"] == "inexact: from means of 2 x 2 tokens"
    assert not model.pooled_tokens
    exact = Evaluator(tiny.config(), sharding.make_mesh(), 1, 1)(model)
    assert found.values["token"] == exact.values["token"]
    assert found.values["relation"] != exact.values["relation"]
    with pytest.raises(ValueError, match="does not score pairs by tokens"):
        evaluator(create(tiny.config().model, rngs=nnx.Rngs(0, dropout=1)))


@pytest.mark.slow
def test_the_report_and_the_json_have_intervals_classes_and_confusions(evaluated):
    folder, output = evaluated
    output = " ".join(output.split())  # long titles have several lines
    written = json.loads((folder / "m.json").read_text())
    value = written["values"]["relation"]["exact"]["mAP@all"]
    low, high = written["intervals_95"]["relation"]["exact"]["mAP@all"]
    assert low < value < high
    assert f"{100 * value:.1f}" in output
    assert "classes by relation, exact" in output
    assert "confusions by token" in output
    by_class = written["by_class"]
    mean = sum(x["values"]["relation"]["exact"]["mAP@all"] for x in by_class.values()) / 8
    assert mean == pytest.approx(value)  # as many sketches of each class
    assert "windmill" in by_class
    assert "windmill" in output
    assert written["notes"]["split"] == "doodles"


@pytest.mark.slow
def test_fine_grained_evaluation_ranks_the_photo_of_each_sketch(workdir, tmp_path, capsys):
    run(
        f"--checkpoint={workdir}", f"--output={tmp_path}/m.json", f"--pictures={tmp_path}/pictures",
        "--config.evaluation.protocol=fine_grained",
    )  # fmt: skip
    values = json.loads((tmp_path / "m.json").read_text())["values"]["relation"]
    assert values["class"]["Acc@1"] >= values["all"]["Acc@1"]
    assert values["class"]["Acc@5"] == 1.0  # there are three photos of a class
    assert (tmp_path / "pictures" / "retrieved-relation.png").exists()
    assert "Acc@10" in capsys.readouterr().out


@pytest.mark.slow
def test_two_stage_ranking_is_reported_with_the_exact_one(workdir, tmp_path, capsys):
    run(
        f"--checkpoint={workdir}", f"--output={tmp_path}/m.json",
        "--config.evaluation.shortlists=(4, 24)",
    )  # fmt: skip
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["values"]["relation@24"] == written["values"]["relation"]
    assert {"rank/relation", "rank/relation@4"} <= written["seconds"].keys()
    assert [row["k"] for row in written["shortlists"]] == [4, 24, 24]
    shown = capsys.readouterr().out
    assert "relation@4" in shown and "two-stage" in shown
    assert "classes by relation," in shown and "classes by relation@4" not in shown


@pytest.mark.slow
def test_the_same_command_resumes(workdir, tmp_path):
    def evaluated():
        run(
            f"--checkpoint={workdir}", f"--output={tmp_path}/m.json",
            f"--scratch={tmp_path}/scratch",
        )  # fmt: skip
        return json.loads((tmp_path / "m.json").read_text())["values"]

    first = evaluated()
    assert evaluated() == first
    plain = Evaluator(tiny.config(), sharding.make_mesh(), 1, 1)(zse_jax.load(workdir))
    assert plain.values == first


@pytest.mark.slow
def test_scratch_files_of_another_gallery_are_an_error(workdir, tmp_path):
    scratch = f"--scratch={tmp_path}/scratch"
    run(f"--checkpoint={workdir}", scratch)
    with pytest.raises(ValueError, match="scratch"):
        run(f"--checkpoint={workdir}", scratch, "--config.evaluation.test_photo_stride=2")


@pytest.fixture
def other_split(monkeypatch):
    """A split of the same data set in which two of the trained classes are unseen."""
    seen = splits.get("doodles").seen
    other = splits.Split("doodles", seen[2:], seen[:2])
    monkeypatch.setattr(splits, "SPLITS", {**splits.SPLITS, "other": other})
    return other


@pytest.mark.slow
def test_trained_classes_are_not_ranked_as_unseen(workdir, other_split, tmp_path, capsys):
    arguments = [f"--checkpoint={workdir}", "--config.data.split=other"]
    with pytest.raises(TrainedError, match=f"2 of 2 classes .*{other_split.unseen[0]}"):
        run(*arguments)
    run(*arguments, "--config.evaluation.allow_trained=true", f"--output={tmp_path}/m.json")
    notes = json.loads((tmp_path / "m.json").read_text())["notes"]
    assert other_split.unseen[1] in notes["not_zero_shot"]
    assert "NOT ZERO-SHOT" in capsys.readouterr().out
    config = tiny.config(**{"data.split": "other", "init_from": str(workdir)})
    with pytest.raises(TrainedError, match="2 of 2 classes"):
        loop.train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_run_records_what_trained(workdir):
    (source,) = training_record.of_checkpoint(workdir)["sources"]
    assert tuple(source["classes"]) == splits.get("doodles").seen
    images = {
        digest
        for items in data_selection.training_items(tiny.config())
        for digest in training_record.digests(items)
    }
    assert len(source["images"]) == training_record.DIGEST * len(images)
