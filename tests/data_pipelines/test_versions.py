"""Versions of a user's folder: by content, side by side, incremental, kept, listed and removed."""

import os
import re
import shutil
import time
from unittest import mock

import pytest

from data_pipelines import loading, prepared, versions
from data_pipelines.builders import folder, folders, packing
from data_pipelines.prepared import __main__ as program
from tests.data_pipelines.builders import trees
from tests.data_pipelines.test_prepared import contents

NAMES = [f"{m}/{c}/{i}.png" for m in ("sketch", "photo") for c in ("cat", "dog") for i in range(4)]
PHOTOS = [name for name in NAMES if name.startswith("photo")]


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """The files of the tests count as older than they are; they are in shards of four."""
    monkeypatch.setattr(versions, "RECENT_NS", 0)
    monkeypatch.setattr(packing, "IMAGES_PER_SHARD", 4)


@pytest.fixture
def root(tmp_path):
    """A folder that a test may change."""
    return trees.write(tmp_path / "pets", NAMES)


@pytest.fixture
def prepare(tmp_path):
    """Prepares a folder as a new process would."""

    def prepare(root=None, **options):
        prepared._folder_version.cache_clear()
        options = {"data_dir": tmp_path / "tfds", "manual_dir": root} | options
        return prepared.prepare("folder", **options)

    return prepare


@pytest.fixture
def work(monkeypatch):
    """The names of the files that are read, and the number of images that are decoded."""
    read, decoded = [], []
    file_read, digest = folders.ImageFile.read, folders.ImageFile.digest
    decode = packing.images.decode
    monkeypatch.setattr(
        folders.ImageFile, "read", lambda file: (read.append(file.name), file_read(file))[1]
    )
    monkeypatch.setattr(
        packing.images, "decode", lambda data: (decoded.append(data), decode(data))[1]
    )
    monkeypatch.setattr(
        folders.ImageFile, "digest", lambda file: (read.append(file.name), digest(file))[1]
    )
    return read, decoded


def stored(version):
    """Name -> bytes of all images of a version."""
    return {name: data for images in contents(version).values() for name, data in images.items()}


def on_disk(root):
    """Name -> bytes of all images of a folder."""
    return {file.name: file.path.read_bytes() for file in files(root)}


def files(root):
    """The images of a folder."""
    return [file for images in folder.scan(root).images.values() for file in images]


def test_an_unchanged_folder_is_prepared_once(root, prepare, work):
    first = prepare(root)
    read, _ = work
    read.clear()
    assert prepare(root) == first
    assert read == []


def test_two_folders_live_side_by_side(root, prepare, work, tmp_path):
    other = trees.write(tmp_path / "birds", [name.replace("cat", "owl") for name in NAMES])
    first, second = prepare(root), prepare(other)
    assert first != second
    _, decoded = work
    decoded.clear()
    assert (prepare(root), prepare(other)) == (first, second)
    assert decoded == []
    assert stored(first) == on_disk(root)
    assert stored(second) == on_disk(other)


def test_a_changed_folder_reuses_what_is_unchanged(root, prepare, work, capsys):
    first, before = prepare(root), on_disk(root)
    trees.write(root, ["photo/cat/new.png"])
    (root / "photo/dog/1.png").write_bytes(trees.tiny(7, "png") + b"\0")
    (root / "sketch/dog/3.png").unlink()
    read, decoded = work
    read.clear()
    decoded.clear()
    capsys.readouterr()
    second = prepare(root)
    assert sorted(read) == ["photo/cat/new.png", "photo/dog/1.png"]
    assert len(decoded) == 2
    shown = capsys.readouterr().out
    assert "1 added, 1 changed, 1 removed; 14 images unchanged" in shown
    assert stored(second) == on_disk(root)
    assert stored(first) == before  # the earlier version is kept


def test_whole_shards_are_shared_and_tfds_reads_the_rest(root, prepare):
    import tensorflow_datasets as tfds

    first = prepare(root)
    (root / "sketch/dog/3.png").unlink()
    second = prepare(root)
    inodes = [
        {path.stat().st_ino for path in version.glob("*array_record*")}
        for version in (first, second)
    ]
    assert len(inodes[0] & inodes[1]) == 3
    names = {
        r["name"].decode() for r in tfds.builder_from_directory(second).as_data_source("sketch")
    }
    assert names == {name for name in NAMES if name.startswith("sketch")} - {"sketch/dog/3.png"}


def test_small_files_do_not_accumulate(root, prepare):
    for i in range(6):
        trees.write(root, [f"photo/cat/more{i}.png"])
        version = prepare(root)
    assert stored(version) == on_disk(root)
    assert len([*version.glob("folder-photo.array_record*")]) <= 2 * 14 / 4


