"""Files of weights: what is read, and what cannot be read says what to do."""

import importlib.util

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


def test_a_missing_or_damaged_or_strange_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of weights .*x.pth"):
        files.read(tmp_path / "x.pth")
    for name in ("x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="x.npz is no file of weights .* expected .safetensors"):
        files.read(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="x.safetensors cannot be read as safetensors"):
        files.read(tmp_path / "x.safetensors")


def test_pytorchs_format_is_read_with_pytorch_or_says_how_to_convert(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"nothing")
    installed = importlib.util.find_spec("torch")
    expected = (
        "cannot be read as a dict of tensors" if installed else "pip install torch.*save_file"
    )
    with pytest.raises(ValueError, match=expected):
        files.read(path)
    if not installed:
        return
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, path)
    np.testing.assert_array_equal(files.read(path)["a.weight"], ARRAYS["a.weight"])
    torch.save({"model": ARRAYS["a.weight"].tolist()}, path)
    with pytest.raises(ValueError, match=r"more than a dict of tensors: model \(list\)"):
        files.read(path)
