"""Reads files of weights as numpy arrays: safetensors, .npz, and PyTorch's if it is installed.

Code in a file is never executed: of pickles, only PyTorch's restricted ones (`weights_only`) are
read.
"""

import os
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import paths

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")

_CONVERT = (
    'To convert it where PyTorch is installed: python -c "import torch, safetensors.torch as s; '
    "s.save_file({{k: v.contiguous() for k, v in {0}.items()}}, '{1}')\""
)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The publisher's parameter names and arrays in a file; half precision becomes float32.

    A PyTorch file contains a dict of tensors, alone or as `state_dict` or `model` of a training
    checkpoint, or is a TorchScript archive, such as OpenAI's CLIP.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a suffix that is not in `SUFFIXES`, PyTorch's format without PyTorch, a damaged
        file, or one that contains anything but arrays.
    """
    path = paths.local(path, "a file of weights")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of weights {path}.")
    readers = {".safetensors": _safetensors, ".npz": _numpy}
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} is not a known kind of weight file: expected {', '.join(SUFFIXES)}."
        )
    return readers.get(path.suffix, _torch)(path)


def write(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays as safetensors, with the usual permissions; every shape is kept, also ().

    (The library's own `save_file` makes a file that only its owner can read.)
    """
    from safetensors.numpy import save

    # Not `ascontiguousarray`, which turns an array without axes into one of shape (1,).
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    paths.replace(path, save(contiguous, metadata=dict(metadata) if metadata else None))


def _numpy(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _single(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as numpy's .npz ({error}). Download it again."
        ) from error


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401 - adds bfloat16 to numpy
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors: {error}. Download it again."
        ) from error
    return {name: _single(array) for name, array in arrays.items()}


def _torch(path: Path) -> dict[str, np.ndarray]:
    script = _is_torch_script(path)
    reading = (
        f"torch.jit.load('{path}', map_location='cpu').state_dict()"
        if script
        else f"torch.load('{path}', weights_only=True)"
    )
    try:
        torch = import_module("torch")
    except ImportError as error:
        kind = "a TorchScript archive" if script else "PyTorch's format"
        raise ValueError(
            f"{path} is {kind}, and PyTorch is not installed: `pip install torch`, or give a "
            f".safetensors file. {_CONVERT.format(reading, path.with_suffix('.safetensors'))}"
        ) from error
    try:
        loaded = (
            torch.jit.load(path, map_location="cpu").state_dict()
            if script
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch's unpickler raises many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} cannot be read as a dict of tensors ({reason}): is it complete, and a state "
            "dict rather than a whole model?"
        ) from error
    tensors = _state_dict(loaded, torch.Tensor)
    if not isinstance(tensors, Mapping):
        raise ValueError(
            f"{path} contains a {type(tensors).__name__}, not a dict of tensors. Save the state "
            "dict alone: torch.save(model.state_dict(), path)."
        )
    wrong = [
        f"{name} ({type(value).__name__})"
        for name, value in tensors.items()
        if not isinstance(value, torch.Tensor)
    ]
    if wrong:
        raise ValueError(
            f"{path} contains more than a dict of tensors: {', '.join(wrong[:5])}. Save the state "
            "dict alone: torch.save(model.state_dict(), path)."
        )
    return {
        name: _single((value.float() if value.is_floating_point() else value).numpy())
        for name, value in tensors.items()
    }


def _is_torch_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _state_dict(loaded: Any, tensor: type) -> Any:
    """The state dict in a training checkpoint, or `loaded` itself."""
    if isinstance(loaded, Mapping):
        for name in ("state_dict", "model"):
            inner = loaded.get(name)
            if isinstance(inner, Mapping) and any(isinstance(x, tensor) for x in inner.values()):
                return inner
    return loaded


def _single(array: np.ndarray) -> np.ndarray:
    """Floats of any width as float32; other types unchanged."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)