def test_the_same_bytes_with_another_time_are_the_same_content(root, prepare, work):
    first = prepare(root)
    os.utime(root / "photo/cat/0.png")
    read, _ = work
    read.clear()
    assert prepare(root) == first
    assert read == ["photo/cat/0.png"]
    read.clear()
    assert prepare(root) == first  # the new time was recorded
    assert read == []


def test_an_edit_that_keeps_size_and_modification_time_is_found(root, prepare):
    first, path = prepare(root), root / "photo/cat/0.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\1")  # the check sum of the last chunk
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = prepare(root, skip_unreadable=True)
    assert second != first


def test_a_file_that_has_just_changed_is_compared_by_its_bytes(root, prepare, work, monkeypatch):
    monkeypatch.setattr(versions, "RECENT_NS", 3_600_000_000_000)
    first = prepare(root)
    read, _ = work
    read.clear()
    assert prepare(root) == first
    assert sorted(read) == sorted(NAMES)


def test_former_content_is_found_again(root, prepare):
    first = prepare(root)
    (root / "photo/cat/0.png").rename(root.parent / "0.png")
    second = prepare(root)
    shutil.move(root.parent / "0.png", root / "photo/cat/0.png")
    assert prepare(root) == first != second


def test_other_pairs_are_other_content(root, prepare, work, capsys):
    prepare(root)
    (root / "pairs.csv").write_text("sketch,photo\n")
    _, decoded = work
    decoded.clear()
    version = prepare(root)
    assert "other pairs of sketches and photos" in capsys.readouterr().out
    assert decoded == []
    assert set(prepared.open_split(version, "sketch")[1].instances) == {""}


