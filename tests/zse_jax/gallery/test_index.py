"""Photos can be added to an index, are encoded once, and belong to one checkpoint."""

import os
import shutil
import subprocess
import sys
import threading
import types
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

import zse_jax
from data_pipelines import images
from tests.source import ROOT
from tests.zse_jax.gallery import kills
from tests.zse_jax.gallery.conftest import photo, written_checkpoint
from zse_jax.gallery import index, ingest, photos, tables
from zse_jax.gallery.encoder import CompiledEncoder
from zse_jax.runtime import cli


@pytest.fixture
def built(album, zse, tmp_path):
    """An index of the album."""
    index.build(photos=[album], index=tmp_path / "index", checkpoint=zse)
    return tmp_path / "index"


@pytest.fixture
def encodings(monkeypatch):
    """The number of photos in each call of the encoder."""
    counted = []
    encode = CompiledEncoder.__call__

    def counting(self, images, modality, batch):
        counted.append(len(images))
        assert batch < 2 * len(images)  # less than half of it is padding
        return encode(self, images, modality, batch)

    monkeypatch.setattr(CompiledEncoder, "__call__", counting)
    return counted


def paths(place):
    found = index.open(place).tables.columns("path")["path"].to_pylist()
    return sorted(Path(path).name for path in found)


def run(command, *arguments):
    options = flags.FlagValues()
    argv = ["index", command, *map(str, arguments)]
    index.define_flags(options, argv)
    index.main(options, *cli.parse(options, argv)[1:])


def test_it_contains_every_photo_with_its_embedding_and_thumbnail(built, album, zse):
    gallery = index.open(built)
    assert gallery.photos == 5
    assert gallery.info()["search"] == "exact"
    assert gallery.info()["checkpoint"] == str(zse)
    rows = gallery.tables.columns("id", "path", "embedding").to_pylist()
    row = next(row for row in rows if row["path"].endswith("p2.png"))
    retriever = zse_jax.load(zse)
    image = images.prepare_photo(images.decode((album / "p2.png").read_bytes()), 32)
    features = retriever.encode(jax.numpy.asarray(image[None]), "photo")
    np.testing.assert_allclose(row["embedding"], retriever.embedding(features)[0], atol=1e-5)
    assert gallery.thumbnail(row["id"]).startswith(b"\xff\xd8\xff")
    assert gallery.file(row["id"]) == album / "p2.png"
    for strange in ("0" * 24, "' OR '1'='1", "../../etc/passwd"):
        with pytest.raises(KeyError):
            gallery.file(strange)


def test_unchanged_photos_are_not_encoded_again(built, album, encodings):
    changes = index.add(built, album)
    assert (changes.unchanged, changes.added, encodings) == (5, 0, [])
    photo(album / "new.png", 99)
    assert index.add(built, [album / "new.png"]).added == 1
    assert encodings == [1]
    assert index.open(built).photos == 6


def test_a_changed_photo_replaces_the_old_one(built, album, encodings):
    before = index.open(built).tables.columns("path", "embedding").to_pylist()
    photo(album / "p1.png", 77)
    changes = index.add(built, album)
    assert (changes.updated, changes.unchanged, encodings) == (1, 4, [1])
    after = index.open(built).tables.columns("path", "embedding").to_pylist()
    old, new = ({row["path"]: row["embedding"] for row in rows} for rows in (before, after))
    assert [name for name in old if old[name] != new[name]] == [str(album / "p1.png")]
    assert len(after) == 5


def test_known_content_is_not_encoded_again(built, album, encodings):
    shutil.copy(album / "p0.png", album / "copy.png")
    os.utime(album / "p2.png")
    (album / "p3.png").rename(album / "moved.png")
    changes = index.add(built, album)
    assert (changes.added, changes.updated, changes.reused, changes.gone) == (2, 1, 3, 1)
    assert encodings == []
    rows = index.open(built).tables.columns("path", "embedding").to_pylist()
    vectors = {Path(row["path"]).name: row["embedding"] for row in rows}
    assert vectors["copy.png"] == vectors["p0.png"]
    assert vectors["moved.png"] == vectors["p3.png"]


