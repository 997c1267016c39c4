"""Reads files of weights as numpy arrays by name: safetensors, numpy's .npz, and PyTorch's.

The contents of a file decide its format, not its suffix. Code in a file is never executed.
"""

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from data_pipelines import paths
from zse_jax.pretrained import torch_files
from zse_jax.pretrained.torch_files import ScriptModule

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
"""How the names of files of weights end, in any case."""

STANDARD = tuple(
    f"{name}{index}"
    for name in (
        "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
        "pytorch_model.bin", "open_clip_pytorch_model.bin",
    )
    for index in ("", ".index.json")
)  # fmt: skip
"""Usual names of the weights in a folder of the Hugging Face Hub; the first one is read. An index
lists the files of a network that is stored in several."""

# Entries of training checkpoints, in the order of preference. Other copies are left out.
_NESTS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module",
          "weights", "params")  # fmt: skip
_AVERAGES = ("model_ema", "state_dict_ema", "model_ema_state_dict", "ema_state_dict", "ema_model",
             "ema", "averaged_model")  # fmt: skip

# What wrappers put before the names: DataParallel, Lightning and others, torch.compile, CMCA.
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "backbone.", "model_dino.")

_MODULES = 100_000
"""The most modules of a TorchScript archive."""

_FOREIGN: tuple[tuple[str, str, str], ...] = (
    (r"version https://git-lfs", "a Git-LFS pointer, not the weights",
     "Run `git lfs pull` in its folder, or download the file itself"),
    (r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype|html|head|body|\?xml|error)",
     "a web page, not the weights",
     "The server sent an error, a question or a login page: open the address in a browser"),
    (r"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "compressed", "Unpack it first"),
    (r".{257}ustar", "a tar archive", "Unpack it first. If it is a file of PyTorch before 0.1.10, "
     "save it again with torch.save(model.state_dict(), path)"),
    (r"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|%PDF", "a picture or a document, not weights",
     "Give the file of weights"),
    (r"\x89HDF", "a file of Keras or HDF5", "Save the weights as .npz or .safetensors"),
    (r"GGUF", "a quantized GGUF file", "Use the publisher's .safetensors"),
    (r"\x93NUMPY", "a single array", "Save arrays by name with numpy.savez(path, name=array)"),
)  # fmt: skip


