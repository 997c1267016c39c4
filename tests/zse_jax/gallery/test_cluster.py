"""An index that is built on a Ray cluster equals one that is built by this process."""

import logging
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import psutil
import pytest
from moto.server import ThreadedMotoServer

from tests.source import ROOT
from tests.zse_jax.gallery.conftest import photo
from zse_jax.gallery import cluster, index

REASON = "needs Ray and lance-ray (pip install 'ray[data]' lance-ray)"
PHOTOS = 24

PLACES = ["id", "path", "file", "modified"]
"""Columns that differ between a folder and a bucket."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server with the interface of S3, whose address is in the environment."""
    made = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # each request
    made.start()
    host, port = made.get_host_and_port()
    names = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",  # of s3fs
            "AWS_ENDPOINT": f"http://{host}:{port}",  # of Lance
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            **dict.fromkeys(names, "test"),
        }.items():
            patch.setenv(name, value)
        yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture(scope="module")
def bucket(server) -> str:
    """An empty bucket."""
    fsspec.filesystem("s3").mkdir("photos")
    return "s3://photos"


@pytest.fixture(scope="module")
def ray(server) -> Iterator[str]:
    """A local Ray cluster of two cores, whose workers know the server; its address."""
    ray = pytest.importorskip("ray", reason=REASON)
    pytest.importorskip("lance_ray", reason=REASON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's default, 15, waits for other tests
        cluster.start()
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """Photos, and a file that is none."""
    folder = tmp_path_factory.mktemp("ray") / "album"
    for number in range(PHOTOS):
        photo(folder / ("deep" if number % 2 else "") / f"{number:02}.png", number)
    (folder / "page.jpg").write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def local(album, zse, tmp_path_factory):
    """The rows of the index that this process builds, and what changed."""
    place = tmp_path_factory.mktemp("local") / "index"
    changes = index.build(album, place, zse)
    return rows(place), changes


def rows(place, without=()):
    table = index.open(place).tables
    names = [name for name in table._photos.schema.names if name not in without]
    return table.columns(*names).sort_by("digest")


def equal(changes, other):
    assert changes._replace(seconds=0) == other._replace(seconds=0)


def test_the_table_is_the_same(ray, album, zse, local, tmp_path):
    changes = index.build(album, tmp_path / "index", zse, engine="ray")
    equal(changes, local[1])
    assert rows(tmp_path / "index").equals(local[0])
    assert index.open(tmp_path / "index").refused() == local[1].refused
    assert index.open(tmp_path / "index").tables.version <= 3  # 1 commit of rows


def test_photos_that_change_are_replaced(ray, album, zse, tmp_path):
    mine = shutil.copytree(album, tmp_path / "album")
    for place in ("one", "other"):
        index.build(mine, tmp_path / place, zse)
    photo(mine / "00.png", 99)  # changed
    (mine / "02.png").write_bytes(b"broken now")
    shutil.copy(mine / "04.png", mine / "copy.png")  # known content
    photo(mine / "page.jpg", 50)  # refused before
    (mine / "06.png").unlink()
    expected = index.build(mine, tmp_path / "one", zse)
    assert (expected.added, expected.updated, expected.reused, expected.gone) == (2, 1, 1, 1)
    equal(index.build(mine, tmp_path / "other", zse, engine="ray"), expected)
    assert rows(tmp_path / "other").equals(rows(tmp_path / "one"))
    assert index.open(tmp_path / "other").refused() == expected.refused


@pytest.fixture(scope="module")
def uploaded(bucket, album) -> str:
    """The album in the bucket."""
    import fsspec

    fsspec.filesystem("s3").put(f"{album}/", f"{bucket}/album/", recursive=True)
    return f"{bucket}/album"


def test_photos_and_index_in_a_bucket(uploaded, bucket, zse, local):
    import fsspec

    place = f"{bucket}/local"
    changes = index.build(uploaded, place, zse)
    assert (changes.added, len(changes.refused)) == (PHOTOS, 1)
    assert rows(place, PLACES).equals(local[0].drop_columns(PLACES))
    assert index.verify(place)._replace(refused=[]) == (PHOTOS, [], [], [], [], [], [])
    fsspec.filesystem("s3").mv(f"{uploaded}/00.png", f"{bucket}/moved.png")
    assert index.verify(place).gone == [f"{uploaded}/00.png"]
    assert index.sync(uploaded, place, zse)[1] == 1
    assert index.add(place, f"{bucket}/moved.png").reused == 0  # it was removed
    fsspec.filesystem("s3").mv(f"{bucket}/moved.png", f"{uploaded}/00.png")
    with pytest.raises(FileNotFoundError, match="no file, folder or match"):
        index.build(f"{bucket}/nothing", place, zse)
    with pytest.raises(ValueError, match="in a bucket cannot be watched"):
        index.watch(uploaded, place, zse)


def test_a_cluster_reads_and_writes_a_bucket(ray, uploaded, bucket, zse, local):
    changes = index.build(uploaded, f"{bucket}/index", zse, engine="ray")
    assert (changes.added, len(changes.refused)) == (PHOTOS, 1)
    assert rows(f"{bucket}/index", PLACES).equals(local[0].drop_columns(PLACES))
    assert index.build(uploaded, f"{bucket}/index", zse).unchanged == PHOTOS  # without Ray


def test_a_killed_worker_loses_nothing(ray, album, zse, local, tmp_path):
    killed = []

    def kill():
        """Kills the first worker that encodes."""
        end = time.monotonic() + 300
        while not killed and time.monotonic() < end:
            for process in psutil.Process().children(recursive=True):
                try:
                    if "_Encoder" in " ".join(process.cmdline()):
                        time.sleep(0.2)
                        process.kill()
                        killed.append(process.pid)
                        return
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    changes = index.build(album, tmp_path / "index", zse, engine="ray")
    thread.join()
    assert killed
    equal(changes, local[1])
    assert rows(tmp_path / "index").equals(local[0])


def test_a_killed_driver_resumes(ray, album, zse, local, tmp_path):
    """The driver is killed after its first commit; the same command adds the rest."""
    program = f"""
        import os, signal
        from zse_jax.gallery import cluster, index, ingest, tables
        ingest.COMMIT_SECONDS = 0
        cluster.LISTED = 8
        commit = tables.Tables.commit
        def killed(self, fragments):
            commit(self, fragments)
            if fragments:
                os.kill(os.getpid(), signal.SIGKILL)
        tables.Tables.commit = killed
        index.build({str(album)!r}, {str(tmp_path / "index")!r}, {str(zse)!r}, engine="ray",
                    address={ray!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    there = index.verify(tmp_path / "index").photos
    assert 0 < there < PHOTOS
    changes = index.build(album, tmp_path / "index", zse, engine="ray")
    assert (changes.unchanged, changes.added) == (there, PHOTOS - there)
    assert rows(tmp_path / "index").equals(local[0])


def test_errors_of_workers_are_reported(ray, album, zse, tmp_path, monkeypatch):
    table, loaded = index._prepared(str(tmp_path / "index"), zse, None)
    job = index._ray(table, loaded, "ray").keywords["job"]
    work = cluster.Work(cluster.photos.Candidate(album / "00.png", 1, 1), "0" * 24, False)
    for changed, message in (
        ({"checkpoint": str(tmp_path / "nothing")}, "nothing"),
        ({"fingerprint": "0"}, "has other weights on the worker .*: copy the same checkpoint"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            list(cluster.encode(iter([work]), {}, 1, job=job._replace(**changed)))


def test_without_ray_the_error_names_the_packages(album, zse, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance_ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs Ray and lance-ray, but lance_ray is not"):
        index.build(album, tmp_path / "index", zse, engine="ray")
    assert not (tmp_path / "index").exists()


def test_wrong_engines_and_addresses(album, zse, tmp_path):
    with pytest.raises(ValueError, match="no engine 'rai': choose one of local, ray"):
        index.build(album, tmp_path / "index", zse, engine="rai")
    with pytest.raises(ValueError, match="--address is that of a Ray cluster: give --engine=ray"):
        index.build(album, tmp_path / "index", zse, address="auto")