def test_bad_files_are_reported_and_read_again_when_they_change(built, album, encodings):
    (album / "page.jpg").write_bytes(b"<html>no photo</html>")
    (album / "empty.png").write_bytes(b"")
    refused = index.add(built, album).refused
    assert [Path(name).name for name, _ in refused] == ["empty.png", "page.jpg"]
    assert index.open(built).refused() == refused
    assert index.add(built, album).refused == refused  # reported again, but not read
    photo(album / "empty.png", 5)
    changes = index.add(built, album)
    assert (changes.added, len(changes.refused)) == (1, 1)
    assert len(index.open(built).refused()) == 1
    (album / "p0.png").write_bytes(b"broken now")
    changes = index.add(built, album)
    assert (changes.updated, len(changes.refused)) == (0, 2)
    assert "p0.png" not in paths(built)
    assert encodings == [1]


def test_a_file_that_cannot_be_read_is_read_again_every_time(built, album, monkeypatch):
    photo(album / "locked.png", 8)
    with monkeypatch.context() as patch:

        def denied(*args):
            raise PermissionError(13, "Permission denied")

        patch.setattr(ingest.photos, "read", denied)
        assert index.add(built, album).refused == [
            (str(album / "locked.png"), "it cannot be read: Permission denied")
        ]
    assert index.add(built, album).added == 1
    assert index.open(built).refused() == []


def test_file_names_that_are_not_utf8(built, album):
    strange = os.fsencode(album) + b"/caf\xe9.png"
    shutil.copy(album / "p0.png", strange)
    assert index.add(built, album).added == 1
    gallery = index.open(built)
    [row] = [r for r in gallery.tables.columns("id", "path").to_pylist() if "caf" in r["path"]]
    assert row["path"].endswith("caf\\xe9.png")
    assert os.fsencode(gallery.file(row["id"])) == strange
    assert index.add(built, album).unchanged == 6


def test_a_photo_of_any_date_is_indexed(album, zse, tmp_path):
    for number, date in enumerate((-(2**62), 0, 2**63 + 5, 2**65)):
        os.utime(album / f"p{number}.png", ns=(date, date))
    assert index.build(photos=album, index=tmp_path / "index", checkpoint=zse).added == 5
    assert index.add(tmp_path / "index", album).unchanged == 5
    assert index.verify(tmp_path / "index").changed == []


def test_a_photo_that_cannot_be_inspected_is_not_deleted(built, album, monkeypatch):
    stat = Path.stat

    def closed(path, **options):
        if path == album / "p0.png":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", closed)
    assert index.remove(built) == 0
    found = index.verify(built)
    assert (found.gone, found.closed) == ([], [(str(album / "p0.png"), "Permission denied")])
    changes = index.add(built, album)
    assert (changes.gone, changes.unchanged, len(changes.refused)) == (0, 4, 1)


def test_damaged_metadata_is_counted(built, album):
    png = (album / "p0.png").read_bytes()
    crc = zlib.crc32(b"eXIfgarbage").to_bytes(4, "big")
    (album / "new.png").write_bytes(png[:33] + b"\0\0\0\7eXIfgarbage" + crc + png[33:])
    changes = index.add(built, album)
    assert (changes.added, changes.damaged_metadata) == (1, 1)


def test_files_of_the_system_are_not_other_content(album, zse, tmp_path):
    place = tmp_path / "index"
    place.mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".directory", ".nfs0001"):
        (place / name).write_text("")
    (place / "@eaDir").mkdir()
    assert index.build(photos=[album], index=place, checkpoint=zse).added == 5


