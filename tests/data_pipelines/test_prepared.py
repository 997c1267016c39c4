"""Preparation: parallel, resumable, exclusive, and readable by TFDS."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipelines import prepared
from data_pipelines.builders import packing, sketchy
from tests.data_pipelines.builders.test_sketchy import SKETCHES, damage
from tests.data_pipelines.conftest import flat_image

HEAD = """
import os, signal, sys, time
from pathlib import Path
from data_pipelines import prepared
from data_pipelines.builders import packing

packing.IMAGES_PER_SHARD = 50
"""

DIE_AT_RECORD_160 = """
count, record = 0, packing.serialize
def record_or_die(*arguments):
    global count
    count += 1
    if count == 160:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(*arguments)
packing.serialize = record_or_die
"""

IN_TWO_PROCESSES = """
packing.PARALLEL_FROM = 0
packing.available_cores = lambda: 2
"""

NEVER_FINISH = """
packing.serialize = lambda *_: time.sleep(600)
"""

TAIL = """
if __name__ == "__main__":
    prepared.prepare("sketchy", data_dir=sys.argv[1], manual_dir=sys.argv[2])
"""


def program(folder: Path, data_dir: Path, source: Path, *changes: str) -> list:
    """The command that prepares `source` in shards of 50 images, with some code changed."""
    path = folder / "program.py"
    path.write_text("".join((HEAD, *changes, TAIL)))
    return [sys.executable, path, data_dir, source]


def start(command: list, **options) -> subprocess.Popen:
    """Starts the command with `data_pipelines` on the path."""
    environment = {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


def run(command: list) -> tuple[int, str]:
    """Exit code and stderr."""
    process = start(command)
    _, errors = process.communicate()
    return process.returncode, errors


def contents(folder: Path) -> dict:
    """Modality -> name -> the stored bytes."""
    opened = {modality: prepared.open_split(folder, modality) for modality in ("sketch", "photo")}
    return {
        modality: {n: records[r] for r, n in zip(index.rows, index.names, strict=True)}
        for modality, (records, index) in opened.items()
    }


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 50 images."""
    monkeypatch.setattr(packing, "IMAGES_PER_SHARD", 50)


@pytest.fixture
def killed(new_sketchy, tmp_path):
    """Source and data_dir of a preparation that was killed within its fourth shard."""
    source, data_dir = new_sketchy(), tmp_path / "tfds"
    assert run(program(tmp_path, data_dir, source, DIE_AT_RECORD_160))[0] == -signal.SIGKILL
    return source, data_dir


@pytest.fixture
def packed(monkeypatch):
    """Names of the shards that are packed from now on."""
    paths, pack_shard = [], packing.pack_shard

    def watched(shard):
        paths.append(shard.path.name)
        return pack_shard(shard)

    monkeypatch.setattr(packing, "pack_shard", watched)
    return paths


@pytest.mark.slow
def test_a_killed_preparation_is_not_complete(killed):
    _, data_dir = killed
    assert not (data_dir / "sketchy/1.0.0").exists()
    with pytest.raises(FileNotFoundError, match="not prepared"):
        prepared.prepare("sketchy", data_dir=data_dir)


@pytest.mark.slow
def test_the_next_start_resumes_from_the_finished_shards(
    killed, small_shards, packed, sketchy_source, capsys
):
    source, data_dir = killed
    folder = prepared.prepare("sketchy", data_dir=data_dir, manual_dir=source)
    assert "150 of 750 images are packed" in capsys.readouterr().err
    assert len(packed) == 15 - 3
    found = contents(folder)
    assert [len(images) for images in found.values()] == [500, 250]
    for images in found.values():
        assert all((source / name).read_bytes() == stored for name, stored in images.items())
    assert {path.name for path in folder.parent.iterdir()} == {"1.0.0"}


@pytest.mark.slow
def test_changed_files_are_packed_again(killed, small_shards, packed):
    source, data_dir = killed
    name = f"{SKETCHES}/airplane/n0000_0-1.png"
    (source / name).write_bytes(flat_image("zebra", 1))  # The same size.
    folder = prepared.prepare("sketchy", data_dir=data_dir, manual_dir=source)
    assert len(packed) == 15 - 2
    assert contents(folder)["sketch"][name] == (source / name).read_bytes()


def test_files_that_change_during_packing_are_an_error(new_sketchy, tmp_path, small_shards):
    source = sketchy.scan(new_sketchy())

    def run_then_touch(shards):
        yield from map(packing.pack_shard, shards)
        os.utime(source.images["photo"][7].path)

    with pytest.raises(OSError, match=r"changed while they were packed.*photo.*n0000_0\.jpg"):
        packing.pack(source, tmp_path / "shards", run_then_touch)


