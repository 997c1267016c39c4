"""The program that ranks a user's photos for a sketch and explains the results."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

import zse_jax
from data_pipelines import paths
from tests.source import ROOT
from tests.zse_jax import tiny
from tests.zse_jax.explain import patches
from tests.zse_jax.explain.test_report import Page
from zse_jax.checkpoints import writing
from zse_jax.explain import __main__ as program
from zse_jax.explain import figures
from zse_jax.gallery import photos, sketch_input
from zse_jax.runtime import cli


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path, config = tmp_path_factory.mktemp("run"), tiny.config()
    with pytest.MonkeyPatch.context() as patch:
        patches.install(patch.setattr)
        writing.write(path, 1, patches.Patches(dtype=jnp.float32, rngs=nnx.Rngs(0)), config)
        yield path


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(5):
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deep" if number == 4 else "") / f"p {number}.png")
    (folder / "notes.txt").write_text("no image")
    Image.fromarray(patches.drawn()).save(tmp_path / "cat.png")
    return folder


def run(workdir, album, *arguments, sketch="cat.png", photos=None, output="why"):
    base = album.parent
    options = flags.FlagValues()
    argv = ["explain", f"--checkpoint={workdir}", f"--sketch={base / sketch}"]
    argv += [f"--photos={photos or album}", f"--output={base / output}", *arguments]
    program.define_flags(options, argv)
    cli.parse(options, argv)
    program.main(options)
    return base / output


def test_it_ranks_explains_and_writes_a_page_and_pictures(workdir, album, capsys, monkeypatch):
    drawn, grid = {}, figures.retrieval_grid
    monkeypatch.setattr(figures, "retrieval_grid", lambda *a, **k: drawn.update(k) or grid(*a, **k))
    folder = run(workdir, album, "--top=2")
    assert drawn["class_names"][drawn["sketch_labels"][0]] == "cat"
    files = sorted(path.name for path in folder.iterdir())
    assert files[-2:] == ["index.html", "retrieved.png"]
    assert len(files) == 4
    assert all(name.startswith(("01-p_", "02-p_")) for name in files[:2])
    page = Page((folder / "index.html").read_text())
    assert "The nearest of 5 photos" in page.text
    assert "similarity of grey patches" in page.text
    assert "from the first 2" in page.text
    assert len(page.all("details")) == 2
    assert all(image["src"].startswith("data:") and image["alt"] for image in page.all("img"))
    with Image.open(folder / "retrieved.png") as image:
        assert image.width > 800
    assert "and 3 pictures" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("ranking", ["token", "relation"])
def test_the_order_is_that_of_the_ranking(workdir, album, ranking):
    retriever = zse_jax.load(workdir)
    sketch = sketch_input.read(album.parent / "cat.png", tiny.SIZE)
    files = [candidate.file for candidate in photos.find(album).files]
    ranked, skipped = program.rank(retriever, sketch, files, ranking)
    assert not skipped
    gallery = np.stack([photos.prepared(file, tiny.SIZE) for file in files])
    vectors = [
        np.asarray(retriever.embedding(retriever.encode(x, kind)))
        for x, kind in ((sketch[None], "sketch"), (gallery, "photo"))
    ]
    similarity = (vectors[0] @ vectors[1].T)[0]
    assert [file for file, _ in ranked] == [files[i] for i in np.argsort(-similarity)]
    np.testing.assert_allclose([x for _, x in ranked], np.sort(similarity)[::-1], atol=1e-5)


def test_without_local_evidence_the_photos_are_only_ranked(workdir, album, monkeypatch):
    tiny.install(monkeypatch.setattr)
    folder = run(workdir, album)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "retrieved.png"]
    text = Page((folder / "index.html").read_text()).text
    assert "Tiny compares whole images and has no local evidence" in text


def test_a_sketch_without_strokes_is_an_error_that_leaves_no_folder(workdir, album):
    Image.new("RGB", (40, 40), "white").save(album.parent / "blank.png")
    with pytest.raises(ValueError, match=r"blank\.png contains no strokes"):
        run(workdir, album, sketch="blank.png")
    assert not (album.parent / "why").exists()


@pytest.mark.slow
def test_unusable_photos_are_skipped_and_reported(workdir, album, capsys):
    Image.new("RGB", (40, 5), "red").save(album / "tiny.png")
    (album / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    text = Page((run(workdir, album, "--top=1") / "index.html").read_text()).text
    assert "The nearest of 5 photos" in text
    for report in (text, capsys.readouterr().out):
        assert "2 files were skipped" in report
        assert "tiny.png: its 40 x 5 pixels are too small" in report
        assert "broken.jpg: " in report


def test_names_that_are_formulas_or_not_utf8_are_written(workdir, album, monkeypatch):
    tiny.install(monkeypatch.setattr)
    for number, name in enumerate([b"a_$5_and_$6.png", b"caf\xe9.png", b"new\nline\x1b[1m.png"]):
        (album / f"p {number}.png").rename(os.fsdecode(os.fsencode(album) + b"/" + name))
    sketch = os.fsdecode(b"c\xe9_$1_$2.png")
    (album.parent / "cat.png").rename(album.parent / sketch)
    folder = run(workdir, album, sketch=sketch)
    text = Page((folder / "index.html").read_text()).text
    for name in ("a_$5_and_$6.png", "caf\\xe9.png", "new\\nline\\x1b[1m.png", "c\\xe9_$1_$2"):
        assert name in text


def test_an_error_at_the_end_leaves_no_files_and_the_run_can_be_repeated(
    workdir, album, monkeypatch
):
    tiny.install(monkeypatch.setattr)
    write = paths.replace

    def full(file, content):
        if file.name == "index.html":
            raise OSError(28, "No space left on device")
        return write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            run(workdir, album, "--top=1")
    assert list((album.parent / "why").iterdir()) == []
    (album.parent / "why" / ".DS_Store").write_text("")
    assert (run(workdir, album, "--top=1") / "index.html").exists()


def test_photos_that_are_all_unusable_are_an_error(workdir, album):
    (album.parent / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 photo found, but none can be used .*empty\.png"):
        run(workdir, album, photos=album.parent / "empty.png")
    assert not (album.parent / "why").exists()


def test_other_content_is_not_overwritten(workdir, album):
    (album.parent / "why").mkdir()
    (album.parent / "why" / "index.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        run(workdir, album)
    assert (album.parent / "why" / "index.html").read_text() == "mine"
    with pytest.raises(FileExistsError, match=r"cat\.png is a file"):
        run(workdir, album, output="cat.png")


@pytest.mark.slow
def test_an_empty_folder_is_used(workdir, album):
    (album.parent / "why").mkdir()
    assert (run(workdir, album, "--top=1") / "index.html").exists()


def test_wrong_and_missing_input_is_reported(workdir, album):
    with pytest.raises(FileNotFoundError, match=r"The sketch .*dog\.png does not exist"):
        run(workdir, album, sketch="dog.png")
    with pytest.raises(FileNotFoundError, match="no file, folder or match"):
        run(workdir, album, photos=album / "*.tiff")
    with pytest.raises(ValueError, match="contains no photos"):
        (album.parent / "empty").mkdir()
        run(workdir, album, photos=album.parent / "empty")
    with pytest.raises(ValueError, match="--ranking=relations is not .* did you mean relation?"):
        run(workdir, album, "--ranking=relations")
    with pytest.raises(ValueError, match="--sketch is given 2 times"):
        run(workdir, album, "--sketch=dog.png")
    with pytest.raises(ValueError, match="takes no --config"):
        run(workdir, album, "--config.seed=1")
    options, argv = flags.FlagValues(), ["explain", f"--checkpoint={workdir}"]
    program.define_flags(options, argv)
    cli.parse(options, argv)
    with pytest.raises(ValueError, match="--sketch is missing"):
        program.main(options)


@pytest.mark.slow
def test_the_command_prints_help_and_one_line_for_an_error():
    command = [sys.executable, "-m", "zse_jax.explain"]
    helped = subprocess.run(
        [*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Shows which of your photos a sketch finds, and why." in helped.stdout
    assert "--photos" in helped.stdout
    failed = subprocess.run(
        [*command, "--checkpoint=nowhere"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.strip().startswith("error: --sketch is missing")
    assert "Traceback" not in failed.stderr
