"""Features are kept where they fit; on disk they survive the process, whatever ends it.

Run as a program, this file encodes into a folder, slowly: `python -m ... FOLDER`.
"""

import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.streaming import Batches, to_device
from tests.zse_jax.retrieval.fakes import SIZE, Fake, batches, fake, images
from zse_jax.retrieval import feature_cache, storage
from zse_jax.retrieval.encoding import encode, fingerprint
from zse_jax.retrieval.storage import Storage

PIXELS = images(29)
LABELS = np.arange(29) % 5


class Reads:
    """Random access to batches that records which are read, and is interrupted at one of them."""

    def __init__(self, stop=None, sleep=0.0, size=8):
        self.batches = batches(PIXELS, LABELS, size)
        self.stop, self.sleep, self.read = stop, sleep, []

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        self.read.append(number)
        time.sleep(self.sleep)
        if number == self.stop:
            raise InterruptedError(f"at batch {number}")
        return self.batches[number]


def loaded(reads):
    """As `data_pipelines.loading` returns them."""
    return Batches(grain.MapDataset.source(reads), workers=0)


def into(folder, **options):
    return Storage(**({"where": "disk", "folder": folder, "key": "drawn/4"} | options))


def encoded(retriever=None, data=None, modality="photo", **options):
    data = batches(PIXELS, LABELS) if data is None else data
    return encode(retriever or fake(), data, modality, **options)


def same_fake():
    """A retriever equal to any other of these."""
    retriever = fake()
    retriever.serial = -1
    return retriever


def interrupted(folder, stop=2):
    with pytest.raises(InterruptedError):
        encoded(same_fake(), loaded(Reads(stop)), storage=into(folder))


def recorded(folder):
    return json.loads((folder / "photo" / "record.json").read_text())


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("where", ["device", "host", "disk"])
def test_features_are_the_same_wherever_they_are_kept(where):
    features, labels = encoded(storage=Storage(where=where))
    assert_equal((features, labels), encoded())
    kind = {"device": jax.Array, "host": np.ndarray, "disk": np.memmap}[where]
    assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(features))
    assert where == "disk" or not isinstance(features["vector"], np.memmap)
    assert features["tokens"].dtype == jnp.bfloat16


def test_features_on_a_mesh_are_replicated(sharding):
    features, _ = encoded(sharding=sharding, storage=Storage(where="device"))
    assert features["vector"].is_fully_replicated
    assert features["vector"].devices() == sharding.device_set
    assert_equal(features, encoded(sharding=sharding)[0])


