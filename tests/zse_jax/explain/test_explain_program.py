"""The program that explains what a sketch finds among a user's photos."""

import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.source import ROOT
from tests.zse_jax import tiny
from tests.zse_jax.explain import patches
from tests.zse_jax.explain.test_report import Page
from zse_jax.explain import __main__ as program
from zse_jax.runtime import cli
from zse_jax.training import loop


def workdir_of(install, path):
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        loop.train(tiny.config(**{"train.steps": 1, "evaluation.every": 1}), path)
        yield path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    yield from workdir_of(patches.install, tmp_path_factory.mktemp("run"))


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


def test_it_ranks_explains_and_writes_a_page_and_pictures(workdir, album, capsys):
    folder = run(workdir, album, "--top=2")
    files = sorted(path.name for path in folder.iterdir())
    assert files[-2:] == ["index.html", "retrieved.png"]
    assert len(files) == 4
    assert all(name.startswith(("01-p_", "02-p_")) for name in files[:2])
    page = Page((folder / "index.html").read_text())
    assert "The nearest of 5 photos" in page.text
    assert "likeness of grey patches" in page.text
    assert "from the first 2" in page.text
    assert len(page.all("details")) == 2
    assert all(image["src"].startswith("data:") and image["alt"] for image in page.all("img"))
    with Image.open(folder / "retrieved.png") as image:
        assert image.width > 800
    assert "4 pictures" not in capsys.readouterr().out


def test_the_order_is_that_of_the_ranking(workdir, album):
    import zse_jax

    photos = program.PhotoFiles(program.photo_files([str(album)]), tiny.SIZE)
    sketch = program.prepared_sketch(album.parent / "cat.png", tiny.SIZE)
    retriever = zse_jax.load(workdir)
    ranked = program.rank(retriever, sketch, photos, "token")
    gallery = np.stack([photos[i] for i in range(5)])
    vectors = [
        np.asarray(retriever.embedding(retriever.encode(x, kind)))
        for x, kind in ((sketch[None], "sketch"), (gallery, "photo"))
    ]
    similarity = (vectors[0] @ vectors[1].T)[0]
    assert ranked.top.tolist() == np.argsort(-similarity).tolist()
    np.testing.assert_allclose(ranked.similarity, np.sort(similarity)[::-1], atol=1e-5)


def test_photos_are_folders_patterns_or_files(album):
    def names(*places):
        return [file.name for file in program.photo_files(places)]

    assert names(str(album)) == ["p 4.png", "p 0.png", "p 1.png", "p 2.png", "p 3.png"]
    assert names(f"{album}/*.png") == [f"p {i}.png" for i in range(4)]
    assert names(f"{album}/**/p [34].png") == ["p 4.png", "p 3.png"]
    assert names(f"{album}/p 1.png", f"{album}/*.png")[0] == "p 1.png"
    assert len(names(f"{album}/p 1.png", str(album))) == 5


def test_without_local_evidence_the_photos_are_ranked_and_the_page_says_so(
    workdir, album, monkeypatch
):
    tiny.install(monkeypatch.setattr)
    folder = run(workdir, album)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "retrieved.png"]
    text = Page((folder / "index.html").read_text()).text
    assert "Tiny compares images as wholes and has no local evidence" in text


def test_a_sketch_without_strokes_is_an_error_that_leaves_no_folder(workdir, album):
    Image.new("RGB", (40, 40), "white").save(album.parent / "blank.png")
    with pytest.raises(ValueError, match=r"blank\.png holds no strokes"):
        run(workdir, album, sketch="blank.png")
    assert not (album.parent / "why").exists()


def test_a_photo_that_is_too_small_is_named(workdir, album):
    Image.new("RGB", (40, 5), "red").save(album / "tiny.png")
    with pytest.raises(ValueError, match=r"tiny\.png is 40 x 5 pixels, too small"):
        run(workdir, album)


def test_a_photo_that_cannot_be_read_is_named(workdir, album):
    (album / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be read: .* Save it anew"):
        run(workdir, album)


def test_other_content_is_not_overwritten(workdir, album):
    (album.parent / "why").mkdir()
    (album.parent / "why" / "index.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds other content \(index.html\)"):
        run(workdir, album)
    assert (album.parent / "why" / "index.html").read_text() == "mine"
    with pytest.raises(NotADirectoryError, match=r"cat\.png is a file"):
        run(workdir, album, output="cat.png")


def test_an_empty_folder_is_used(workdir, album):
    (album.parent / "why").mkdir()
    assert (run(workdir, album, "--top=1") / "index.html").exists()


def test_what_is_missing_is_named(workdir, album):
    with pytest.raises(FileNotFoundError, match="no image file .*dog.png"):
        run(workdir, album, sketch="dog.png")
    with pytest.raises(FileNotFoundError, match="is no file, no folder, and matches nothing"):
        run(workdir, album, photos=album / "*.tiff")
    with pytest.raises(ValueError, match="holds no image"):
        (album.parent / "empty").mkdir()
        run(workdir, album, photos=album.parent / "empty")
    with pytest.raises(ValueError, match="--ranking=relations is none.* did you mean relation?"):
        run(workdir, album, "--ranking=relations")
    with pytest.raises(ValueError, match="takes no --config"):
        run(workdir, album, "--config.seed=1")
    options, argv = flags.FlagValues(), ["explain", f"--checkpoint={workdir}"]
    program.define_flags(options, argv)
    cli.parse(options, argv)
    with pytest.raises(ValueError, match="--sketch is missing"):
        program.main(options)


@pytest.mark.slow
def test_the_command_helps_and_ends_with_a_paragraph_when_it_cannot_go_on():
    command = [sys.executable, "-m", "zse_jax.explain"]
    helped = subprocess.run(
        [*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Which of your photos a sketch finds, and why." in helped.stdout
    assert "--photos" in helped.stdout
    failed = subprocess.run(
        [*command, "--checkpoint=nowhere"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.strip().startswith("error: --sketch is missing")
    assert "Traceback" not in failed.stderr