def test_deleted_photos_are_reported_and_removed_on_request(built, album):
    (album / "p0.png").unlink()
    assert index.verify(built).gone == [str(album / "p0.png")]
    assert index.add(built, album).gone == 1
    assert index.open(built).photos == 5
    assert index.remove(built) == 1
    assert index.verify(built).gone == []
    assert index.remove(built, [album / "deep"]) == 1
    assert paths(built) == ["p1.png", "p2.png", "p3.png"]
    with pytest.raises(ValueError, match="has no photo in .*deep"):
        index.remove(built, album / "deep")
    shutil.rmtree(album)
    with pytest.raises(ValueError, match="Of 3 photos in .* no file exists .* disk mounted"):
        index.remove(built)
    assert index.remove(built, album) == 3


def test_photos_of_a_place_that_vanished_are_kept(built, album, zse, tmp_path):
    other = photo(tmp_path / "disk/a.png", 31).parent
    assert index.sync([album, other], built, zse)[0].added == 1
    (other / "a.png").unlink()  # the mount point of a disk that is not mounted
    (album / "p0.png").unlink()
    with pytest.raises(ValueError, match=r"Of 1 photo in .* no file exists in .*disk:"):
        index.sync([album, other], built, zse)
    assert index.sync([album], built, zse)[1] == 1  # of this place only
    assert paths(built) == ["a.png", "p1.png", "p2.png", "p3.png", "p4.png"]
    other.rmdir()
    with pytest.raises(FileNotFoundError, match=r"--photos=.*disk: no file, folder or match"):
        index.sync([album, other], built, zse)
    assert index.open(built).photos == 5


