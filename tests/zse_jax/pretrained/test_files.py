"""Reading files of weights, and the errors for files that cannot be read."""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from zse_jax.pretrained import files

HERE = Path(__file__).parent / "files"

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3)}


def test_safetensors_give_names_and_arrays(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors")
    read = files.read(tmp_path / "x.safetensors")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    save_file({"a": np.ones(3, dtype)}, tmp_path / "x.safetensors")
    assert files.read(tmp_path / "x.safetensors")["a"].dtype == np.float32


def test_written_arrays_are_read_with_their_values_and_shapes(tmp_path):
    arrays = {**ARRAYS, "transposed": ARRAYS["a.weight"].T}
    files.write(tmp_path / "x.safetensors", arrays)
    read = files.read(tmp_path / "x.safetensors")
    assert {name: array.shape for name, array in read.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_numpys_files_give_names_and_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS, half=np.ones(2, np.float16))
    read = files.read(tmp_path / "x.npz")
    assert read.keys() == ARRAYS.keys() | {"half"} and read["half"].dtype == np.float32
    np.testing.assert_array_equal(read["a.weight"], ARRAYS["a.weight"])


def test_a_missing_damaged_or_unknown_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of weights .*x.pth"):
        files.read(tmp_path / "x.pth")
    for name in ("x.h5", "x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(
        ValueError, match="x.h5 is not a known kind of weight file: expected .safetensors"
    ):
        files.read(tmp_path / "x.h5")
    with pytest.raises(ValueError, match="x.safetensors cannot be read as safetensors"):
        files.read(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.npz cannot be read as numpy's .npz"):
        files.read(tmp_path / "x.npz")


def test_a_file_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([print], object))
    with pytest.raises(ValueError, match="x.npz cannot be read as numpy's .npz"):
        files.read(tmp_path / "x.npz")


# --- files of PyTorch


def test_the_weights_of_a_training_checkpoint_are_taken_and_said():
    arrays, notes, _ = files.read_noted(HERE / "lightning.ckpt")
    assert arrays.keys() == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
        "1.num_batches_tracked",
    }  # fmt: skip
    assert notes == [
        "The weights are the entry 'state_dict' of the file.",
        "The prefix 'model.' was removed from all names.",
    ]


def test_averages_of_the_weights_are_left_out_and_said():
    arrays, [note], _ = files.read_noted(HERE / "averages.pth.tar")
    assert "'model'" in note and "Left out: model_ema" in note
    trained = files.read(HERE / "lightning.ckpt")
    np.testing.assert_array_equal(arrays["0.weight"], trained["0.weight"])


@pytest.mark.parametrize("name", ["script.pt", "trace.pt"])
def test_names_of_torch_script_are_those_of_its_state_dict(name):
    read = files.read(HERE / name)
    values = {
        "weight": [0, 0, 0], "blocks.0.size": 224, "blocks.0.fc.weight": [[1, 1], [1, 1]],
        "blocks.0.fc.bias": [2, 2], "blocks.1.size": 224, "blocks.1.fc.weight": [[3, 3], [3, 3]],
        "blocks.1.fc.bias": [4, 4], "tied.weight": [[1, 1], [1, 1]], "tied.bias": [2, 2],
    }  # fmt: skip
    assert read.keys() == values.keys()  # without the masks, which are not parameters
    for key, value in values.items():
        np.testing.assert_array_equal(read[key], value)
        assert read[key].dtype == np.float32


def pickled(path, contents):
    """A file of PyTorch, or a pickle of arrays, which has the same reader."""
    path.write_bytes(pickle.dumps(contents, 2))
    return path


