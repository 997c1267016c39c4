"""Photos are searched without an index being named: it is made, found again, and updated."""

from pathlib import Path

import pytest

from tests.zse_jax.gallery.conftest import photo, written_checkpoint
from tests.zse_jax.gallery.test_search import run
from zse_jax.checkpoints import reading
from zse_jax.gallery import album as album_
from zse_jax.gallery import index

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/zse_jax/albums"


def test_the_index_is_in_the_cache_and_follows_the_photos(album, zse, cache, capsys):
    where, _ = album_.opened([album], zse)
    assert [where] == list(cache.iterdir()) and index.open(where).photos == 5
    assert "5 photos added, 0 updated, 0 removed, 0 unchanged" in capsys.readouterr().out
    (album / "p0.png").unlink()
    photo(album / "p1.png", 21, (50, 41))
    photo(album / "new.png", 22)
    assert album_.opened([f"{album}/"], zse)[0] == where
    assert "1 photo added, 1 updated, 1 removed, 3 unchanged" in capsys.readouterr().out
    assert index.open(where).photos == 5
    assert album_.place([album, album / "deep"], zse) == album_.place([album / "deep", album], zse)
    assert len({album_.place([album], zse), album_.place([album / "deep"], zse)}) == 2


def test_an_index_that_is_named_keeps_its_checkpoint_and_its_other_photos(album, zse, tmp_path):
    other = photo(tmp_path / "other/a.png", 31)
    index.build([other.parent], tmp_path / "named", zse)
    assert album_.opened([album], index=tmp_path / "named")[0] == tmp_path / "named"
    assert index.open(tmp_path / "named").photos == 6
    (album / "p0.png").unlink()
    changes, removed = index.sync([album], tmp_path / "named")
    assert (changes.unchanged, changes.gone, removed) == (4, 0, 1)


def test_an_index_of_an_earlier_version_of_the_model_is_made_again(album, tmp_path, capsys):
    model = written_checkpoint(tmp_path / "model", seed=1)
    where, _ = album_.opened([album], model)
    for file in sorted(model.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    written_checkpoint(model, seed=2)
    capsys.readouterr()
    assert album_.opened([album], model)[0] == where
    assert "5 photos added" in capsys.readouterr().out


def test_one_command_searches_a_folder(album, zse, drawing, capsys):
    arguments = [f"--photos={album}", f"--checkpoint={zse}", f"--sketch={drawing}", "--k=2"]
    run(*arguments)
    output = capsys.readouterr().out
    assert "5 photos added" in output and "The nearest of 5 photos" in output


def test_the_checkpoint_is_read_once(album, zse, drawing, monkeypatch):
    read, load_step = [], reading.load_step
    monkeypatch.setattr(reading, "load_step", lambda *args: read.append(args) or load_step(*args))
    for _ in range(2):
        run(f"--photos={album}", f"--checkpoint={zse}", f"--sketch={drawing}", "--k=2")
    assert len(read) == 2


def test_a_wrong_name_is_an_error_before_the_checkpoint_is_read(album):
    with pytest.raises(FileNotFoundError, match=r"nothing: no file, folder or match"):
        album_.opened([album / "nothing"], "no-checkpoint")


def test_without_a_cache_folder_the_error_names_the_flag(album, zse, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"no place for the index.* --index=my-index"):
        album_.opened([album], zse)


def test_without_a_home_folder_the_error_names_the_flag(album, zse, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(OSError, match=r"no home folder, and XDG_CACHE_HOME .* --index=my-index"):
        album_.opened([album], zse)