def test_photos_are_found_while_others_are_encoded(built, album, monkeypatch, zse):
    """So that the paths of a million files are not in memory at once."""
    for number in range(20):
        photo(album / f"new{number:02}.png", 100 + number)
    monkeypatch.setattr(ingest, "HELD", 4)
    monkeypatch.setattr(photos, "READ_AHEAD", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    found, ahead = [], []
    search, add = photos.Found.__iter__, ingest._Writer.add
    monkeypatch.setattr(
        photos.Found, "__iter__", lambda self: (found.append(one) or one for one in search(self))
    )

    def adding(self, result):
        ahead.append(len(found))
        return add(self, result)

    monkeypatch.setattr(ingest._Writer, "add", adding)
    assert index.add(built, album).added == 20
    assert ahead[:10] == [*range(5, 15)]  # two ahead, two in threads, and the one that is read


def test_a_photo_that_changes_while_it_is_read_is_read_again_the_next_time(
    built, album, monkeypatch
):
    photo(album / "new.png", 50)
    read_file = images.read_file

    def changing(file):
        encoded = read_file(file)
        if file.name == "new.png":
            photo(file, 51, (60, 50))
        return encoded

    with monkeypatch.context() as patch:
        patch.setattr(images, "read_file", changing)
        assert index.add(built, album).added == 1
    assert index.add(built, album).updated == 1
    rows = index.open(built).tables.columns("path", "width").to_pylist()
    assert {row["width"] for row in rows if row["path"].endswith("new.png")} == {60}
    assert index.add(built, album).unchanged == 6


def test_an_album_without_photos(tmp_path, zse, capsys):
    (tmp_path / "empty").mkdir()
    assert index.sync(tmp_path / "empty", tmp_path / "index", zse)[0].added == 0
    assert index.verify(tmp_path / "index").photos == 0


def test_an_index_is_kept_up_to_date_while_it_is_watched(album, zse, tmp_path, monkeypatch, capsys):
    stop = threading.Event()
    updates = []

    def watch(folders, update, stop, *, ignored, changes):
        assert (folders, ignored) == ([album], [tmp_path / "index"])
        photo(album / "new.png", 60)
        (album / "p0.png").unlink()
        update()
        with tables.locked(str(tmp_path / "index")):
            update()
        updates.append(changes.take(float("inf")))  # it is tried again
        album.rename(tmp_path / "unplugged")
        update()
        (tmp_path / "unplugged").rename(album)
        (album / "p1.png").unlink()
        update()

    monkeypatch.setattr(index.watching, "watch", watch)
    index.watch(album, tmp_path / "index", zse, stop=stop)
    assert paths(tmp_path / "index") == ["new.png", "p2.png", "p3.png", "p4.png"]
    output = capsys.readouterr().out
    assert "1 photo added, 0 updated, 1 removed, 4 unchanged" in output
    assert "0 photos added, 0 updated, 1 removed, 4 unchanged" in output
    assert updates == [True]


@pytest.mark.parametrize("command", index.COMMANDS)
def test_the_help_of_a_command_lists_its_flags(command, monkeypatch):
    main = types.SimpleNamespace(__doc__="of all")
    monkeypatch.setitem(sys.modules, "__main__", main)
    options = flags.FlagValues()
    index.define_flags(options, ["index", command, "--help"])
    assert set(options) == {"index", *index.COMMANDS[command].flags}
    assert main.__doc__ == index.COMMANDS[command].summary


@pytest.mark.slow
def test_an_index_of_another_checkpoint_is_refused(built, album, zse, tmp_path):
    other = written_checkpoint(tmp_path / "other", seed=3)
    for call in (
        lambda: index.build(photos=[album], index=built, checkpoint=other),
        lambda: index.add(built, album, checkpoint=other),
        lambda: index.open(built).retriever(other),
    ):
        with pytest.raises(ValueError, match=f"belongs to another checkpoint: {zse}, step 0"):
            call()
    moved = shutil.copytree(zse, tmp_path / "moved")
    index.open(built).retriever(moved)


@pytest.mark.slow
def test_a_moved_checkpoint_is_reported(album, zse, tmp_path):
    first = shutil.copytree(zse, tmp_path / "first")
    index.build(photos=[album], index=tmp_path / "index", checkpoint=first)
    first.rename(tmp_path / "second")
    with pytest.raises(FileNotFoundError, match="no longer exists at .*first: give its new"):
        index.add(tmp_path / "index", album)
    assert index.add(tmp_path / "index", album, checkpoint=tmp_path / "second").unchanged == 5


def test_there_is_one_writer_at_a_time(built, album):
    with (
        index.Tables(built).writing(),
        pytest.raises(BlockingIOError, match="Another process is writing to the index"),
    ):
        index.add(built, album)
    assert index.add(built, album).unchanged == 5


def test_places_without_an_index(album, zse, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no index at .*nothing: build one with"):
        index.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="There is no index at"):
        index.open(album)
    with pytest.raises(FileExistsError, match=r"contains other files \(deep, notes.txt, p0.png\)"):
        index.build(photos=[album], index=album, checkpoint=zse)
    with pytest.raises(FileNotFoundError, match="no file, folder or match"):
        index.build(photos=["nothing"], index=tmp_path / "new", checkpoint=zse)
    assert not (tmp_path / "new").exists()


def test_verification_finds_duplicate_damaged_and_changed_photos(built, album):
    table = index.Tables(built)
    row = table.columns(*table._photos.schema.names).to_pylist()[0]
    table.put([row, row | {"id": "a" * 24, "path": "bad", "embedding": [0.0] * 32}], False)
    os.utime(album / "deep" / "p4.png")
    found = index.verify(built)
    assert found.twice == [row["path"]]
    assert found.damaged == ["bad"]
    assert found.changed == [str(album / "deep" / "p4.png")]
    with pytest.raises(ValueError, match="is damaged. Duplicate photos: 1; .* thumbnail: 1 "):
        index.show_verification(found, "x")
    shutil.rmtree(built / "photos.lance" / "data")
    with pytest.raises(ValueError, match=r"cannot be read or written \((?!.*\.rs:)"):
        index.verify(built)


def test_an_index_of_other_code_is_reported(built, album, zse, monkeypatch, caplog):
    index.add(built, album)
    assert not caplog.text
    monkeypatch.setattr(index.consistency, "code_digest", lambda *_: "other")
    index._warn_of_other_code.cache_clear()
    for _ in range(2):
        index.add(built, album)
    assert caplog.text.count("was built by another version of the code") == 1
    assert f"build --index={built}" in caplog.text


def test_an_index_can_be_in_a_bucket(album, zse, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "located", os.fspath)  # else this one is a local path
    uri = f"file://{tmp_path}/bucket/index"
    assert index.build(photos=[album], index=uri, checkpoint=zse).added == 5
    assert index.add(uri, album).unchanged == 5
    assert index.verify(uri).photos == 5


def test_above_a_size_the_search_is_approximate_and_finds_the_same(built, album, monkeypatch):
    monkeypatch.setattr(tables, "EXACT_UP_TO", 300)
    table = index.Tables(built)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, table.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table.put(
        [
            {"id": f"{i:024}", "path": f"x{i}", "file": b"", "embedding": v}
            for i, v in enumerate(vectors)
        ],
        False,
    )
    photo(album / "new.png", 123)
    index.add(built, album)
    gallery = index.open(built)
    assert gallery.info()["search"] == "approximate"
    rows, similarity = gallery.tables.nearest(vectors[7], 10)
    found = gallery.tables.rows([int(row) for row in rows], ["path"])
    exact = np.sort(np.concatenate([vectors, gallery.tables.embeddings()[0]]) @ vectors[7])
    assert found[0]["path"] == "x7"
    np.testing.assert_allclose(similarity[0], 1, atol=1e-5)
    assert similarity[-1] <= exact[-10] + 1e-5
    for start, count, scattered in ((400, 15, False), (415, 30, True)):
        more = [
            {
                "id": f"{i:024}",
                "path": f"x{i}",
                "file": b"",
                "embedding": rng.permutation(vectors[0]),
            }
            for i in range(start, start + count)
        ]
        table.put(more, False)
        assert table.is_scattered is scattered
        rows, similarity = table.nearest(more[3]["embedding"], 1)
        assert table.rows([int(rows[0])], ["path"])[0]["path"] == f"x{start + 3}"
        assert similarity[0] == pytest.approx(1, abs=1e-5)
    index.prepare(table)
    assert not table.is_scattered


def test_an_index_is_compacted_when_its_photos_are_in_many_files(built, album, monkeypatch):
    monkeypatch.setattr(tables, "MOST_FRAGMENTS", 3)
    compacted = []
    tidy = tables.Tables.tidy

    def counted(self):
        compacted.append(self.count())
        tidy(self)

    monkeypatch.setattr(tables.Tables, "tidy", counted)
    for number in range(5):
        photo(album / f"new{number}.png", 200 + number)
        index.add(built, album)
    assert compacted == [8], "after the third of five additions to one file of five photos"
    assert len(index.Tables(built).embeddings()[1]) == 10


def test_the_program_reports_what_it_did(album, zse, tmp_path, capsys):
    place = tmp_path / "index"
    (album / "page.jpg").write_bytes(b"<html>")
    (album / "again").symlink_to(album, target_is_directory=True)
    run("build", f"--photos={album}", f"--index={place}", f"--checkpoint={zse}")
    output = capsys.readouterr().out
    assert "5 photos added, 0 updated, 0 unchanged" in output
    assert "1 skipped:\n" in output
    assert "page.jpg: it is not an image of a known format (it is a web page)" in output
    assert "links to folders skipped (the folders were already searched): 1" in output
    assert "files skipped (their names are not those of photos): 1" in output
    run("verify", f"--index={place}")
    assert "no problems found" in capsys.readouterr().out
    (album / "p0.png").rename(album / "p0\x1b[31m\n.png")
    with pytest.raises(ValueError, match=r"differs .* no longer exist: 1 .* changed: 0"):
        run("verify", f"--index={place}")
    output = capsys.readouterr().out
    assert "p0.png" in output
    assert "no problems found" not in output
    (album / "p0\x1b[31m\n.png").rename(album / "p0.png")
    (album / "page\x1b]0;x\x07\n.jpg").write_bytes(b"<html>")
    run("add", f"--photos={album}", f"--index={place}")
    output = capsys.readouterr().out
    assert "page\\x1b]0;x\\x07\\n.jpg: it is not an image" in output
    assert "\x1b" not in output
    run("info", f"--index={place}")
    assert "photos           5" in capsys.readouterr().out
    run("remove", f"--index={place}", f"--photos={album}/deep")
    assert "removed 1 photo " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "--index=x"], "no command 'make': choose one of build, sync, watch, add, remove"),
        (["snyc", "--index=x"], r"no command 'snyc' \(did you mean sync\?\)"),
        (["remove", "--index=x", "--include_hidden"], "--include_hidden has no effect on remove"),
        (["build"], "--index is missing"),
        (["build", "--index=x"], "--photos is missing"),
        (["sync", "--index=x"], "--photos is missing"),
        (["add", "--index=x", "--config.model.width=3"], "takes no --config"),
        (["verify", "--index=x", "--photos=y"], "--photos has no effect on verify"),
        (["add", "--index=x", "--photos=y", "--nofeatures"], "--features has no effect on add"),
    ],
)  # fmt: skip
def test_the_program_reports_missing_flags(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)