def test_an_interrupted_increment_resumes(root, prepare, monkeypatch):
    prepare(root)
    trees.write(root, [f"photo/owl/{i}.png" for i in range(8)] + ["sketch/owl/0.png"])
    pack_shard, packed = packing.pack_shard, []

    def killed(shard):
        if len(packed) == 2:
            raise KeyboardInterrupt
        packed.append(shard.path.name)
        return pack_shard(shard)

    monkeypatch.setattr(packing, "pack_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(root)
    resumed = []
    monkeypatch.setattr(
        packing, "pack_shard", lambda shard: (resumed.append(shard.path.name), pack_shard(shard))[1]
    )
    version = prepare(root)
    assert set(packed).isdisjoint(resumed)
    assert stored(version) == on_disk(root)


def test_unreadable_images_are_reported_again_after_other_changes(root, prepare):
    (root / "photo/cat/0.png").write_bytes(b"not an image")
    prepare(root, skip_unreadable=True)
    trees.write(root, ["photo/cat/new.png"])
    with pytest.raises(ValueError, match=r"1 of 17 images .*\n.*photo/cat/0.png"):
        prepare(root)
    assert len(stored(prepare(root, skip_unreadable=True))) == 16


# Names


def test_images_have_the_name_that_the_user_gives(root, prepare, tmp_path):
    version = prepare(root, name_as="My_pets-1")
    assert version == tmp_path / "tfds/folder/My_pets-1/1.0.0"
    moved = root.rename(tmp_path / "elsewhere")
    assert prepare(moved, name_as="My_pets-1") == version
    assert prepare(name_as="My_pets-1") == version


@pytest.mark.parametrize("name", ["", "a b", "../x", "é", "a.b", "x" * 65])
def test_a_name_with_other_characters_is_an_error(root, prepare, name):
    with pytest.raises(ValueError, match="name_as=.*letters"):
        prepare(root, name_as=name)


def test_benchmarks_have_no_other_name(prepare):
    with pytest.raises(ValueError, match="name_as is for a user's own images"):
        prepared.prepare("sketchy", name_as="mine")


def test_without_a_folder_the_only_one_is_used(root, prepare, tmp_path):
    version = prepare(root)
    assert prepare() == version
    prepare(root, name_as="again")
    with pytest.raises(ValueError, match=r"Several folders .*name_as(?s:.*)again: 16 images"):
        prepare()
    with pytest.raises(FileNotFoundError, match=r"'cats' is prepared(?s:.*)again: 16 images"):
        prepare(name_as="cats")


def test_a_folder_that_is_gone_is_used_as_it_was_prepared(root, prepare, caplog):
    version = prepare(root)
    shutil.rmtree(root)
    assert prepare(root) == version
    assert f"{root} is missing" in caplog.text


# Content that a checkpoint names


def test_the_content_of_a_checkpoint_is_found_after_a_change(root, prepare, caplog):
    first = prepare(root)
    content = prepared.content_of(first)
    trees.write(root, ["photo/cat/new.png"])
    second = prepare(root, content=prepared.PRESENT)
    assert second != first
    assert prepare(root, content=content) == first
    assert "changed since" in caplog.text
    shutil.rmtree(root)
    assert prepare(root, content=content) == first


def test_equal_images_elsewhere_have_the_content_of_the_checkpoint(root, prepare, tmp_path):
    content = prepared.content_of(prepare(root))
    shutil.rmtree(tmp_path / "tfds")
    copy = shutil.copytree(root, tmp_path / "other/copy")
    assert prepared.content_of(prepare(copy, content=content)) == content


def test_content_that_is_nowhere_is_an_error_with_the_remedy(root, prepare, tmp_path):
    content = prepared.content_of(prepare(root))
    shutil.rmtree(tmp_path / "tfds")
    (root / "photo/cat/0.png").unlink()
    remedy = rf"content={content}\) are not prepared .*--config.data.content=present"
    with pytest.raises(ValueError, match=remedy):
        prepare(root, content=content)
    with pytest.raises(FileNotFoundError, match=remedy):
        prepare(content=content)


# list and remove


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the program; returns exit code and output without runs of spaces."""

    def run(*arguments):
        capsys.readouterr()
        code = program.main([*arguments, f"--data_dir={tmp_path / 'tfds'}"])
        shown = capsys.readouterr()
        return code, re.sub(r"[ \t│]+", " ", shown.out + shown.err)

    return run


def test_list_shows_each_version_and_whether_its_source_matches(root, prepare, run):
    assert "No data set is prepared" in run("list")[1]
    prepare(root, name_as="pets")
    trees.write(root, ["photo/cat/new.png"])
    prepare(root, name_as="pets")
    (root / "photo/cat/0.png").unlink()
    code, shown = run("list")
    assert code == 0
    date = time.strftime("%Y-%m-%d")
    assert re.search(rf"pets 1.0.0 16 [\d.]+ kB {date} \d\d:\d\d {root} 1 added, 1 removed", shown)
    assert re.search(rf"pets 1.0.1 17 [\d.]+ kB {date} \d\d:\d\d {root} 1 removed", shown)
    shutil.rmtree(root)
    assert run("list")[1].count("missing") == 2


def test_one_version_or_all_are_removed_and_the_source_stays(root, prepare, run, tmp_path):
    prepare(root, name_as="pets")
    trees.write(root, ["photo/cat/new.png"])
    last = prepare(root, name_as="pets")
    assert run("remove", "pets:1.0.0")[0] == 1  # not confirmed
    assert run("remove", "pets:1.0.0", "--yes")[0] == 0
    assert stored(last) == on_disk(root)  # despite shared files
    assert run("remove", "pets", "--yes")[0] == 0
    assert not (tmp_path / "tfds/folder/pets").exists()
    assert len(files(root)) == 17


def test_only_prepared_data_sets_are_removed(root, prepare, run, tmp_path):
    prepare(root, name_as="pets")
    foreign = tmp_path / "tfds/folder/mine/1.0.0"
    foreign.mkdir(parents=True)
    (foreign / "metadata.json").write_text("{}")
    (foreign / "dataset_info.json").write_text("{}")
    for name in ("mine", "folder", "../pets", "pet", "pets:2.0.0", ""):
        code, shown = run("remove", name, "--yes")
        assert code == 1
        assert "no prepared data set" in shown
    assert "did you mean pets?" in run("remove", "pet", "--yes")[1]
    assert foreign.is_dir()


def test_an_interrupted_preparation_is_listed_and_removed(
    root, prepare, run, tmp_path, monkeypatch
):
    prepare(root, name_as="pets")
    trees.write(root, ["photo/cat/new.png"])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(packing, "pack_shard", mock.Mock(side_effect=OSError("killed")))
        prepare(root, name_as="pets")
    folder = tmp_path / "tfds/folder/pets"
    (folder / "incomplete.X1_1.0.1").mkdir()  # TFDS leaves it after a kill
    (folder / "1.0.1.unfinished/part").write_bytes(bytes(3000))
    assert re.search(r"pets 1.0.1 - [\d.]+ kB - - interrupted", run("list")[1])
    with prepared.lock(tmp_path / "tfds", "folder-pets"):
        assert re.search(r"pets 1.0.1 .* being prepared", run("list")[1])
    assert "pets:1.0.1, interrupted" in run("remove", "pets:1.0.1")[1]
    assert run("remove", "pets:1.0.1", "--yes")[0] == 0
    assert [path.name for path in folder.iterdir()] == ["1.0.0"]
    assert "1.0.1" not in run("list")[1]


def test_a_data_set_that_is_being_prepared_is_not_removed(root, prepare, run, tmp_path):
    prepare(root, name_as="pets")
    with prepared.lock(tmp_path / "tfds", "folder-pets"):
        code, shown = run("remove", "pets", "--yes")
    assert code == 1
    assert "by another process" in shown


def test_items_of_a_folder_are_loaded_by_name_and_content(root, prepare, tmp_path):
    content = prepared.content_of(prepare(root, name_as="pets"))
    where = {"data_dir": tmp_path / "tfds", "name_as": "pets", "content": content}
    assert [*loading.load_items("folder", "photo", ["cat", "dog"], **where).names] == PHOTOS
