"""Files of PyTorch, read without it. `files/make.py` made the files of this folder with PyTorch."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.source import ROOT
from tests.zse_jax.pretrained import fuzz
from zse_jax.pretrained import torch_files
from zse_jax.pretrained.torch_files import RefusedError, read

HERE = Path(__file__).parent / "files"

BASE = np.arange(24, dtype=np.float32)
TENSORS = {
    "base": BASE,
    "view": BASE[4:16].reshape(3, 4).T,
    "shared": BASE,
    "scalar": np.float32(3.5),
    "empty": np.empty((0, 3), np.float32),
    "bfloat16": np.arange(5).astype(ml_dtypes.bfloat16),
    "half": np.float16([0.5, -2]),
    "double": np.float64([0.1]),
    "int8": np.int8([-1, 2]),
    "uint16": np.uint16([65535]),
    "float8": np.array([1, -2], ml_dtypes.float8_e4m3fn),
    "long": np.int64(7),
    "bool": np.array([True, False]),
    "complex": np.complex64([1 - 2j]),
    "parameter": np.ones((2, 2), np.float32),
    "expanded": np.ones(4, np.float32),
}
OTHERS = {
    "map_all": np.float64(0.5),
    "precision": np.float32(0.25),
    "array": np.arange(6.0).reshape(2, 3),
    "big_endian": np.arange(3, dtype=">i4"),
    "dtype": np.dtype("f4"),
    "size": (1, 2),
    "type": "torch.float16",
    "device": "cpu",
    "others": (1, "a", None, True, 2.5, 1j, b"ab", 2**70, [{}]),
}


@pytest.mark.parametrize("name", ["zip.pth", "protocol5.pth", "stacked.pth"])
def test_every_kind_of_tensor_and_of_data_is_read(name):
    found = read(HERE / name)
    model = found.pop("model")
    assert model.keys() == TENSORS.keys()
    for key, array in TENSORS.items():
        assert type(model[key]) is np.ndarray
        assert (model[key].dtype, model[key].shape) == (array.dtype, array.shape), key
        np.testing.assert_array_equal(model[key], array, err_msg=key)
    assert found.keys() == OTHERS.keys()
    for key, value in OTHERS.items():
        assert type(found[key]) is type(value), key
        np.testing.assert_equal(found[key], value, err_msg=key)
    assert found["big_endian"].dtype == OTHERS["big_endian"].dtype


@pytest.mark.parametrize("name", ["script.pt", "trace.pt"])
def test_modules_of_torch_script_are_dicts_of_their_attributes(name):
    found = read(HERE / name)
    assert found["training"] is True
    np.testing.assert_array_equal(found["weight"], [0, 0, 0])
    assert found["tied"] == found["blocks"]["0"]["fc"]
    assert found["blocks"]["1"]["fc"]["bias"].tolist() == [4, 4]
    assert found.tensors == ("weight",) and found["last"].tensors == ()
    assert found["blocks"]["0"].tensors == ("size",)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("whole_model.pth", "torch.nn.modules.container.Sequential"),
        ("sparse.pth", "torch._utils._rebuild_sparse_tensor"),
        ("quantized.pth", "torch._utils._rebuild_qtensor"),
    ],
)
def test_what_is_not_data_is_refused_by_name(name, refused):
    with pytest.raises(
        RefusedError, match=f"{name} contains {refused}, which is not read"
    ) as error:
        read(HERE / name)
    assert "\n" not in str(error.value)


def test_files_without_check_sums_and_with_other_numpy_are_read(tmp_path):
    assert read(HERE / "without_sums.pth").keys() >= {"0.weight", "1.running_mean"}
    permuted = np.arange(24, dtype="<f4").reshape(2, 3, 4).transpose(1, 0, 2)
    value = {
        "score": np.float64(0.25), "array": np.arange(4, dtype="<i2"), "permuted": permuted,
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "part": permuted[:, 1:],
    }  # fmt: skip
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(value, protocol)
        for names in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
            path = tmp_path / "x.pkl"
            path.write_bytes(data.replace(*names) if protocol < 4 else data)
            np.testing.assert_equal(read(path), value)


# --- archives that are made here, without PyTorch


def stored(key="0", count=4, kind="FloatStorage"):
    """The operations that load a storage by its persistent id."""
    text = b"".join(
        b"X" + struct.pack("<I", len(x)) + x for x in (b"storage", key.encode(), b"cpu")
    )
    first, rest = text[:12], text[12:]
    key_end = 5 + len(key)
    return (
        b"(" + first + b"ctorch\n" + kind.encode() + b"\n" + rest[:key_end] + rest[key_end:]
        + number(count) + b"tQ"
    )  # fmt: skip


def number(value):
    """The operation that pushes an integer."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(shape=(4,), strides=(1,), offset=0, **storage):
    """The operations that build a tensor."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored(**storage) + number(offset)
        + _tuple(shape) + _tuple(strides) + b"\x89}tR"
    )  # fmt: skip


def _tuple(numbers):
    return b"(" + b"".join(map(number, numbers)) + b"t"


def archive(path, pickled, compression=zipfile.ZIP_STORED, **storages):
    """Writes an archive as `torch.save` does, from the operations of its pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        for key, content in (storages or {"_0": BASE[:4].tobytes()}).items():
            file.writestr(f"a/data/{key.removeprefix('_')}", content)
    return path