@pytest.mark.parametrize("where", ["host", "disk"])
def test_bfloat16_halves_stored_features(where):
    features, _ = encoded(storage=Storage(where=where, dtype="bfloat16"))
    expected = encoded()[0]["vector"].astype(jnp.bfloat16)
    assert features["vector"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(features["vector"], expected)


GIB = 2**30


@pytest.mark.parametrize(
    ("size", "device", "host", "folder", "expected"),
    [
        (1 * GIB, 5 * GIB, 100 * GIB, None, "device"),
        (2 * GIB, 5 * GIB, 100 * GIB, None, "host"),
        (2 * GIB, 5 * GIB, 3 * GIB, None, "disk"),
        (1, 0, 100, None, "host"),  # A CPU has no device memory.
        (1, 0, 100, "folder", "disk"),
        (1 * GIB, 5 * GIB, 100 * GIB, "folder", "device"),
        (None, 5 * GIB, 0, None, "host"),
    ],
)
def test_the_place_is_chosen_by_size(monkeypatch, size, device, host, folder, expected):
    monkeypatch.setattr(storage, "free_device_memory", lambda _: device)
    monkeypatch.setattr(storage, "free_host_memory", lambda: host)
    assert Storage(folder=folder, key="data").place(size, jax.devices()) == expected


def test_features_too_large_for_the_host_go_to_disk(monkeypatch):
    monkeypatch.setattr(storage, "free_host_memory", lambda: 5000)
    assert isinstance(encoded()[0]["vector"], np.memmap)
    assert not isinstance(encoded(data=batches(PIXELS[:8], LABELS))[0]["vector"], np.memmap)


def test_free_memory_is_known():
    assert 2**20 < storage.free_host_memory() < 2**50
    assert storage.free_device_memory(jax.devices("cpu")) == 0


def test_a_finished_folder_is_read_instead_of_encoding(tmp_path, capsys):
    retriever, reads = same_fake(), Reads()
    expected = encoded(retriever, storage=into(tmp_path))
    found = encoded(retriever, loaded(reads), storage=into(tmp_path), progress="photos")
    assert_equal(found, expected)
    assert reads.read == []
    assert f"4 read from {tmp_path}" in capsys.readouterr().err


def test_a_finished_folder_may_be_read_in_other_batches_and_other_places(tmp_path):
    expected = encoded(same_fake(), storage=into(tmp_path))
    options = into(tmp_path, where="host")
    features, labels = encoded(same_fake(), batches(PIXELS, LABELS, size=5), storage=options)
    assert_equal((features, labels), expected)
    assert type(features["vector"]) is np.ndarray


@pytest.mark.parametrize("wrap", [loaded, lambda reads: to_device(loaded(reads), on_cpu())])
def test_an_interrupted_encoding_resumes_without_reading_what_is_finished(tmp_path, wrap):
    interrupted(tmp_path)
    finished, reads = recorded(tmp_path)["finished"], Reads()
    found = encoded(same_fake(), wrap(reads), storage=into(tmp_path))
    assert 1 <= finished < 4
    assert sorted(reads.read) == list(range(finished, 4))
    assert_equal(found, encoded())


def on_cpu():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_batches_that_cannot_be_positioned_are_skipped(tmp_path):
    interrupted(tmp_path)
    retriever = same_fake()
    assert_equal(encoded(retriever, storage=into(tmp_path)), encoded())


def test_nothing_is_left_to_encode_after_the_last_batch(tmp_path):
    retriever = same_fake()
    expected = encoded(retriever, storage=into(tmp_path))
    record = recorded(tmp_path) | {"complete": False}
    (tmp_path / "photo/record.json").write_text(json.dumps(record))
    assert_equal(encoded(retriever, storage=into(tmp_path)), expected)


def test_sketches_and_photos_share_a_folder(tmp_path):
    photos, _ = encoded(same_fake(), storage=into(tmp_path))
    sketches, _ = encoded(same_fake(), modality="sketch", storage=into(tmp_path))
    assert_equal(photos, encoded()[0])
    assert_equal(sketches, encoded(modality="sketch")[0])


def other_parameters():
    retriever = same_fake()
    retriever.projection.bias[...] = jnp.ones(16)
    return retriever


@pytest.mark.parametrize("stop", [None, 2])
@pytest.mark.parametrize(
    ("retriever", "options", "named"),
    [
        (other_parameters, {}, "another checkpoint"),
        (same_fake, {"key": "sketchy/224"}, "another data, 'drawn/4' and not 'sketchy/224'"),
        (same_fake, {"dtype": "bfloat16"}, "another precision, None and not 'bfloat16'"),
    ],
)
def test_features_of_something_else_are_an_error(tmp_path, stop, retriever, options, named):
    if stop:
        interrupted(tmp_path, stop)
    else:
        encoded(same_fake(), storage=into(tmp_path))
    with pytest.raises(ValueError, match=f"{named}.* Delete the folder"):
        encoded(retriever(), storage=into(tmp_path, **options))


@pytest.mark.parametrize("size", [5, 29])
def test_an_interrupted_encoding_resumes_in_the_same_batches_only(tmp_path, size):
    interrupted(tmp_path)
    with pytest.raises(ValueError, match="in 4 batches, and now there are"):
        encoded(same_fake(), batches(PIXELS, LABELS, size), storage=into(tmp_path))
    with pytest.raises(ValueError, match="in batches of 8 images, and now come in batches of 10"):
        encoded(same_fake(), batches(images(35), np.zeros(35, int), 10), storage=into(tmp_path))


@pytest.mark.parametrize("file", ["features0.bin", "features1.bin", "labels.bin"])
@pytest.mark.parametrize("finish", [True, False])
def test_a_truncated_file_is_reported_and_written_again(tmp_path, file, finish, caplog):
    if finish:
        encoded(same_fake(), storage=into(tmp_path))
    else:
        interrupted(tmp_path)
    with (tmp_path / "photo" / file).open("r+b") as opened:
        opened.truncate(20)
    expected = encoded(same_fake())
    assert_equal(encoded(same_fake(), storage=into(tmp_path)), expected)
    assert f"{file} has 20 bytes" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"complete": true}', "\x00"])
def test_a_damaged_record_is_reported_and_the_features_are_encoded_again(tmp_path, text, caplog):
    expected = encoded(same_fake(), storage=into(tmp_path))
    (tmp_path / "photo/record.json").write_text(text)
    assert_equal(encoded(same_fake(), storage=into(tmp_path)), expected)
    assert text == "{}" or "record.json" in caplog.text
    assert recorded(tmp_path)["complete"]


