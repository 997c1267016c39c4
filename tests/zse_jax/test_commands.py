"""`zse-jax NAME` is `python -m MODULE`: one name for each program, listed without a delay."""

import gc
import os
import runpy
import subprocess
import sys
import tomllib

import pytest

from tests.source import ROOT
from tests.test_imports import PROGRAMS
from zse_jax import commands


@pytest.fixture
def started(monkeypatch):
    """What was started: the module, and its command line."""
    found = []
    monkeypatch.setenv(commands.HUGE_PAGES[0], "")  # set by the user: no new process
    monkeypatch.setattr(sys, "path", ["/somewhere/bin", *sys.path])
    monkeypatch.setattr(
        runpy, "run_module", lambda module, **given: found.append((module, sys.argv[1:], given))
    )
    return found


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["zse-jax", *arguments])
    commands.main()


def test_it_is_installed_under_its_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"zse-jax": "zse_jax.commands:main"}


def test_every_program_has_a_command():
    modules = {command.module for command in commands.COMMANDS.values()}
    assert {program.removesuffix(".__main__") for program in PROGRAMS} <= modules


def test_a_command_starts_its_program_as_python_does(monkeypatch, started, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "search", "--photos=album", "--help")
    as_main = {"run_name": "__main__", "alter_sys": True}
    assert started == [("zse_jax.gallery.search", ["--photos=album", "--help"], as_main)]
    assert sys.path[0] == str(tmp_path)  # a user's config may import what is beside it


@pytest.mark.parametrize(("name", "enabled"), [("search", False), ("check", True)])
def test_imports_do_not_search_for_garbage(monkeypatch, started, name, enabled):
    found = []
    monkeypatch.setattr(runpy, "run_module", lambda *_, **given: found.append(gc.isenabled()))
    run(monkeypatch, name)
    assert found == [enabled] and gc.isenabled()


@pytest.mark.slow
def test_a_program_searches_for_garbage_after_its_imports():
    program = (
        "import gc; gc.disable(); import zse_jax.runtime.cli as cli\n"
        "cli.run(lambda options: print(gc.isenabled(), gc.get_freeze_count() > 0), lambda *_: None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.parametrize(("platform", "given"), [("linux", None), ("linux", "x"), ("darwin", None)])
def test_huge_pages_are_set_unless_the_user_has_set_them(monkeypatch, platform, given):
    variable, value = commands.HUGE_PAGES
    monkeypatch.setenv(variable, given or "")
    if given is None:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "/bin/zse-jax", "search", "--k=3"])
    restarted = []
    monkeypatch.setattr(
        os, "execv", lambda *command: restarted.append((command, os.environ.copy()))
    )
    commands.restart_with_huge_pages()
    if platform != "linux" or given:
        assert not restarted and os.environ.get(variable) == given
        return
    [(command, environment)] = restarted
    assert command == (sys.executable, [sys.executable, "-P", "/bin/zse-jax", "search", "--k=3"])
    assert environment[variable] == value


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_lists_every_command(monkeypatch, started, capsys, arguments):
    run(monkeypatch, *arguments)
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in commands.COMMANDS) and not started
    assert max(map(len, output.splitlines())) <= 80


def test_an_unknown_command_names_the_nearest(monkeypatch, started):
    with pytest.raises(SystemExit, match=r"no command 'serch' \(did you mean search\?\)"):
        run(monkeypatch, "serch", "--sketch=cat.png")
    assert not started


def test_the_list_needs_no_library_and_a_program_keeps_its_exit_code():
    def done(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    program = "import sys; from zse_jax.commands import main; main(); print({*sys.modules} & %s)"
    assert done("-c", program % {"jax", "numpy", "absl"}).stdout.endswith("set()\n")
    ours, theirs = (
        done("-m", *module, "remove", "--wrong")
        for module in (["zse_jax.commands", "prepared"], ["data_pipelines.prepared"])
    )
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
    assert ours.returncode == 2
