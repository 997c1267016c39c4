"""Restored states equal saved ones; what cannot be read or written is an error."""

import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import zse_jax
from tests.zse_jax import tiny
from zse_jax.checkpoints import reading, writing
from zse_jax.checkpoints.writing import Checkpoints
from zse_jax.runtime import distributed, sharding
from zse_jax.training import loop
from zse_jax.training.step import merge_model, set_up

SELECT = "relation/exact/mAP@all"


class Position:
    """The part of an iterator of batches that a checkpoint uses."""

    def __init__(self, next_index=0):
        self.next_index = next_index

    def get_state(self):
        return {"next_index": self.next_index}

    def set_state(self, state):
        self.next_index = state["next_index"]


pytestmark = pytest.mark.usefixtures("tiny_system")


@pytest.fixture(scope="module")
def setup():
    return set_up(tiny.config(), sharding.make_mesh())


@pytest.fixture(scope="module")
def saved(tmp_path_factory, setup):
    """A workdir with steps 3 (best), 9 and 12, and the state in all of them."""
    workdir, state = tmp_path_factory.mktemp("run"), setup.init()
    with Checkpoints(workdir, select=SELECT) as checkpoints:
        for step, value in ((3, 0.9), (6, 0.3), (9, None), (12, 0.5)):
            metrics = None if value is None else {SELECT: value}
            checkpoints.save(step, state, Position(step), tiny.config(), metrics)
        checkpoints.wait()
    return workdir, state


def same(one, other):
    def numbers(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(numbers(x), numbers(y)) for x, y in pairs)


def test_the_best_and_the_last_are_kept(saved):
    workdir, _ = saved
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert steps == {3, 9, 12}
    with Checkpoints(workdir, select=SELECT) as checkpoints:
        assert checkpoints.latest == 12
        assert checkpoints.best == (3, 0.9)
        assert checkpoints.metrics(9) == {}


def test_every_process_decides_by_what_the_first_one_reads(saved, monkeypatch):
    known = {"3": ["here", {SELECT: 0.2}], "9": ["here", {SELECT: 0.8}], "12": None}
    monkeypatch.setattr(distributed, "of_first", lambda _: known)
    with Checkpoints(saved[0], select=SELECT, setting="here") as checkpoints:
        assert checkpoints.best == (9, 0.8)
    monkeypatch.setattr(writing, "LAG_SECONDS", 0.0)
    known["15"] = None
    with pytest.raises(OSError, match="steps .*15.* for process 0.*Run the same command again"):
        Checkpoints(saved[0], select=SELECT)


