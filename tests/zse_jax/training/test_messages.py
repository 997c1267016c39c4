"""What a run prints about itself: its setting, its start, and its metrics before and after."""

from types import SimpleNamespace

import jax
import pytest
from etils import epath

from tests.zse_jax import tiny
from zse_jax.evaluation import data_selection, tables
from zse_jax.evaluation.evaluator import title
from zse_jax.runtime import sharding
from zse_jax.training import loop, step
from zse_jax.training.metric_logging import Reporter

VALUES = {"token/exact/mAP@all": 0.25, "relation/exact/mAP@all": 0.5}

pytestmark = pytest.mark.usefixtures("tiny_system")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "tiny on doodles:"),
        ({"data.name": "folder", "data.split": None}, "tiny on folder:"),
        ({"target.name": "folder"}, "tiny on doodles, evaluated on folder:"),
        ({"target.name": "tuberlin", "target.split": "tuberlin"}, "evaluated on tuberlin:"),
    ],
)
def test_a_run_introduces_itself_by_names_that_exist(changes, shown, tmp_path, capsys):
    config = tiny.config().unlock()
    for key, value in changes.items():
        group, name = key.split(".")
        with config[group].ignore_type():
            config[group][name] = value
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with Reporter(tmp_path, 12, tensorboard=False) as report:
        setup = step.set_up(config, mesh)
        loop.introduce(report, config, mesh, setup, epath.Path(tmp_path), None, {})
    lines = capsys.readouterr().out.splitlines()
    assert shown in lines[0]
    assert "from step 0 (random values) to 12" in lines[1]
    assert title(config) in shown


@pytest.mark.parametrize(
    ("untrained", "validation", "at", "shown", "hidden"),
    [
        (VALUES, VALUES, 9, "random values \N{RIGHTWARDS ARROW} step 9", "untrained"),
        ({}, VALUES, 9, "unseen classes of doodles step 9", "\N{RIGHTWARDS ARROW}"),
        (VALUES, VALUES, 0, "unseen classes of doodles step 0", "\N{RIGHTWARDS ARROW}"),
        ({}, {}, 9, "", "unseen"),
    ],
)
def test_the_final_table_has_only_what_was_measured(
    untrained, validation, at, shown, hidden, capsys
):
    ranked = tables.Ranked("unseen classes of doodles", (2, 2), (3, 3))
    validated = SimpleNamespace(ranked=ranked, labels={})
    run = SimpleNamespace(config=tiny.config(), validation=validated)
    loop.Run.compare(run, {"untrained": untrained, "validation": validation}, at)
    printed = " ".join(capsys.readouterr().out.split())
    assert shown in printed
    assert hidden not in printed
    assert bool(printed) == bool(validation)


def test_a_misspelt_class_of_ones_own_folder_is_not_called_a_published_name(monkeypatch):
    config = tiny.config().unlock()
    config.data.update(name="folder", unseen="catt")
    with config.data.ignore_type():
        config.data.split = None
    index = SimpleNamespace(class_names=["cat", "dog"])
    monkeypatch.setattr(data_selection.prepared, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(data_selection.prepared, "open_split", lambda *_: (None, index))
    with pytest.raises(ValueError, match=r"catt \(did you mean cat\?\)") as error:
        data_selection.split_of(config, config.data)
    assert "published" not in str(error.value)
    assert "cat, dog" in str(error.value)