@pytest.mark.slow
def test_the_database_is_imported_when_an_index_is_opened():
    program = "import sys, zse_jax.gallery.search; print({'lance', 'pyarrow'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
def test_kills_at_any_time_neither_lose_nor_duplicate_photos(zse, tmp_path):
    for number in range(60):
        photo(tmp_path / "album" / f"{number:03}.png", number)
    assert kills.run(str(zse), tmp_path, 4) >= 3


def random_table(place: Path, count: int, width: int) -> tuple[tables.Tables, np.ndarray]:
    """A table of random embeddings, and the embeddings."""
    vectors = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = tables.Tables.create(place, {"checkpoint": ""}, width)
    rows = [{"id": f"{i:024}", "path": f"{i}", "embedding": v} for i, v in enumerate(vectors)]
    table.put(rows, False)
    return table, vectors


def assert_finds_the_nearest(table: tables.Tables, vectors: np.ndarray, least: float) -> None:
    """The recall of the first 100 is at least `least`, and the similarities are exact."""
    found = 0
    for query in vectors[:10]:
        rows, similarity = table.nearest(query, 100)
        np.testing.assert_allclose(similarity, table.embeddings_of(rows) @ query, atol=1e-5)
        exact = np.sort(vectors @ query)[-100]
        found += (similarity >= exact - 1e-5).sum()
    assert found / 1000 >= least


