"""Files appear whole or not at all, and every path of a user means the same everywhere."""

import ast
import errno
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from data_pipelines import check, paths, prepared
from tests.source import PACKAGES, ROOT, files, syntax


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "new" / "results.json"
    paths.replace(file, "é")
    assert file.read_bytes() == "é".encode()
    paths.replace(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    file = tmp_path / "results.json"
    file.write_text("old")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = "new"
    if failing == "write":
        monkeypatch.setattr(Path, "open", full)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        paths.replace(file, content)
    monkeypatch.undo()
    assert file.read_text() == "old"
    assert [*tmp_path.iterdir()] == [file]


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_file(tmp_path):
    """Kills the writer at each system call that changes the folder or the file."""
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from data_pipelines import paths

        file = Path(sys.argv[1])
        for call in ((Path, "open"), (os, "fsync"), (Path, "replace")):
            if os.fork() == 0:
                setattr(*call, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
                paths.replace(file, "new" * 1000)
            os.wait()
            assert file.read_text() == "old", call
        """)
    file = tmp_path / "results.json"
    file.write_text("old")
    subprocess.run([sys.executable, "-c", program, str(file)], check=True, cwd=ROOT)


def test_links_permissions_and_long_names_are_kept(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.touch()
    real.chmod(0o640)
    link.symlink_to(real)
    paths.replace(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    paths.replace(tmp_path / ("n" * 255), "new")


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    paths.replace(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        paths.replace(tmp_path, "text")


@pytest.mark.parametrize("content", [b'{"step": 1', b"", b"\x00\x00", b"\xff", b"[1]", b"null"])
def test_a_damaged_file_is_reported_and_counts_as_missing(tmp_path, caplog, content):
    file = tmp_path / "metrics.json"
    assert paths.read_json(file) is None
    assert not caplog.text
    file.write_bytes(content)
    assert paths.read_json(file) is None
    assert "metrics.json is damaged" in caplog.text


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, also $ALBUM; the current folder is another one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ALBUM", str(tmp_path / "home"))
    monkeypatch.delenv("MISSING", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/a", "{here}/runs/a"),
        ("~/a b", "{home}/a b"),
        ("$ALBUM/a", "{home}/a"),
        ("${ALBUM}/a", "{home}/a"),
        ("file:///data/a", "/data/a"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("GS://bucket/${NAME}", "gs://bucket/run"),
        ("a_$5_and_$6.jpg", "{here}/a_$5_and_$6.jpg"),
        ("album: 2020/a", "{here}/album: 2020/a"),
        ("/data/\udce9.jpg", "/data/\udce9.jpg"),
    ],
)
def test_paths_of_users(home, monkeypatch, text, expected):
    monkeypatch.setenv("NAME", "run")
    place = expected.format(home=home, here=home.with_name("here"))
    assert os.fspath(paths.located(text)) == place
    assert os.fspath(paths.located(Path(text) if "://" not in text else text)) == place


def test_a_file_that_exists_as_written_is_that_file(home):
    for name in ("~", "$ALBUM", "$MISSING.jpg"):
        Path(name).touch()
        assert paths.located(name) == home.with_name("here") / name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A path is empty"),
        ("$MISSING/a", "the environment variable MISSING is not set"),
        ("gs://bucket/$MISSING", "the environment variable MISSING is not set"),
        ("~nobody-of-this-name/a", "the home folder is not known"),
        ("gs:/bucket/a", "write gs://BUCKET/FOLDER"),
        ("s3:/bucket/a", "write s3://BUCKET/FOLDER"),
        ("hf:/owner/name/app", "hf:/owner/name/app is not a valid path"),
        ("gs:///bucket/a", "write gs://BUCKET/FOLDER"),
        ("s3://bucket/a", "cannot start with s3://.* one that starts with gs://"),
        ("hdfs://a", "cannot start with hdfs://"),
        ("https://a.org/b.png", "cannot start with https://"),
    ],
)
def test_other_paths_are_refused_with_the_reason(home, text, message):
    with pytest.raises(ValueError, match=message):
        paths.located(text)
    with pytest.raises(ValueError, match=message):
        paths.replace(text, "text")
    assert [*home.with_name("here").iterdir()] == []


def test_what_must_be_local_refuses_a_bucket(home):
    assert paths.local("~/a", "--scratch") == home / "a"
    with pytest.raises(ValueError, match="gs://bucket/a: --scratch must be on a local disk"):
        paths.local("gs://bucket/a", "--scratch")


@pytest.mark.parametrize("option", ["data_dir", "manual_dir"])
def test_data_in_a_bucket_are_refused_before_anything_is_written(home, option):
    given = {"data_dir": "~/data", option: "gs://bucket/x"}
    with pytest.raises(ValueError, match=f"gs://bucket/x: config.data.{option} must be on a local"):
        prepared.prepare("sketchy", **given)
    assert [*home.iterdir()] == [*home.with_name("here").iterdir()] == []


def test_the_checker_expands_its_paths(home, capsys):
    program = ["--dataset=folder", "--manual_dir=$ALBUM/nothing", "--contact_sheet=~/sheet.png"]
    assert check.main(program) == check.NOT_CHECKED
    assert f"{home}/nothing does not exist" in capsys.readouterr().err
    assert check.main(["--dataset=folder", "--manual_dir=gs://bucket/x"]) == check.NOT_CHECKED
    assert "gs://bucket/x: --manual_dir must be on a local disk" in capsys.readouterr().err


def test_paths_are_expanded_in_one_place():
    wrong = [
        f"{file}:{node.lineno}"
        for file in files(*PACKAGES)
        for node in ast.walk(syntax(file))
        if isinstance(node, ast.Attribute) and node.attr in ("expanduser", "expandvars")
    ]
    assert [place for place in wrong if not place.startswith("data_pipelines/paths.py")] == []


LARGE = {
    "data_pipelines/prepared/__init__.py",  # a lock
    "zse_jax/retrieval/score_cache.py",  # scores, valid at any moment
    "zse_jax/runtime/locks.py",  # a lock
    "zse_jax/training/metric_logging.py",  # lines that are appended
}
"""Files with a reason to open a file for writing."""


def test_small_files_are_written_in_one_place():
    wrong = []
    for file in files(*PACKAGES):
        for node in ast.walk(syntax(file)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            modes = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
            opened = node.func.attr == "open" and any(
                isinstance(mode, ast.Constant) and set(str(mode.value)) & {"w", "a"}
                and len(str(mode.value)) <= 3
                for mode in modes
            )  # fmt: skip
            if node.func.attr in ("write_text", "write_bytes") or opened:
                wrong.append(f"{file}:{node.lineno}")
    found = {place.rpartition(":")[0] for place in wrong}
    assert found <= LARGE | {"data_pipelines/paths.py"}, wrong