@pytest.mark.slow
def test_packed_shards_are_reused_after_an_error(new_sketchy, tmp_path, packed):
    source = new_sketchy()
    names = damage(source)
    for _ in range(2):
        with pytest.raises(ValueError, match="3 of 750 images"):
            prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=source)
    folder = prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=source, skip_unreadable=True)
    assert len(packed) == 2
    assert set(json.loads((folder / "metadata.json").read_text())["unreadable"]) == set(names)


@pytest.mark.slow
def test_a_shard_without_readable_images_is_omitted(new_sketchy, tmp_path, small_shards):
    source = new_sketchy()
    for file in sketchy.scan(source).images["sketch"][50:100]:
        file.path.write_bytes(b"")
    folder = prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=source, skip_unreadable=True)
    assert len(contents(folder)["sketch"]) == 450
    assert len(list(folder.glob("*sketch.array_record*"))) == 9


@pytest.mark.slow
def test_a_modality_without_readable_images_is_an_error(new_sketchy, tmp_path):
    source = new_sketchy()
    for file in sketchy.scan(source).images["photo"]:
        file.path.write_bytes(b"")
    with pytest.raises(ValueError, match="No photo below"):
        prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=source, skip_unreadable=True)


def test_a_full_disk_is_not_reported_as_an_unreadable_image(sketchy_source, tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            raise RuntimeError("No space left on device")

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"Cannot write .*No space left"):
        prepared.prepare("sketchy", data_dir=tmp_path, manual_dir=sketchy_source)


def test_opening_reads_the_index_and_no_record(data_dir, monkeypatch):
    prepared.open_split(data_dir / "sketchy/1.0.0", "photo")  # builds the index
    monkeypatch.setattr(prepared.Records, "texts", None)
    _, index = prepared.open_split(data_dir / "sketchy/1.0.0", "photo")
    assert len(index.rows) == 375
    assert list(index.names) == sorted(index.names)


def test_the_index_matches_the_records(data_dir):
    records, index = prepared.open_split(data_dir / "sketchy/1.0.0", "sketch")
    stored = [records.texts(row, "name", "class_name", "instance") for row in index.rows]
    assert stored == list(zip(index.names, index.class_names, index.instances, strict=True))


def test_tfds_reads_the_packed_data_set(data_dir):
    builder = tfds.builder_from_directory(data_dir / "sketchy/1.0.0")
    source = builder.as_data_source("photo")
    assert len(source) == builder.info.splits["photo"].num_examples == 375
    assert source[0]["image"].shape == (8, 8, 3)
    assert source[0]["class_name"] == b"airplane"


def test_another_file_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="packed as array_record, not as 'tfrecord'"):
        tfds.builder_cls("sketchy")(data_dir=tmp_path, file_format="tfrecord")


@pytest.mark.slow
def test_several_processes_pack_the_same_as_one(sketchy_source, data_dir, tmp_path):
    command = program(tmp_path, tmp_path / "tfds", sketchy_source, IN_TWO_PROCESSES)
    assert run(command)[0] == 0
    one, two = (contents(d / "sketchy/1.0.0") for d in (data_dir, tmp_path / "tfds"))
    assert one == two


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(sketchy_source, tmp_path):
    process = start(
        program(tmp_path, tmp_path / "tfds", sketchy_source, IN_TWO_PROCESSES, NEVER_FINISH),
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(list((tmp_path / "tfds").rglob("*.part"))) == 2:  # Both workers are writing.
            break
        time.sleep(0.1)
    assert process.poll() is None
    process.kill()
    process.communicate()
    with pytest.raises(ProcessLookupError):  # All processes of the group have ended.
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_concurrent_preparations_wait_for_each_other(sketchy_source, tmp_path):
    command = program(tmp_path, tmp_path / "tfds", sketchy_source)
    processes = [start(command, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(bool, said)) == [False, True]


# Apache Beam


def test_missing_beam_is_an_error(sketchy_source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ModuleNotFoundError, match=r"'DirectRunner'.*pip install apache-beam"):
        prepared.prepare(
            "sketchy", data_dir=tmp_path, manual_dir=sketchy_source, beam_runner="DirectRunner"
        )


def test_options_of_beam_need_a_runner(sketchy_source, tmp_path):
    with pytest.raises(ValueError, match="need a beam_runner"):
        prepared.prepare(
            "sketchy", data_dir=tmp_path, manual_dir=sketchy_source, beam_options=["--x=1"]
        )


def test_beam_for_a_generated_data_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'doodles' .*does not use beam_runner"):
        prepared.prepare("doodles", data_dir=tmp_path, beam_runner="DirectRunner")


@pytest.mark.slow
def test_beam_packs_the_same(sketchy_source, data_dir, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is optional and not installed")
    folder = prepared.prepare(
        "sketchy",
        data_dir=tmp_path,
        manual_dir=sketchy_source,
        beam_runner="DirectRunner",
        beam_options=["--direct_num_workers=2"],
    )
    assert contents(folder) == contents(data_dir / "sketchy/1.0.0")