def test_a_record_of_another_format_is_an_error(tmp_path):
    encoded(same_fake(), storage=into(tmp_path))
    (tmp_path / "photo/record.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"record.json has format 2.* Delete the folder"):
        encoded(same_fake(), storage=into(tmp_path))


def test_files_without_a_record_are_written_again(tmp_path):
    expected = encoded(same_fake(), storage=into(tmp_path))
    (tmp_path / "photo/record.json").unlink()
    (tmp_path / "photo/labels.bin").write_bytes(b"x" * 1000)
    assert_equal(encoded(same_fake(), storage=into(tmp_path)), expected)


def test_features_that_are_not_finite_are_not_recorded(tmp_path):
    class Broken(Fake):
        def encode(self, images, modality):
            features = super().encode(images, modality)
            vector = jnp.where(images[:, :1, 0, 0] == 7, jnp.nan, features["vector"])
            return features | {"vector": vector}

    pixels = np.full((29, SIZE, SIZE, 3), 100, np.uint8)
    pixels[10] = 7
    retriever = Broken(rngs=nnx.Rngs(0))
    for _ in range(2):  # The second call resumes from that batch.
        with pytest.raises(FloatingPointError, match="photo 10, "):
            encoded(retriever, batches(pixels, LABELS), storage=into(tmp_path))
        assert (recorded(tmp_path)["items"], recorded(tmp_path)["complete"]) == (8, False)


def test_a_disk_that_is_too_small_is_an_error(tmp_path, monkeypatch):
    free = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"features take .* Choose a folder on a larger disk"):
        encoded(storage=into(tmp_path))


def test_contradictory_storage_is_an_error(unchecked):
    with pytest.raises(ValueError, match="where='memory': choose auto, device, host, disk"):
        Storage(where="memory")
    with pytest.raises(ValueError, match="dtype='float8'"):
        Storage(dtype="float8")
    with pytest.raises(ValueError, match="need a key that identifies their images"):
        Storage(folder="features")


def test_the_fingerprint_depends_on_values_and_structure(sharding):
    class Other(Fake):
        pass

    def changed(**attributes):
        retriever = same_fake()
        for name, value in attributes.items():
            setattr(retriever, name, value)
        return retriever

    one, other = same_fake(), Other(rngs=nnx.Rngs(params=0, dropout=1))
    other.serial = -1
    assert fingerprint(one) == fingerprint(same_fake()) == fingerprint(nnx.clone(one))
    prints = {fingerprint(r) for r in (one, other, other_parameters(), changed(image_size=5))}
    assert len(prints) == 4


def test_an_attribute_with_its_class_default_is_not_in_the_fingerprint():
    class Later(Fake):
        added: float = 0.5

    Later.__module__, Later.__qualname__ = Fake.__module__, Fake.__qualname__
    old, new = same_fake(), same_fake()
    new.__class__ = Later
    new.added = 0.5
    assert fingerprint(new) == fingerprint(old)
    new.added = 0.25
    assert fingerprint(new) != fingerprint(old)


def test_the_fingerprint_does_not_depend_on_random_state_mode_or_placement(sharding):
    expected = fingerprint(same_fake())
    used = same_fake()
    used.encode(jnp.asarray(PIXELS), "photo")  # Draws from dropout's generator.
    assert fingerprint(used) == expected
    used.eval()
    assert fingerprint(used) == expected
    spread = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec("fsdp"))
    kernel = used.projection.kernel
    kernel.set_value(jax.device_put(kernel.get_value(), spread))
    assert fingerprint(used) == expected


def slowly(folder):
    feature_cache._RECORD_SECONDS = 0.0
    encoded(same_fake(), loaded(Reads(sleep=0.7, size=1)), storage=into(folder))


@pytest.mark.slow
def test_a_killed_encoding_resumes(tmp_path):
    record = tmp_path / "photo" / "record.json"
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(tmp_path)], cwd=Path(__file__).parents[3]
    )
    try:
        while not record.exists() or recorded(tmp_path)["finished"] < 3:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = recorded(tmp_path)["finished"]
    reads = Reads(size=1)
    found = encoded(same_fake(), loaded(reads), storage=into(tmp_path))
    assert sorted(reads.read) == list(range(finished, 29))
    assert_equal(found, encoded(same_fake(), loaded(Reads(size=1))))


if __name__ == "__main__":
    slowly(Path(sys.argv[1]))
