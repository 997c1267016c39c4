"""The command line of training; wrong values end in one paragraph."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest
from absl import flags
from rich.table import Table

from zse_jax import main
from zse_jax.runtime import cli, console


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


def test_a_flag_that_is_given_twice_is_an_error():
    with pytest.raises(ValueError, match="--workdir is given 2 times: give it once"):
        parse("--config=configs/sketchy.py", "--workdir=a", "--workdir=b")
    again = parse("--config=configs/sketchy.py", "--config.seed=1", "--config.seed=2")
    assert again.config.seed == 2


def test_a_reader_that_closes_the_output_is_not_an_error(capfd, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as exit_:
            cli.with_message(lambda: console.say("a line"))
        console.say("another line")  # is discarded
    assert exit_.value.code == 141
    assert capfd.readouterr().err == ""


def test_a_broken_connection_is_an_error(capsys, monkeypatch):
    def broken():
        raise BrokenPipeError("the server is gone")

    with pytest.raises(SystemExit) as exit_:
        cli.with_message(broken)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "error: the server is gone\n"


def test_names_in_errors_and_logs_cannot_write_to_the_terminal(capsys, monkeypatch, caplog):
    monkeypatch.setattr(cli, "_debug", lambda: False)
    factory = logging.getLogRecordFactory()
    try:
        console.escape_logs()
        logging.getLogger("data_pipelines.x").warning("%d of %s", 1, Path("a\x1b[1m\nb"))
        logging.getLogger("data_pipelines.x").warning("a\x1b[1m:\n  %s", ValueError("c\nd"))
        logging.getLogger("other").warning("%s", "two\nlines\x07")
    finally:
        logging.setLogRecordFactory(factory)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of a\\x1b[1m\\nb",
        "a\\x1b[1m:\n  c\\nd",
        "two\nlines\\x07",
    ]
    with pytest.raises(SystemExit):
        cli.with_message(lambda: Path("nothing\x1b[1m").stat())
    assert capsys.readouterr().err.endswith("'nothing\\x1b[1m'\n")


def test_names_in_tables_are_not_markup(capsys):
    table = Table("class", title="a [/b]")
    for name in ("dog [small]", "[/red]", ":cat:"):
        table.add_row(name)
    console.show(table)
    output = capsys.readouterr().out
    for name in ("a [/b]", "dog [small]", "[/red]", ":cat:"):
        assert name in output


@pytest.mark.parametrize("home", ["unknown", "closed"])
def test_without_a_home_folder_the_cache_is_temporary(home, tmp_path, monkeypatch, capsys):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Path, "home", unknown if home == "unknown" else lambda: tmp_path / "file")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    used = {}
    monkeypatch.setattr(jax.config, "update", used.__setitem__)
    cli.enable_compilation_cache()
    folder = Path(used["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path
    assert folder.is_dir()
    assert "note: there is no cache folder" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["x.pdf", "report", "r.htm.gz"])
def test_output_files_have_the_suffix_of_their_contents(file):
    options, argv = flags.FlagValues(), ["evaluate", f"--report={file}"]
    flags.DEFINE_string("report", None, "", options)
    cli.parse(options, argv)
    with pytest.raises(
        ValueError, match=rf"--report={file}: give a file name that ends with .html"
    ):
        cli.require_suffix(options, report=".html .htm")
    options.report = "x.HTML"
    cli.require_suffix(options, report=".html .htm")


@pytest.mark.slow
def test_help_shows_the_launch_command_and_the_flags():
    done = started("--help")
    shown = done.stdout
    assert done.returncode == 0
    assert "python -m zse_jax.main --config=configs/sketchy.py" in shown
    assert "--workdir" in shown
    assert len(shown.splitlines()) < 30


@pytest.mark.slow
def test_a_wrong_key_ends_the_process_with_one_line(tmp_path):
    done = started("--config=configs/sketchy.py", "--config.train.stps=3", f"--workdir={tmp_path}")
    assert done.returncode == 1
    expected = "error: --config.train.stps does not exist. Did you mean --config.train.steps?"
    assert done.stderr.strip() == expected
