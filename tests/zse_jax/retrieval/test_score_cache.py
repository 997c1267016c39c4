"""An interrupted scoring resumes, and never uses the scores of something else.

Run as a program, this file scores into a folder until it is killed: `python -m ... <folder>`.
"""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.retrieval.fakes import Fake, distances, fake, features
from zse_jax.retrieval import scoring
from zse_jax.retrieval.scoring import similarity, similarity_blocks

QUERIES, GALLERY = 13, 29
SKETCHES, PHOTOS = features(QUERIES, 1), features(GALLERY, 2)
EXPECTED = distances(SKETCHES, PHOTOS)


@functools.cache
def retriever():
    """The same in every process: the serial number is part of its fingerprint."""
    made = fake()
    made.serial = -1
    return made


def score(folder, model=None, sketches=SKETCHES, photos=PHOTOS, tile=(4, 8), **options):
    return similarity(
        model or retriever(), sketches, photos, "distance", tile=tile, folder=folder, **options
    )


@pytest.fixture
def scored(monkeypatch):
    """One entry for each tile that is scored."""
    calls = []
    real = scoring.score
    monkeypatch.setattr(scoring, "score", lambda *a, **b: (calls.append(1), real(*a, **b))[1])
    return calls


def test_finished_scores_are_read_not_computed(tmp_path, scored):
    np.testing.assert_allclose(score(tmp_path), EXPECTED, atol=1e-5)
    assert len(scored) == 16
    np.testing.assert_allclose(score(tmp_path), EXPECTED, atol=1e-5)
    assert len(scored) == 16


@pytest.mark.parametrize("tile", [(4, 8), (3, 5), (64, 64)])
def test_an_interrupted_scoring_resumes_whatever_its_tiles(tmp_path, scored, tile):
    blocks = similarity_blocks(
        retriever(), SKETCHES, PHOTOS, "distance", tile=(4, 8), folder=tmp_path
    )
    next(blocks), next(blocks)
    blocks.close()
    before = len(scored)
    np.testing.assert_allclose(score(tmp_path, tile=tile), EXPECTED, atol=1e-5)
    whole = -(-QUERIES // tile[0]) * -(-GALLERY // tile[1])
    assert before == 8 and (len(scored) - before < whole or whole == 1)


def test_progress_begins_where_the_last_call_stopped(tmp_path, capsys):
    blocks = similarity_blocks(
        retriever(), SKETCHES, PHOTOS, "distance", tile=(4, 8), folder=tmp_path
    )
    next(blocks)
    blocks.close()
    score(tmp_path, progress="distance")
    assert f"{QUERIES * GALLERY}/{QUERIES * GALLERY}" in capsys.readouterr().err
    score(tmp_path, progress="distance")
    assert f"{QUERIES * GALLERY}/{QUERIES * GALLERY}" in capsys.readouterr().err


def test_scores_of_something_else_are_an_error(tmp_path):
    score(tmp_path, key="sketchy")
    shuffled = {name: leaf[::-1] for name, leaf in PHOTOS.items()}
    for changes, name in (
        ({"model": fake(seed=3)}, "retriever"),
        ({"photos": features(GALLERY, 5)}, "photos"),
        ({"photos": shuffled}, "photos"),
        ({"photos": features(GALLERY + 1, 2)}, "shape"),
        ({"sketches": features(QUERIES, 5)}, "sketches"),
        ({"key": "tuberlin"}, "key was 'sketchy' and is 'tuberlin'"),
    ):
        with pytest.raises(ValueError, match=f"scores of something else: .*{name}"):
            score(tmp_path, **{"key": "sketchy"} | changes)


def test_a_folder_without_a_record_is_scored_from_the_beginning(tmp_path):
    (tmp_path / "scores.bin").write_bytes(np.zeros(7, np.float32).tobytes())
    (tmp_path / "record.tmp").write_text("{")
    np.testing.assert_allclose(score(tmp_path), EXPECTED, atol=1e-5)


def test_damaged_files_are_reported_and_scored_again(tmp_path, caplog):
    score(tmp_path)
    with (tmp_path / "scores.bin").open("r+b") as file:
        file.truncate(100)
    np.testing.assert_allclose(score(tmp_path), EXPECTED, atol=1e-5)
    assert "has 100 bytes, but 13 x 29 scores" in caplog.text
    (tmp_path / "record.json").write_text('{"format": 1')
    np.testing.assert_allclose(score(tmp_path), EXPECTED, atol=1e-5)
    assert "record.json is damaged" in caplog.text


def test_nan_is_not_kept_as_a_score(tmp_path):
    photos = {**PHOTOS, "vector": PHOTOS["vector"].copy()}
    photos["vector"][20] = np.nan
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="sketch 0 with photo 20"):
            score(tmp_path, photos=photos)


def deadly(tiles_left):
    """A retriever whose process kills itself while it scores."""
    import jax

    class Deadly(Fake):
        def score(self, sketches, photos):
            def die(scores):
                nonlocal tiles_left
                tiles_left -= 1
                if tiles_left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return scores

            scores = super().score(sketches, photos)
            return jax.pure_callback(die, jax.ShapeDtypeStruct(scores.shape, scores.dtype), scores)

    Deadly.__qualname__ = Fake.__qualname__
    return Deadly


@pytest.mark.slow
def test_a_killed_scoring_resumes_to_the_same_matrix(tmp_path, scored):
    program = subprocess.run(
        [sys.executable, "-m", __name__, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.returncode == -signal.SIGKILL, program.stderr
    kept = np.fromfile(tmp_path / "scores.bin", np.float32).reshape(QUERIES, GALLERY)
    assert 0 < np.isnan(kept).sum() < kept.size
    record = json.loads((tmp_path / "record.json").read_text())
    from zse_jax.retrieval.encoding import fingerprint

    # It was scored by another class; to this test they are one retriever.
    (tmp_path / "record.json").write_text(
        json.dumps(record | {"retriever": fingerprint(retriever())})
    )
    np.testing.assert_allclose(score(tmp_path), EXPECTED, atol=1e-5)
    assert 0 < len(scored) < 16


@pytest.mark.slow
def test_two_processes_agree_on_what_is_finished(tmp_path):
    score(tmp_path / "one")
    blocks = similarity_blocks(
        retriever(), SKETCHES, PHOTOS, "distance", tile=(4, 8), folder=tmp_path / "two"
    )
    next(blocks), next(blocks)
    blocks.close()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    flags = {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(tmp_path / "two"), str(port), str(process)],
            cwd=Path(__file__).parents[3],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for output in outputs:
        assert "of something else: key was" in output or "see its error" in output, output
        assert "RESULT True 2" in output, output
    np.testing.assert_allclose(score(tmp_path / "two"), EXPECTED, atol=1e-5)


def one_of_two(folder, port, process):
    """Resumes in the folder with another process, by tiles of 8 sketches on 2 x 2 devices."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    calls, real = [], scoring.score
    scoring.score = lambda *a, **b: (calls.append(1), real(*a, **b))[1]
    try:
        score(folder, key="other", sharding=sharding)
    except ValueError as error:
        print(error)
    found = score(folder, sharding=sharding)
    print("RESULT", np.allclose(found, EXPECTED, atol=1e-5), len(calls))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        score(sys.argv[1], deadly(9)(rngs=nnx.Rngs(params=0, dropout=1)))
    else:
        one_of_two(*sys.argv[1:])
