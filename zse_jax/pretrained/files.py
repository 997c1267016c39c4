"""Files of weights as plain arrays: safetensors, numpy's, and PyTorch's where PyTorch is installed.

Nothing in a file is ever executed to read its weights: no pickles but PyTorch's restricted ones.
"""

import os
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")

_CONVERT = (
    'To convert it where PyTorch is: python -c "import torch, safetensors.torch as s; '
    "s.save_file({{k: v.contiguous() for k, v in {0}.items()}}, '{1}')\""
)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The publisher's parameter names and arrays in a file; half precision becomes float32.

    PyTorch's files hold a dict of tensors, by itself or as `state_dict` or `model` of a training
    checkpoint, or are TorchScript archives, as OpenAI's CLIP.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a suffix that is not in `SUFFIXES`, PyTorch's format without PyTorch, a file that
        is damaged, or one that holds something else than arrays; says what to do.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of weights {path}.")
    readers = {".safetensors": _safetensors, ".npz": _numpy}
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} is no file of weights that is known here: expected {', '.join(SUFFIXES)}."
        )
    return readers.get(path.suffix, _torch)(path)


def write(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays as safetensors, into a file that others can read as they can any other.

    (The library's own `save_file` makes one for its owner alone.)
    """
    from safetensors.numpy import save

    Path(path).write_bytes(save(dict(arrays), metadata=dict(metadata) if metadata else None))


def _numpy(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _single(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as numpy's .npz ({error}). Download it again."
        ) from error


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401 - makes numpy know bfloat16
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors: {error}. Download it again."
        ) from (error)
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
    except Exception as error:  # torch raises whatever its unpickler meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} cannot be read as a dict of tensors ({reason}): is it complete, and a state "
            "dict rather than a whole model?"
        ) from error
    tensors = _state_dict(loaded, torch.Tensor)
    if not isinstance(tensors, Mapping):
        raise ValueError(
            f"{path} holds a {type(tensors).__name__}, not a dict of tensors. Save the state dict "
            "alone: torch.save(model.state_dict(), path)."
        )
    wrong = [
        f"{name} ({type(value).__name__})"
        for name, value in tensors.items()
        if not isinstance(value, torch.Tensor)
    ]
    if wrong:
        raise ValueError(
            f"{path} holds more than a dict of tensors: {', '.join(wrong[:5])}. Save the state "
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
    """What is in a training checkpoint under the usual names, or `loaded` itself."""
    if isinstance(loaded, Mapping):
        for name in ("state_dict", "model"):
            inner = loaded.get(name)
            if isinstance(inner, Mapping) and any(isinstance(x, tensor) for x in inner.values()):
                return inner
    return loaded


def _single(array: np.ndarray) -> np.ndarray:
    """Floats of any width as float32; the rest as it is."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)