def test_an_evaluation_that_cannot_be_read_is_not_passed_over(saved, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(saved[0], workdir)
    (workdir / "checkpoints/3/metrics/metrics").write_text('{"rel')
    with pytest.raises(reading.DamagedError, match="checkpoints/3 .*best step .* is not known"):
        zse_jax.load(workdir)
    assert reading.load_step(workdir, allow_fallback=True)[0] == 12
    assert reading.load_step(workdir, 9)[0] == 9
    with Checkpoints(workdir, select=SELECT) as checkpoints:
        assert checkpoints.best == (12, 0.5)
    assert "Its evaluation is ignored" in caplog.text


def test_a_saved_step_can_be_evaluated_later(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved[0], workdir)
    with Checkpoints(workdir, select=SELECT) as checkpoints:
        checkpoints.evaluated(9, tiny.config(), {SELECT: 0.95})
    assert reading.step_of(workdir) == 9


def test_everything_is_restored(saved, setup):
    workdir, state = saved
    position = Position()
    with Checkpoints(workdir, select=SELECT) as checkpoints:
        restored = checkpoints.restore(9, setup.abstract, position)
        assert checkpoints.read_config(9).to_dict() == tiny.config().to_dict()
    assert same(state, restored)
    assert position.next_index == 9


def test_a_state_is_restored_onto_another_mesh(saved, monkeypatch):
    workdir, state = saved
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    abstract = set_up(tiny.config(), sharding.make_mesh(2, 4)).abstract
    with Checkpoints(workdir, select=SELECT) as checkpoints:
        restored = checkpoints.restore(12, abstract)
    assert same(state, restored)
    wanted = [leaf.sharding for leaf in jax.tree.leaves(abstract)]
    assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == wanted


def test_load_gives_the_best_model_ready_to_rank(saved, setup):
    workdir, state = saved
    images = np.random.default_rng(0).integers(0, 255, (2, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    loaded = zse_jax.load(workdir)
    trained = nnx.view(merge_model(setup.definition, state), deterministic=True)
    expected = trained.encode(images, "sketch")
    np.testing.assert_allclose(loaded.encode(images, "sketch"), expected, rtol=1e-6)
    assert reading.step_of(workdir) == 3
    assert reading.step_of(workdir / "checkpoints" / "12") == 12
    assert reading.read_config(workdir).model.width == 16


def test_load_reads_only_the_model(saved, tmp_path):
    step = shutil.copytree(saved[0] / "checkpoints" / "12", tmp_path / "12")
    for item in ("optimizer", "data"):
        shutil.rmtree(step / item)
    assert isinstance(zse_jax.load(step), tiny.Tiny)


def test_a_folder_without_a_checkpoint_is_an_error_that_lists_its_contents(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere contains no checkpoint: there is no such"):
        zse_jax.load(tmp_path / "nowhere")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match="expected checkpoints/<step>/, found pictures"):
        zse_jax.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint.*found an empty folder"):
        zse_jax.load(tmp_path)
    (tmp_path / "weights.npz").touch()
    with pytest.raises(ValueError, match=r"weights.npz is empty. Download it again"):
        zse_jax.load(tmp_path / "weights.npz")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="it is a file; give the workdir"):
        zse_jax.load(tmp_path / "notes.txt")


def test_another_model_is_recognised_by_its_arrays(saved):
    wide = set_up(tiny.config(**{"model.width": 32}), sharding.make_mesh()).abstract
    with (
        Checkpoints(saved[0], select=SELECT) as checkpoints,
        pytest.raises(ValueError, match=r"12/model is of another model: first/bias is \(16,\) in"),
    ):
        checkpoints.restore(12, wide)


def test_missing_and_additional_arrays_are_listed(saved, setup):
    model = dict(nnx.to_flat_state(setup.abstract["model"]))
    model[("third", "bias")] = model.pop(("second", "bias"))
    abstract = {**setup.abstract, "model": nnx.from_flat_state(model)}
    with Checkpoints(saved[0], select=SELECT) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(12, abstract)
    assert "third/bias is not in the checkpoint" in str(error.value)
    assert "second/bias is only in the checkpoint" in str(error.value)


def test_a_damaged_checkpoint_names_its_folder(saved, tmp_path, setup):
    shutil.copytree(saved[0] / "checkpoints", tmp_path / "checkpoints")
    for file in (tmp_path / "checkpoints" / "12" / "model").rglob("*"):
        if file.is_file() and "d" in file.parts:
            file.write_bytes(b"")
    with (
        Checkpoints(tmp_path, select=SELECT) as checkpoints,
        pytest.raises(ValueError, match=r"checkpoints/12 cannot be read; it is damaged"),
    ):
        checkpoints.restore(12, setup.abstract)


def test_the_files_are_named_by_module_paths(saved):
    metadata = json.loads((saved[0] / "checkpoints/12/model/_METADATA").read_text())
    assert set(metadata["tree_metadata"]) == {
        f"('{layer}/{name}',)" for layer in ("first", "second") for name in ("kernel", "bias")
    }


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path, setup, monkeypatch):
    state = setup.init()
    with Checkpoints(tmp_path, select=SELECT) as checkpoints:
        checkpoints.save(1, state, Position(1), tiny.config(), None)
        checkpoints.wait()

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(OSError, match=r"No space left.*last good checkpoint is step 1"):
            checkpoints.save(2, state, Position(2), tiny.config(), None)
        assert same(checkpoints.restore(1, setup.abstract), state)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX does")
def test_a_save_that_fails_in_the_background_ends_the_run(tmp_path):
    """RLIMIT_FSIZE from step 6 on simulates a full disk without root's rights."""
    program = [sys.executable, "-m", "tests.zse_jax.tiny", str(tmp_path), "model.width=64"]
    done = subprocess.run(
        [*program, "--full-at=6"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    (message,) = done.stderr.strip().splitlines()
    assert message.startswith(f"error: A checkpoint could not be saved in {tmp_path}")
    assert ": File too large. The last good checkpoint is step 3, and it is intact" in message
    loop.train(tiny.config(**{"model.width": 64}), tmp_path)