def test_the_suffix_is_not_what_decides(tmp_path):
    save_file(ARRAYS, tmp_path / "X.BIN")
    assert files.read(tmp_path / "X.BIN").keys() == ARRAYS.keys()
    np.savez(tmp_path / "x.npz", **ARRAYS)
    (tmp_path / "x.npz").rename(tmp_path / "weights.PT")
    assert files.read(tmp_path / "weights.PT").keys() == ARRAYS.keys()
    for name in ("x.safetensors", "x.pth.tar", "x"):
        assert files.read(pickled(tmp_path / name, ARRAYS)).keys() == ARRAYS.keys()


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x1f\x8b", b"{"])
def test_safetensors_are_recognised_whatever_the_length_of_their_header(tmp_path, start):
    length = int.from_bytes(start.ljust(2, b"\0"), "little")
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert files.read(tmp_path / "x")["a"].tolist() == [0]


@pytest.mark.parametrize(
    ("contents", "names", "notes"),
    [
        ({"state_dict": ARRAYS, "epoch": 3}, ARRAYS, 1),
        ({"model": {"state_dict": ARRAYS}, "optimizer": {"state": {0: ARRAYS}}}, ARRAYS, 2),
        ({"ema": {"module": ARRAYS}, "step": 1}, ARRAYS, 2),
        ({"weights_of_mine": ARRAYS, "best": np.float64(1)}, ARRAYS, 1),
        ({f"module._orig_mod.{name}": x for name, x in ARRAYS.items()}, ARRAYS, 2),
        ({f"a._orig_mod.{name}": x for name, x in ARRAYS.items()}, ["a.a.weight", "a.count"], 1),
        ({**ARRAYS, **{f"ema.{name}": x for name, x in ARRAYS.items()}}, ARRAYS, 1),
        ({**ARRAYS, "model.x": ARRAYS["count"]}, [*ARRAYS, "model.x"], 0),
    ],
)  # fmt: skip
def test_nests_and_prefixes_are_removed_and_said(tmp_path, contents, names, notes):
    read = files.read_noted(pickled(tmp_path / "x.pth", contents))
    assert read.arrays.keys() == set(names)
    assert len(read.notes) == notes


def test_what_is_not_a_dict_of_tensors_is_an_error(tmp_path):
    for contents, message in (
        ({"model": ARRAYS["a.weight"].tolist()}, r"more than a dict of tensors: model \(list\)"),
        ({"state_dict": {**ARRAYS, "epoch": 3}}, r"more than a dict of tensors: epoch \(int\)"),
        ({"one": ARRAYS, "other": ARRAYS}, r"more than a dict of tensors: one \(dict\), other"),
        ({}, "contains no arrays"),
        ({"a": np.ones(2, complex)}, r"not real numbers: a \(complex128\)"),
        ({"a": np.array(["b"])}, r"not real numbers: a \(<U1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            files.read(pickled(tmp_path / "x.pth", contents))


def test_repeated_arrays_do_not_take_more_memory_than_the_file(tmp_path):
    shared = pickled(tmp_path / "x.pth", dict.fromkeys(map(str, range(2000)), np.ones(100_000)))
    read = files.read(shared)
    assert len({array.__array_interface__["data"][0] for array in read.values()}) == 1
    one = np.lib.stride_tricks.as_strided(np.ones(1), (1 << 24,), (0,))
    with pytest.raises(ValueError, match=r"x.pth of .* bytes describes 134,217,728 bytes"):
        files._singles(shared, {"a": one}, 100)


# --- folders and networks in several files


def sharded(folder, save, name):
    """A network in two files with an index."""
    one, other = (name.replace("*", f"-0000{i}-of-00002") for i in (1, 2))
    save(folder / one, {"a.weight": ARRAYS["a.weight"]})
    save(folder / other, {"count": ARRAYS["count"]})
    index = {"metadata": {}, "weight_map": {"a.weight": one, "count": other}}
    (folder / f"{name.replace('*', '')}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model*.safetensors", lambda path, arrays: save_file(arrays, path)),
        ("pytorch_model*.bin", pickled),
    ],
)
def test_a_network_in_several_files_is_read_by_its_folder_or_index(tmp_path, name, save):
    sharded(tmp_path, save, name)
    index = tmp_path / f"{name.replace('*', '')}.index.json"
    for path in (tmp_path, index):
        assert files.read(path).keys() == ARRAYS.keys()
    part = tmp_path / name.replace("*", "-00002-of-00002")
    with pytest.raises(ValueError, match="is one of 2 parts of a network. Give the folder"):
        files.read(part)
    part.unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002.*is not in its folder"):
        files.read(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a.weight": "../x.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="is not in its folder"):
        files.read(index)
    index.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="is not the index of a network"):
        files.read(index)


def test_a_folder_is_read_by_its_one_file_and_safetensors_are_preferred(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no file of weights"):
        files.read(tmp_path)
    pickled(tmp_path / "best.PTH", {"a": ARRAYS["count"]})
    assert files.read(tmp_path).keys() == {"a"}
    pickled(tmp_path / "last.pth", {"b": ARRAYS["count"]})
    with pytest.raises(ValueError, match=r"several files of weights: best.PTH, last.pth"):
        files.read(tmp_path)
    pickled(tmp_path / "pytorch_model.bin", {"c": ARRAYS["count"]})
    assert files.read(tmp_path).keys() == {"c"}
    save_file(ARRAYS, tmp_path / "model.safetensors")
    assert files.read(tmp_path).keys() == ARRAYS.keys()


# --- other files


def test_bfloat16_of_numpys_files_is_read(tmp_path):
    values = np.arange(5).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", **{"a/kernel": values})
    read = files.read_noted(tmp_path / "x.npz")
    np.testing.assert_array_equal(read.arrays["a/kernel"], np.arange(5, dtype=np.float32))
    assert "1 arrays of 2 bytes without a type were read as bfloat16" in read.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "Git-LFS.*lfs pull"),
        (b"<!DOCTYPE html><html>Virus scan warning</html>", "a web page"),
        (b"\n<HTML>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b'{"error": "Repository not found"}', "is a text, '{\"error\": \"Rep.*server"),
        (b"Entry not found", "is a text, 'Entry not found'"),
        (gzip.compress(b"x", mtime=0), "compressed. Unpack it first"),
        (b"x.pth".ljust(257, b"\0") + b"ustar" + bytes(300), "a tar archive. Unpack"),
        (b"\x89HDF\r\n\x1a\n", "a file of Keras or HDF5"),
        (b"\x93NUMPY\1\0", "a single array"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_a_file_that_is_not_weights_says_what_it_is(tmp_path, content, message, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        files.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_numpy_file_that_is_larger_than_it_says_is_an_error(tmp_path):
    path = tmp_path / "x.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    )
    for contents, message in (
        ({"a.npy": header.getvalue() + bytes(16)}, "another size than its shape"),
        ({"a.npy": b"\x93NUMPY\x09\0"}, "unknown version"),
        ({"a.npy": bytes(80 << 20)}, "would unpack to"),
        ({"a.npy": b"", "b.txt": b""}, "cannot be read as numpy's .npz"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in contents.items():
                file.writestr(name, content)
        with pytest.raises(ValueError, match=message):
            files.read(path)
    np.savez(path, **ARRAYS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"numpy's .npz \(its zip archive is truncated"):
        files.read(path)


def test_a_truncated_safetensors_file_is_an_error(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    for length in (4, 12, len(content) - 1):
        (tmp_path / "x.safetensors").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cannot be read as safetensors"):
            files.read(tmp_path / "x.safetensors")
