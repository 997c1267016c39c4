"""The program that runs all benchmarks writes what each prints, and which failed."""

from importlib.util import find_spec

from tests.benchmarks import everything


def test_every_command_is_a_program():
    for command in everything.COMMANDS:
        assert find_spec(f"tests.benchmarks.{command.split()[0]}"), command


def test_output_and_failures_are_written(tmp_path, monkeypatch, capfd):
    small = "metrics --queries=4 --gallery=30 --slice=2 --rounds=1"
    commands = small, "missing SKETCHY", "gallery build --count=x --photos-in=ALBUM"
    monkeypatch.setattr(everything, "COMMANDS", commands)
    where = tmp_path / "results.md"
    assert everything.main([f"--output={where}", "--albums", "a b", "c"]) == 2
    text = where.read_text()
    assert f"`python -m tests.benchmarks.{small}` (" in text
    assert "    4 x 30 float32 similarities" in text
    assert "--count=x '--photos-in=a b'` (exit status 2)" in text and "invalid int value" in text
    assert "missing" not in text, "no folder was given"
    assert "--count=x --photos-in=c: exit status 2" in capfd.readouterr().out
