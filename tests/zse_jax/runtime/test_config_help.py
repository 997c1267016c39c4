"""What the keys of a config mean: read from the comments of the defaults, shown and documented."""

import pytest

from configs import clip_default, default, efficient_default
from tests.source import ROOT
from tests.zse_jax.test_main import parse
from zse_jax import main
from zse_jax.runtime import config_help, config_io


@pytest.mark.parametrize("module", [default, clip_default, efficient_default])
def test_every_key_has_help_and_the_value_that_the_page_shows(module):
    config = module.get_config()
    known = config_help.meanings(config.model.system)
    values = config_io.flat(config)
    assert [key for key in values if not config_help.general(known[key].help)] == []
    assert {key: known[key].value for key in values} == {k: repr(v) for k, v in values.items()}


def test_the_page_of_all_keys_is_up_to_date():
    """If this fails, run `python -m zse_jax.runtime.config_help > docs/config.md`."""
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == config_help.page()


def test_comments_before_and_behind_a_key_are_its_help(tmp_path):
    (tmp_path / "x.py").write_text(
        "def get_config():\n"
        "    config = ConfigDict()\n"
        "    # First line,\n"
        "    # second.\n"
        "    config.seed = 0  # third\n"
        "    config.a = group = ConfigDict()  # a group\n"
        "    group.one = config.two = placeholder(int)  # of both\n"
    )
    assert config_help.entries(tmp_path / "x.py") == {
        "seed": ("0", "int", "First line, second. third"),
        "a.one": ("None", "int", "of both"),
        "two": ("None", "int", "of both"),
    }


def test_what_is_in_brackets_stands_beside_the_default_only():
    config = default.get_config()
    config.train.steps = 7
    for shown, unchanged in ((default.get_config(), True), (config, False)):
        table = config_help.table(shown, default.get_config())
        columns = [list(column.cells) for column in table.columns]
        help_ = columns[4][columns[1].index("train.steps")]
        assert help_.startswith("length of the run")
        assert ("[ZSE: 30 epochs" in help_) == unchanged
    other = config_help.meanings(efficient_default.get_config().model.system)
    assert "ZSE" not in other["train.steps"].help


def test_a_config_is_printed_with_its_changes_marked_and_nothing_else_happens(capsys, tmp_path):
    arguments = "--config=configs/sketchy.py:Ti/16", "--config.train.steps=7"
    main.main(parse(*arguments, f"--workdir={tmp_path / 'run'}", "--print_config"))
    lines = capsys.readouterr().out.splitlines()
    rows = {line[1:].split()[0]: line for line in lines if line[:1] in "* " and line[1:].strip()}
    assert rows["train.steps"].startswith("*")
    assert "7 (20000)" in rows["train.steps"]
    assert "192 (768)" in rows["model.width"]
    assert not rows["train.batch_size"].startswith("*")
    assert set(config_io.flat(default.get_config())) <= rows.keys()
    assert not (tmp_path / "run").exists()
