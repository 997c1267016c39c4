"""Evaluation of a checkpoint: its own config, other strides, JSON, pictures."""

import json

import pytest
from absl import flags

from zse_jax import evaluate, programs, sharding, train
from zse_jax.evaluate import Evaluator
from zse_jax.retrieval import metrics

from . import tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch.setattr)
        train.train(tiny.config(**{"train.steps": 3}), path)
        yield path


def run(*arguments):
    """The program, with flags apart from those of this process."""
    options, argv = flags.FlagValues(), ["evaluate", *map(str, arguments)]
    evaluate.define_flags(options, argv)
    programs.parse(options, argv)
    evaluate.main(options)


def test_the_program_measures_writes_and_draws(workdir, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    run(f"--checkpoint={workdir}", f"--output={tmp_path}/m.json", f"--pictures={pictures}")
    written = json.loads((tmp_path / "m.json").read_text())
    trained = json.loads((workdir / "metrics.json").read_text())
    assert written["step"] == 3
    assert written["values"]["relation"]["exact"]["mAP@all"] == pytest.approx(
        trained["test"]["relation/exact/mAP@all"]
    )
    assert {path.name for path in pictures.iterdir()} == {
        "retrieved-token.png", "retrieved-relation.png", "training.png",
    }  # fmt: skip
    output = capsys.readouterr().out
    assert "step 3, on unseen classes of doodles: 24 sketches x 24 photos" in output
    assert "relation" in output


def test_overrides_change_the_config_inside_the_checkpoint(workdir, capsys):
    run(f"--checkpoint={workdir}", "--config.evaluation.test_sketch_stride=4")
    assert "6 sketches x 24 photos" in capsys.readouterr().out


def test_a_wrong_override_names_the_nearest_key(workdir):
    with pytest.raises(ValueError, match="Did you mean --config.evaluation.test_sketch_stride?"):
        run(f"--checkpoint={workdir}", "--config.evaluation.test_sketch_strid=4")


def test_without_a_checkpoint_it_says_so(tmp_path):
    with pytest.raises(ValueError, match="--checkpoint=runs/sketchy"):
        run()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        run(f"--checkpoint={tmp_path}")


@pytest.mark.usefixtures("workdir")
def test_the_evaluator_thins_by_strides_and_pads():
    config = tiny.config(**{"evaluation.batch_size": 16})
    evaluator = Evaluator(config, sharding.make_mesh(), 5, 3)
    assert evaluator.size == "5 sketches x 8 photos"
    assert len(evaluator.sketches.class_names) == 8


@pytest.mark.parametrize("select", ["relation/exact/mAP", "token/vox/mAP@all", "mAP@all"])
def test_an_unknown_metric_to_select_by_names_the_nearest(select):
    with pytest.raises(ValueError, match=r"config.evaluation.select=.*did you mean '.*/mAP@"):
        evaluate.check_select(select, ("token", "relation"))


def test_the_comparison_shows_before_and_after():
    before, after = (
        {f"token/exact/{name}": value for name in metrics.METRICS} for value in (0.125, 0.5)
    )
    table = evaluate.comparison(before, after, 30, "5 sketches x 8 photos")
    assert list(table.columns[2].cells) == ["12.5\N{RIGHTWARDS ARROW}50.0"]
    assert table.caption == "percent; 5 sketches x 8 photos"