def entry(value):
    """The operations of a dict with one entry."""
    return b"}X\1\0\0\0a" + value + b"s"


def test_an_archive_of_these_operations_is_read(tmp_path):
    path = archive(tmp_path / "x.pth", entry(tensor((2, 2), (1, 2))))
    np.testing.assert_array_equal(read(path)["a"], [[0, 2], [1, 3]])
    compressed = archive(tmp_path / "x.pth", entry(tensor()), zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read(compressed)["a"], BASE[:4])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tensor((5,)), r"shape \(5,\) reaches beyond its storage"),
        (tensor((2, 2), (3, 1)), "beyond its storage"),
        (tensor(offset=1), "beyond its storage"),
        (tensor((1 << 40, 1 << 40), (1, 1)), "beyond its storage"),
        (tensor((-4,)), "a size, offset or stride"),
        (tensor(offset=-1), "a size, offset or stride"),
        (tensor((4,), (-1,)), "a size, offset or stride"),
        (tensor((4,), ()), "does not fit its strides"),
        (tensor(count=5), "16 bytes instead of 20: it is truncated"),
        (tensor(count=1 << 61), "it is truncated"),
        (tensor(key="7"), "the storage 7 is missing"),
        (tensor(kind="QInt8Storage"), r"a quantized tensor \(torch.QInt8Storage\)"),
        (b"cbuiltins\neval\n(X\1\0\0\0" + b"1tR", "contains builtins.eval, which"),
        (b"cos\nsystem\n", "contains os.system"),
        (b"cposix\nsystem\n", "contains posix.system"),
        (b"cargparse\nNamespace\n)\x81", "contains argparse.Namespace"),
        (b"ctorch.hub\nload\n", "contains torch.hub.load"),
        (b"(ios\nsystem\n", "contains os.system"),
        (b"X\2\0\0\0os" + b"X\6\0\0\0system\x93", "contains os.system"),
        (b"ctorch\nload\n", "contains torch.load"),
        (b"cnumpy\nload\n", "contains numpy.load"),
        (b"c__torch__\nNet\n", "contains __torch__.Net"),
        (b"\x82\1", "the pickle operation EXT1"),
        (b"cnumpy\ndtype\nX\1\0\0\0O\x85R", "the numpy type O"),
        (b"ccollections\nOrderedDict\n", "contains collections.OrderedDict"),
        (b"]q\0h\0a", "a container that contains itself"),
        (b"]" * 200 + b"a" * 199, "nested deeper than 100"),
        (b"}]Ks", "a list as a key"),
        (b"}]K\1s", "a list as a key"),
        (b"h\x09", "its pickle is damaged"),
        (b"\x8b\xff\xff\xff\x7f", "its pickle is damaged"),
        (b"\x8e" + b"\xff" * 8, "its pickle is damaged"),
        (b"N}b", "a state of a NoneType"),
        (b"N)R", "a call of a NoneType"),
        (b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0rot\x86R", "_codecs.encode to another encoding"),
    ],
    ids=str,
)  # fmt: skip
def test_a_pickle_that_is_not_data_is_one_error(tmp_path, wrong, message):
    path = archive(tmp_path / "x.pth", entry(wrong))
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert "x.pth" in str(error.value) and "\n" not in str(error.value)


def test_attributes_of_a_dict_do_not_replace_its_methods(tmp_path):
    built = b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsNsb"
    found = read(archive(tmp_path / "x.pth", entry(built)))
    assert found == {"a": OrderedDict()} and list(found["a"].items()) == []


