"""The command line of training; wrong values end in one paragraph."""

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from zse_jax import main
from zse_jax.runtime import cli


def parse(*arguments):
    """The flags of a command line, apart from those of this process."""
    options, argv = flags.FlagValues(), ["main", *arguments]
    main.define_flags(options, argv)
    cli.parse(options, argv)
    return options


def started(*arguments):
    program = [sys.executable, "-m", "zse_jax.main", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)


def test_main_is_short():
    assert len(Path(main.__file__).read_text().splitlines()) < 80


def test_keys_of_the_config_are_set_from_the_command_line():
    values = parse("--config=configs/sketchy.py:Ti/16", "--config.train.steps=7", "--workdir=w",
                   "--config.data.manual_dir=folder", "--config.optimizer.clip_norm=1")  # fmt: skip
    assert values.config.train.steps == 7
    assert values.config.model.width == 192
    assert values.config.data.manual_dir == "folder"
    assert values.config.optimizer.clip_norm == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/sketch.py"], "no file configs/sketch.py. Did you mean configs/sketchy"),
        (["--config=configs/sketchy.py:Ti/8"], "no variant 'Ti/8': did you mean 'Ti/16'"),
        (["--config=configs/sketchy.py", "--config.train.step=7"], "mean --config.train.steps"),
        (["--config=configs/sketchy.py", "--config.train=7"], "--config.train is a group"),
        (["--config=configs/sketchy.py", "--config.train.steps=x"], "config.train.steps=x"),
        (["--config.train.steps=7"], "needs --config=FILE"),
        (["--confg=configs/sketchy.py"], "'confg'. Did you mean: config"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_errors_with_the_nearest_valid_name(arguments, message):
    with pytest.raises((ValueError, OSError, flags.Error), match=message):
        parse(*arguments)


def test_errors_of_a_user_become_one_paragraph(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_debug", lambda: False)

    def wrong():
        raise KeyError("no class\n  'dog'")

    with pytest.raises(SystemExit) as exit_:
        cli.with_message(wrong)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "error: no class 'dog'\n"


def test_errors_of_the_program_keep_their_traceback():
    with pytest.raises(TypeError):
        cli.with_message(lambda: 1 + "")


def test_a_traceback_is_shown_when_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("ZSE_DEBUG", "1")
    with pytest.raises(SystemExit):
        cli.with_message(lambda: [][0])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_help_shows_the_launch_command_and_the_flags():
    shown = started("--help").stdout
    assert "python -m zse_jax.main --config=configs/sketchy.py" in shown
    assert "--workdir" in shown
    assert len(shown.splitlines()) < 30


@pytest.mark.slow
def test_a_wrong_key_ends_the_process_with_one_line(tmp_path):
    done = started("--config=configs/sketchy.py", "--config.train.stps=3", f"--workdir={tmp_path}")
    assert done.returncode == 1
    expected = "error: --config.train.stps does not exist. Did you mean --config.train.steps?"
    assert done.stderr.strip() == expected
