"""Reading files of weights, and the errors for files that cannot be read."""

import importlib.util
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from zse_jax.pretrained import files

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


needs_torch = pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="PyTorch is optional and not installed"
)
without_torch = pytest.mark.skipif(
    bool(importlib.util.find_spec("torch")), reason="needs an environment without PyTorch"
)


@without_torch
def test_without_pytorch_the_error_gives_a_conversion_command(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"format.*pip install torch.*save_file.*torch.load"):
        files.read(path)
    archive = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ViT-B-32/code/__torch__.py", "")
    with pytest.raises(ValueError, match=r"a TorchScript archive.*save_file.*torch.jit.load"):
        files.read(archive)


@needs_torch
def test_pytorch_files_are_read_with_pytorch(tmp_path):
    import torch

    path = tmp_path / "x.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a dict of tensors"):
        files.read(path)
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    for saved in (tensors, {"state_dict": tensors, "epoch": 3}, {"model": tensors}):
        torch.save(saved, path)
        np.testing.assert_array_equal(files.read(path)["a.weight"], ARRAYS["a.weight"])
    torch.save({"model": ARRAYS["a.weight"].tolist()}, path)
    with pytest.raises(ValueError, match=r"more than a dict of tensors: model \(list\)"):
        files.read(path)


@needs_torch
def test_torch_script_archives_are_read_with_pytorch(tmp_path):
    import torch

    module = torch.nn.Linear(2, 3).half()
    torch.jit.script(module).save(str(tmp_path / "x.pt"))
    read = files.read(tmp_path / "x.pt")
    np.testing.assert_array_equal(read["weight"], module.weight.detach().float().numpy())


@needs_torch
def test_other_pickles_are_errors(tmp_path):
    import torch

    torch.save({"a": print}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="cannot be read as a dict of tensors"):
        files.read(tmp_path / "x.pth")