def test_repeated_containers_take_no_more_memory_than_the_file(tmp_path):
    nested = b"]q\0" + b"".join(
        b"0(" + (b"h" + bytes([i])) * 9 + b"lq" + bytes([i + 1]) for i in range(60)
    )
    assert len(read(archive(tmp_path / "x.pth", entry(nested)))["a"]) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "again", "message"),
    [
        (
            b"X\0\0\4\0" + b"x" * (4 << 16),
            b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R",
            "more arguments than the file",
        ),
        (
            b"](" + b"(K\1K\2t" * 20_000 + b"e",
            b"ccollections\nOrderedDict\nh\0\x85R",
            "more arguments than the file",
        ),
        (b"(" + b"N" * 200_000 + b"t", b"ctorch\nSize\nh\0R", "more than 16 arguments"),
        (b"(" + b"K\1" * 100 + b"t", b"ctorch\nSize\nh\0\x85R", "too many axes"),
        (b"]", b"0(" + b"h\0" * 9 + b"lq\0h\0\x93", "damaged"),
    ],
    ids=["bytes", "dicts", "arguments", "axes", "texts"],
)
def test_parts_that_are_used_again_and_again_do_not_fill_the_memory(
    tmp_path, first, again, message
):
    repeated = b"(" + first + b"q\0" + again * 200 + b"l"
    with pytest.raises(ValueError, match=message):
        read(archive(tmp_path / "x.pth", entry(repeated)))


def test_dicts_of_python_2_are_read(tmp_path):
    pairs = b"ccollections\nOrderedDict\n](](K\1K\2e](K\3K\4ee\x85R"
    assert read(archive(tmp_path / "x.pth", entry(pairs))) == {"a": {1: 2, 3: 4}}


def test_an_entry_that_unpacks_to_more_than_it_declares_is_cut(tmp_path):
    path = archive(tmp_path / "x.pth", entry(tensor()), zipfile.ZIP_DEFLATED, _0=bytes(1 << 20))
    content = path.read_bytes()
    declared = struct.pack("<I", 1 << 20)
    assert content.count(declared) == 2  # in the entry and in the directory
    path.write_bytes(content.replace(declared, struct.pack("<I", 16)))
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read(path)


def test_copies_of_tensors_are_not_much_larger_than_the_file(tmp_path):
    wide = tensor((1 << 16, 1 << 12), (0, 0))  # a view of 1 GiB of a storage of 16 bytes
    path = archive(tmp_path / "x.pth", entry(wide))
    assert read(path)["a"].strides == (0, 0)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/byteorder", "big")
    with pytest.raises(ValueError, match="much larger than the file"):
        read(path)


def test_a_pickle_of_too_many_operations_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files.pickles, "OPERATIONS", 1000)
    path = archive(tmp_path / "x.pth", entry(b"]" + b"Na" * 1000))
    with pytest.raises(RefusedError, match="more than 1,000 operations"):
        read(path)


def test_a_single_object_is_not_a_dict_of_tensors(tmp_path):
    with pytest.raises(ValueError, match="contains a list, not a dict of tensors"):
        read(archive(tmp_path / "x.pth", b"]"))


def test_archives_that_are_damaged_or_unpack_to_much_more_are_errors(tmp_path):
    whole = (HERE / "zip.pth").read_bytes()
    path = tmp_path / "x.pth"
    for length in (0, 1, 2, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"truncated or damaged|empty|pickle is damaged"):
            read(path)
    old = (HERE / "stacked.pth").read_bytes()
    for length in (60, len(old) // 2, len(old) - 1):
        path.write_bytes(old[:length])
        with pytest.raises(ValueError, match="cannot be read as a file of PyTorch"):
            read(path)
    content = whole.index(BASE.tobytes())
    path.write_bytes(whole[:content] + b"\xff" + whole[content + 1 :])
    with pytest.raises(ValueError, match="the storage 0 is damaged"):
        read(path)
    archive(path, entry(tensor()), zipfile.ZIP_DEFLATED, _0=bytes(80 << 20))
    with pytest.raises(ValueError, match="would unpack to 83,886"):
        read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("best.pth", whole)
    with pytest.raises(ValueError, match="unpack it if it contains the file of weights"):
        read(path)


def test_big_endian_storages_are_read(tmp_path):
    path = tmp_path / "x.pth"
    archive(path, entry(tensor()), _0=BASE[:4].astype(">f4").tobytes())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/byteorder", "big")
    np.testing.assert_array_equal(read(path)["a"], BASE[:4])


@pytest.mark.slow
def test_two_thousand_damaged_pickles_run_nothing(tmp_path):
    """In a process with a limit of memory and of time."""
    command = [sys.executable, "-m", fuzz.__name__, os.fspath(tmp_path / "x.pth"), "2000"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert sum(outcomes.values()) == 2000 and min(outcomes.values()) > 20, outcomes


def test_files_of_an_installed_pytorch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, 3)
    torch.save({"model": layer.state_dict(), "score": np.float64(1)}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    np.testing.assert_array_equal(found["model"]["weight"], layer.weight.detach().numpy())
    torch.jit.script(layer).save(os.fspath(tmp_path / "x.pt"))
    np.testing.assert_array_equal(read(tmp_path / "x.pt")["bias"], layer.bias.detach().numpy())
