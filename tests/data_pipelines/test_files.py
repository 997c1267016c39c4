"""One walker for every folder of a user, and one list of the names that are not the user's."""

import os
from pathlib import Path

import pytest

from data_pipelines import files
from tests.data_pipelines.builders import trees


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "._IMG.JPG", ".Trash-1000", ".git", ".nfs000001", ".directory", ".@__thumb"]
    + ["@eaDir", "@EADIR", "cat@SynoEAStream", "#recycle", "@Recycle", "$RECYCLE.BIN"]
    + ["System Volume Information", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini"]
    + ["__MACOSX", "Icon\r", "lost+found"],
)
def test_names_of_the_system(name):
    assert files.is_system(name)


@pytest.mark.parametrize("name", ["IMG_1.JPG", "a.b", "@home", "#1.png", "$5.jpg", "trash can"])
def test_names_of_the_user(name):
    assert not files.is_system(name)


def test_a_walk_reports_everything_once(tmp_path):
    names = ["a/@eaDir/t.jpg", "a/b/3.jpg", "a/2.jpg", "1.jpg", ".git/x.jpg", "Thumbs.db"]
    trees.write(tmp_path, names)
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = [(e.path.relative_to(tmp_path).as_posix(), e.kind) for e in files.walk(tmp_path)]
    assert found == [
        (".git", "system"),
        ("1.jpg", "file"),
        ("Thumbs.db", "system"),
        ("gone.jpg", "failed"),
        ("pipe", "other"),
        ("a/2.jpg", "file"),
        ("a/@eaDir", "system"),
        ("a/b/3.jpg", "file"),
        ("a/b/up", "again"),
    ]
    inner = [(e.path.name, e.kind) for e in files.walk(tmp_path / "a/b")]
    assert inner == [("3.jpg", "file"), ("up", "again")]
    assert {e.kind for e in files.walk(tmp_path / "a", nested=False)} == {"file", "system", "other"}
    assert [e.path.name for e in files.walk(tmp_path / ".git")] == ["x.jpg"]  # given by the user
    assert files.contents(tmp_path) == ["1.jpg", "a", "gone.jpg", "pipe"]


@pytest.mark.slow
def test_folders_of_any_depth_are_walked(tmp_path):
    here = tmp_path
    for _ in range(1100):
        here /= "d"
        here.mkdir()
    (here / "1.jpg").write_text("")
    found = [(entry.path.name, entry.kind) for entry in files.walk(tmp_path)]
    (here / "1.jpg").unlink()
    while here != tmp_path:  # pytest would remove them recursively
        here.rmdir()
        here = here.parent
    assert found == [("1.jpg", "file")]


def test_a_folder_that_cannot_be_opened_is_reported(tmp_path, monkeypatch):
    trees.write(tmp_path, ["a/1.jpg", "b/2.jpg"])
    iterdir = Path.iterdir

    def closed(path):
        if path.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    first, second = files.walk(tmp_path)
    assert (first.kind, first.reason) == (
        "closed",
        "the folder cannot be opened: Permission denied",
    )
    assert second.path.name == "2.jpg"


def test_a_file_that_cannot_be_inspected_is_not_gone(tmp_path):
    trees.write(tmp_path, ["a/1.jpg"])
    assert not files.is_gone(tmp_path / "a/1.jpg")
    assert files.is_gone(tmp_path / "a/2.jpg")
    assert files.is_gone(tmp_path / "a/1.jpg/2.jpg")
    assert not files.is_gone(tmp_path / ("x" * 300))  # the name is too long to be inspected