class Weights(NamedTuple):
    """What a file of weights contains.

    Attributes:
      arrays: the publisher's names and arrays, see `read`.
      notes: sentences about what was chosen, left out or removed from the names.
      file: that was read; of a network in several files, their index.
    """

    arrays: dict[str, np.ndarray]
    notes: list[str]
    file: Path


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The publisher's parameter names and arrays in a file; floats of any width become float32.

    Args:
      path: a safetensors or .npz file; a file of PyTorch (a state dict, alone or in a training
        checkpoint, or a TorchScript archive such as OpenAI's CLIP); the index of a network in
        several files; or a folder with one of them, as on the Hugging Face Hub. Of a training
        checkpoint the weights themselves are taken, and averages of them only where there is
        nothing else. Prefixes that wrappers such as DataParallel put before all names are removed.

    Raises:
      FileNotFoundError: there is no such file or folder.
      RefusedError: the file contains something other than data; see `torch_files.read`.
      ValueError: another kind of file, a damaged one, or one with anything but arrays.
    """
    return read_noted(path).arrays


def read_noted(path: str | os.PathLike) -> Weights:
    """As `read`, with notes for the user."""
    path = located(path)
    if shard := re.search(r"-\d{5}-of-(\d{5})\.", path.name):
        raise ValueError(
            f"{path} is one of {int(shard[1])} parts of a network. Give the folder of all parts, "
            "or the file whose name ends with .index.json."
        )
    notes: list[str] = []
    if path.name.lower().endswith(".index.json"):
        found, size = _shards(path, notes)
    else:
        found, size = _contents(path, notes), path.stat().st_size
    if not found:
        raise ValueError(f"{path} contains no arrays.")
    wrong = [
        f"{name} ({array.dtype})"
        for name, array in found.items()
        if array.dtype.kind not in "iubf" and not _is_small_float(array.dtype)
    ]
    if wrong:
        raise ValueError(
            f"{path} contains arrays that are not real numbers: {', '.join(wrong[:5])}. Save the "
            "weights alone."
        )
    return Weights(_singles(path, _unwrapped(found, notes), size), notes, path)


def located(path: str | os.PathLike) -> Path:
    """The local file that `path` names, or that is the weights in the folder it names.

    Raises:
      FileNotFoundError: there is no such file or folder, or no weights in the folder.
      ValueError: a folder with several files of weights; or the path is in a bucket.
    """
    path = paths.local(path, "a file of weights")
    if not path.exists():
        raise FileNotFoundError(f"There is no file of weights {path}.")
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder.")
    for name in STANDARD:
        if (path / name).is_file():
            return path / name
    several = sorted(
        file.name
        for file in path.iterdir()
        if file.is_file() and file.name.lower().endswith((*SUFFIXES, ".index.json"))
    )
    if len(several) == 1:
        return path / several[0]
    if not several:
        raise FileNotFoundError(
            f"The folder {path} contains no file of weights: expected {', '.join(STANDARD)} or one "
            f"file that ends with {', '.join(SUFFIXES)}."
        )
    raise ValueError(
        f"The folder {path} contains several files of weights: {', '.join(several[:8])}. Give the "
        "path of one."
    )


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


def _contents(path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    """The arrays of one file, with the types in which they are stored."""
    with path.open("rb") as file:
        head = file.read(600)
    if not head:
        raise ValueError(f"{path} is empty. Download it again.")
    if head[4:9] == b"\0\0\0\0{":  # the length of the header, whose first bytes are arbitrary
        return _safetensors(path, notes)
    text = head.decode("latin-1")
    for pattern, what, advice in _FOREIGN:
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            raise ValueError(f"{path} is {what}. {advice}.")
    if head[:2] == b"PK":
        return (_numpy if _has_arrays(path) else _torch)(path, notes)
    if head[:1] == b"\x80":
        return _torch(path, notes)
    suffix = next((x for x in SUFFIXES if path.name.lower().endswith(x)), "")
    if not suffix:
        raise ValueError(
            f"{path} is not a known kind of weight file: expected {', '.join(SUFFIXES)}."
        )
    reader = {".npz": _numpy, ".safetensors": _safetensors}.get(suffix, _torch)
    if head.isascii() and all(char.isprintable() or char.isspace() for char in text):
        raise ValueError(
            f"{path} cannot be read as {_FORMATS[reader]}: it is a text, {_quoted(text)}. If that "
            "is the message of a server, download the file again."
        )
    return reader(path, notes)


def _has_arrays(path: Path) -> bool:
    """Whether a zip archive is one of numpy; also if it is damaged and named like one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged archive
        return path.suffix.lower() == ".npz"
    return not any(name.endswith("data.pkl") for name in names) and (
        any(name.endswith(".npy") for name in names) or path.suffix.lower() == ".npz"
    )


def _quoted(text: str) -> str:
    return repr(" ".join(text.split())[:120])


def _numpy(path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            with torch_files.checked_archive(file, path.stat().st_size) as archive:
                for entry in archive.infolist():
                    _check_declared(archive, entry)
            file.seek(0)
            with np.load(file, allow_pickle=False) as contents:
                found = {name: contents[name] for name in contents.files}
    except Exception as error:  # whatever a damaged archive leads to
        raise ValueError(
            f"{path} cannot be read as numpy's .npz ({_quoted(str(error))[1:-1]}). Download it "
            "again."
        ) from error
    # numpy does not know bfloat16, and stores it as bytes without a type.
    bfloat16 = {name for name, x in found.items() if x.dtype == np.dtype("V2")}
    if bfloat16:
        notes.append(f"{len(bfloat16)} arrays of 2 bytes without a type were read as bfloat16.")
    return {
        name: x.view(ml_dtypes.bfloat16) if name in bfloat16 else x for name, x in found.items()
    }


def _check_declared(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raises ValueError unless an array has the size in its header, before it is allocated."""
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{entry.filename} is not an array")
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if header is None:
            raise ValueError(f"{entry.filename} has the unknown version {version}")
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} contains Python objects")
        if prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            raise ValueError(f"{entry.filename} has another size than its shape {shape}")


def _safetensors(path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
    except Exception as error:  # SafetensorError, or a type that numpy does not have
        raise ValueError(
            f"{path} cannot be read as safetensors: {_quoted(str(error))[1:-1]}. Download it again."
        ) from error


def _torch(path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    found = _state_dict(torch_files.read(path), notes)
    if isinstance(found, ScriptModule):
        return dict(_script_tensors(path, found))
    wrong = [
        f"{name} ({type(value).__name__})"
        for name, value in found.items()
        if not isinstance(value, np.ndarray) or not isinstance(name, str)
    ]
    if wrong:
        empty = [name for name, value in found.items() if isinstance(value, dict) and not value]
        raise ValueError(
            f"{path} contains {'an empty dict' if empty else 'more than a dict of tensors'}: "
            f"{', '.join(wrong[:5])}. Save the state dict alone, which maps names to tensors: "
            "torch.save(model.state_dict(), path)."
        )
    return dict(found)


def _state_dict(found: Mapping[Any, Any], notes: list[str]) -> Mapping[Any, Any]:
    """The weights in a training checkpoint, or `found` itself."""
    for _ in range(8):
        if isinstance(found, ScriptModule):
            break
        kinds = _kinds(found)
        nests = [key for key, kind in kinds.items() if kind]
        plain = [key for key in nests if key not in _AVERAGES and kinds[key] == "tensors"]
        first = next((key for key in _NESTS if key in nests), None)
        if first is None and not any(isinstance(x, np.ndarray) for x in found.values()):
            average = next((key for key in _AVERAGES if key in nests), None)
            first = plain[0] if len(plain) == 1 else average if not plain else None
        if first is None:
            break
        found = found[first]
        left = [key for key in nests if key != first and key in (*_NESTS, *_AVERAGES, *plain)]
        rest = f" Left out: {', '.join(map(str, left))}." if left else ""
        notes.append(f"The weights are the entry {first!r} of the file.{rest}")
    return found


def _kinds(found: Mapping[Any, Any]) -> dict[Any, str]:
    """For each entry: "tensors" only, "mixed" if it may contain weights, or ""."""
    known: dict[int, str] = {}  # entries can be one dict

    def kind(value: Any) -> str:
        if isinstance(value, ScriptModule):
            return "tensors"
        if not isinstance(value, dict):
            return ""
        tensors = [isinstance(x, np.ndarray | ScriptModule) for x in value.values()]
        if tensors and all(tensors):
            return "tensors"
        nested = any(isinstance(value.get(x), dict | ScriptModule) for x in _NESTS)
        return "mixed" if nested or any(tensors) else ""

    for value in found.values():
        if id(value) not in known:
            known[id(value)] = kind(value)
    return {key: known[id(value)] for key, value in found.items()}


def _script_tensors(path: Path, root: ScriptModule) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters and buffers of a TorchScript module, named as in its state dict."""
    waiting: list[tuple[str, ScriptModule]] = [("", root)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        seen += 1
        if seen > _MODULES:
            raise ValueError(f"{path} contains more than {_MODULES:,} modules.")
        for name, value in module.items():
            if isinstance(value, ScriptModule):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, np.ndarray) and name in (
                module if module.tensors is None else module.tensors
            ):
                yield f"{prefix}{name}", value


def weight_map(path: Path) -> dict[str, str]:
    """The file of each array of a network in several files, from its index.

    Raises:
      ValueError: it is not such an index.
    """
    try:
        listed = json.loads(path.read_bytes())["weight_map"]
        return {name: str(file) for name, file in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not the index of a network in several files. Delete it and download it "
            "again."
        ) from error


def _shards(path: Path, notes: list[str]) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of all files in an index, and the size of these files in bytes."""
    listed = weight_map(path)
    found: dict[str, np.ndarray] = {}
    size = 0
    for name in sorted({*listed.values()}):
        file = path.parent / name
        if Path(name).name != name or not file.is_file():
            raise FileNotFoundError(
                f"{path} lists {_quoted(name)}, which is not in its folder. Download all parts."
            )
        found |= _contents(file, notes)
        size += file.stat().st_size
    if missing := sorted(listed.keys() - found.keys()):
        raise ValueError(
            f"{path} lists arrays that its files do not contain: {', '.join(missing[:5])}. "
            "Download all parts again."
        )
    return found, size


def _unwrapped(arrays: dict[str, np.ndarray], notes: list[str]) -> dict[str, np.ndarray]:
    """The arrays without averages beside them, and without the prefixes of wrappers."""
    averages = tuple(f"{name}." for name in _AVERAGES)
    own = {name: array for name, array in arrays.items() if not name.startswith(averages)}
    if own and len(own) < len(arrays):
        notes.append(f"{len(arrays) - len(own)} averages of the weights (EMA) are left out.")
        arrays = own
    for _ in range(8):
        prefix = next((x for x in _PREFIXES if all(n.startswith(x) for n in arrays)), None)
        if prefix is None or len(arrays) == 1:
            break
        notes.append(f"The prefix {prefix!r} was removed from all names.")
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    inner = {name.replace("._orig_mod.", "."): array for name, array in arrays.items()}
    if inner.keys() != arrays.keys() and len(inner) == len(arrays):
        notes.append("'_orig_mod.' was removed from the names.")
        return inner
    return arrays


def _is_small_float(dtype: np.dtype) -> bool:
    return dtype.kind == "V" and dtype.names is None and hasattr(ml_dtypes, dtype.name)


def _singles(path: Path, arrays: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Copies, with floats of any width as float32; names that share an array share the copy."""
    distinct = {
        (x.__array_interface__["data"][0], x.shape, x.strides, x.dtype.str, x.dtype.name): x
        for x in arrays.values()
    }
    if (total := sum(x.nbytes for x in distinct.values())) > (64 << 20) + 2 * size:
        raise ValueError(
            f"{path} of {size:,} bytes describes {total:,} bytes of arrays: this is not a file of "
            "weights."
        )
    copies = {
        key: np.array(x, order="C") if x.dtype.kind in "iub" else x.astype(np.float32, order="C")
        for key, x in distinct.items()
    }
    return {
        name: copies[
            x.__array_interface__["data"][0], x.shape, x.strides, x.dtype.str, x.dtype.name
        ]
        for name, x in arrays.items()
    }


_FORMATS = {_numpy: "numpy's .npz", _safetensors: "safetensors", _torch: "a file of PyTorch"}