@pytest.mark.parametrize("width", [7, 64])
def test_an_approximate_index_finds_the_nearest(tmp_path, monkeypatch, width):
    monkeypatch.setattr(tables, "PARTITION", 300)
    table, vectors = random_table(tmp_path / "index", 3000, width)
    table.index()
    assert table.is_approximate
    assert_finds_the_nearest(table, vectors, 0.98 if width == 64 else 0.8)  # 7: one code of a byte


def test_an_approximate_index_of_an_early_version_is_searched(tmp_path):
    table, vectors = random_table(tmp_path / "index", 2000, 32)
    table._photos.create_index("embedding", "IVF_FLAT", metric="dot", num_partitions=45)
    assert_finds_the_nearest(tables.Tables(tmp_path / "index"), vectors, 1)


@pytest.mark.parametrize(
    ("photos", "width", "partitions", "codes"),
    [
        (200_000, 1280, 12, 320),
        (10, 512, 1, 128),
        (3_000_000, 512, 183, 128),
        (3_000_001, 512, 183, 64),
        (10**7, 6, 256, 1),
        (10**6, 10, 61, 2),
    ],
)
def test_settings_of_an_approximate_index(photos, width, partitions, codes):
    settings = tables.index_settings(photos, width)
    assert (settings["num_partitions"], settings["num_sub_vectors"]) == (partitions, codes)
