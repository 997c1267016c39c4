"""Files of weights as plain arrays: safetensors, and PyTorch's own where PyTorch is installed."""

import os
from importlib import import_module
from pathlib import Path

import numpy as np

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_CONVERT = (
    'To convert it where PyTorch is: python -c "import torch, safetensors.torch as s; '
    "s.save_file({{k: v.contiguous() for k, v in torch.load('{0}', weights_only=True).items()}}, "
    "'{1}')\""
)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The publisher's parameter names and arrays in a file; half precision becomes float32.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a suffix that is not in `SUFFIXES`, PyTorch's format without PyTorch, a file that
        is damaged, or one that holds something else than a dict of tensors; says what to do.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of weights {path}.")
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} is no file of weights that is known here: expected {', '.join(SUFFIXES)}."
        )
    return _safetensors(path) if path.suffix == ".safetensors" else _torch(path)


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
    convert = _CONVERT.format(path, path.with_suffix(".safetensors"))
    try:
        torch = import_module("torch")
    except ImportError as error:
        raise ValueError(
            f"{path} is PyTorch's format, and PyTorch is not installed: `pip install torch`, or "
            f"give a .safetensors file. {convert}"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} cannot be read as a dict of tensors ({reason}): is it complete, and a state "
            "dict rather than a whole model or a TorchScript archive?"
        ) from error
    wrong = (
        [f"{name} ({type(value).__name__})" for name, value in loaded.items()
         if not isinstance(value, torch.Tensor)]
        if isinstance(loaded, dict)
        else [type(loaded).__name__]
    )  # fmt: skip
    if wrong:
        raise ValueError(
            f"{path} holds more than a dict of tensors: {', '.join(wrong[:5])}. Save the state "
            "dict alone: torch.save(model.state_dict(), path)."
        )
    return {
        name: _single((value.float() if value.is_floating_point() else value).numpy())
        for name, value in loaded.items()
    }


def _single(array: np.ndarray) -> np.ndarray:
    """Floats of any width as float32; the rest as it is."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)
