"""Reads what `torch.save` and `torch.jit.save` write, without PyTorch and without executing it.

    torch_files.read("best_checkpoint.pth")["model"]["sa.model.cls"]  # a numpy array

The formats are those of `torch/serialization.py`: a zip archive with a pickle, `data.pkl`, and the
bytes of each storage (since PyTorch 1.6), and before that several pickles, followed by the
storages. TorchScript archives have the first format. Their modules are read as dicts of attributes,
and their code is not run.
"""

import functools
import mmap
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from zse_jax.pretrained import pickles
from zse_jax.pretrained.pickles import Known, Pending, RefusedError

__all__ = ["RefusedError", "ScriptModule", "checked_archive", "read", "unpacked"]

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the format before PyTorch 1.6."""

_DTYPES: Mapping[str, np.dtype] = {
    **{name: np.dtype(name) for name in (
        "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
        "uint32", "uint64", "bool", "complex64", "complex128",
    )},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in (
        "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )},
}  # fmt: skip
"""PyTorch's names of types -> numpy's types."""

_ALIASES = {
    "half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32",
    "long": "int64", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip


class ScriptModule(dict[str, Any], Pending):
    """The attributes of a TorchScript module by name.

    Attributes:
      name: of its class in the archive.
      tensors: the attributes that are parameters and buffers; None: not known.
    """

    def __init__(self, name: str):
        self.name = name
        self.tensors: tuple[str, ...] | None = None

    def restore(self, state: Any) -> None:
        """Takes its attributes."""
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise RefusedError(f"{self.name}, which has a state other than its attributes")
        self.update(state)


def read(path: Path | str) -> dict[str, Any]:
    """What the file contains, nested as it was saved, with every tensor as a numpy array.

    Parameters are tensors; sizes are tuples; types and devices of PyTorch are texts; modules of
    TorchScript are `ScriptModule`. Arrays are read-only, and are read from the disk when they are
    used: copy them before the file changes.

    Raises:
      RefusedError: it contains anything but dicts, lists, tuples, numbers, strings, tensors and
        numpy's arrays, scalars and types; names the first. Nothing of it was created.
      ValueError: it is not such a file, is damaged, or contains a single object.
      OSError: it cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{path} is empty. Download it again.")
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            found = pickles.plain(_zip(file, data) if data[:2] == b"PK" else _stacked(data))
        except RefusedError as error:
            raise RefusedError(
                f"{path} contains {_short(error)}, which is not read: only dicts, lists, tuples, "
                "numbers, strings, tensors and numpy arrays are. It was not created, and no code "
                "ran. Save the weights alone, torch.save(model.state_dict(), path), where the file "
                "comes from."
            ) from None
        except Exception as error:  # whatever a damaged archive or pickle leads to
            raise ValueError(
                f"{path} cannot be read as a file of PyTorch: {_short(error)}. Download it again, "
                "or save it again with torch.save(model.state_dict(), path)."
            ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} contains a {type(found).__name__}, not a dict of tensors. Save the state "
            "dict: torch.save(model.state_dict(), path)."
        )
    return found


def checked_archive(file: Any, size: int) -> zipfile.ZipFile:
    """The zip archive in a file of `size` bytes, if its contents have plausible sizes.

    Raises:
      ValueError: it is truncated or encrypted, entries overlap, or it would unpack to more than 64
        MiB and 20 times its size.
    """
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # of a damaged directory of entries
        raise ValueError("its zip archive is truncated or damaged") from error
    entries = archive.infolist()
    if any(entry.flag_bits & 1 for entry in entries):
        raise ValueError("its zip archive is encrypted")
    if sum(entry.compress_size for entry in entries) > size:
        raise ValueError("the entries of its zip archive overlap, or end after the file")
    if not {entry.compress_type for entry in entries} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("its zip archive has a compression that PyTorch and numpy do not write")
    total = sum(entry.file_size for entry in entries)
    if total > (64 << 20) + 20 * size:
        raise ValueError(
            f"its zip archive of {size:,} bytes would unpack to {total:,} bytes: this is not a "
            "file of weights"
        )
    return archive


def unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry; not more than it declares, unlike `ZipFile.read`."""
    with archive.open(entry) as stream:
        return stream.read(entry.file_size)


# --- archives and storages


class _File:
    """The storages of a file.

    Attributes:
      data: of the file.
      load: returns the bytes of a storage.
      swapped: the bytes of numbers are in the other order.
    """

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.load: Callable[[str], memoryview]
        self.swapped = False
        self._contents: dict[str, memoryview] = {}
        self._left = (64 << 20) + 2 * len(data)

    def content(self, key: str) -> memoryview:
        """The bytes of a storage; they are checked once."""
        if key not in self._contents:
            self._contents[key] = self.load(key)
        return self._contents[key]

    def copied(self, array: np.ndarray) -> np.ndarray:
        """The array, before it is copied; raises ValueError if all copies are too large."""
        self._left -= array.nbytes
        if self._left < 0:
            raise ValueError("its tensors are much larger than the file")
        return array


@dataclass
class _Storage:
    """The bytes of one or more tensors.

    Attributes:
      file: that contains them.
      key: its name in the file.
      dtype: of its elements.
      count: how many elements it has.
    """

    file: _File
    key: str
    dtype: np.dtype
    count: int

    def array(self, tensor: "_Tensor") -> np.ndarray:
        """A view of the tensor in it."""
        data, dtype = self.file.content(self.key), tensor.dtype
        available = min(len(data), self.count * self.dtype.itemsize)
        if available < self.count * self.dtype.itemsize:
            raise ValueError(
                f"a storage has {available:,} bytes instead of "
                f"{self.count * self.dtype.itemsize:,}: it is truncated"
            )
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        steps = zip(tensor.shape, tensor.strides, strict=True)
        end = tensor.offset + 1 + sum((n - 1) * step for n, step in steps)
        if end * dtype.itemsize > available:
            raise ValueError(f"a tensor of shape {tensor.shape} reaches beyond its storage")
        # numpy checks the limits once more.
        found: np.ndarray = np.ndarray(
            tensor.shape,
            dtype,
            data[:available],
            tensor.offset * dtype.itemsize,
            tuple(step * dtype.itemsize for step in tensor.strides),
        )
        if self.file.swapped and dtype.itemsize > 1:
            self.file.copied(found)
            same = dtype.kind in "iufc"  # types of ml_dtypes are not swapped by numpy
            found = found.byteswap() if same else found.view("u2").byteswap().view(dtype)
        return found


def _zip(file: Any, data: mmap.mmap) -> Any:
    archive = checked_archive(file, len(data))
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickled = min((n for n in entries if PurePosixPath(n).name == "data.pkl"), key=len, default="")
    if not pickled:
        raise ValueError(
            "it is a zip archive without data.pkl: unpack it if it contains the file of weights"
        )
    folder = pickled.removesuffix("data.pkl")
    script = f"{folder}constants.pkl" in entries
    text = _content(archive, data, entries[pickled])
    # `torch.serialization.set_crc32_options(False)` writes other values instead of sums.
    summed = zlib.crc32(text) == entries[pickled].CRC

    def load(key: str) -> memoryview:
        if (entry := entries.get(f"{folder}data/{key}")) is None:
            raise ValueError(f"the storage {key} is missing")
        found = _content(archive, data, entry)
        if summed and zlib.crc32(found) != entry.CRC:
            raise ValueError(f"the storage {key} is damaged")
        return found

    contents = _File(data)
    contents.load = load
    if order := entries.get(f"{folder}byteorder"):
        contents.swapped = bytes(_content(archive, data, order)) == b"big"
    modules: list[ScriptModule] = []

    def find(name: str) -> Any:
        if not (script and name.startswith("__torch__.")):
            return _find(name)
        if name.startswith("__torch__.torch.classes."):
            raise RefusedError(name.removeprefix("__torch__."))

        def make() -> ScriptModule:
            modules.append(ScriptModule(name))
            return modules[-1]

        return Known(name, make)

    root = pickles.run(
        BytesIO(text), len(text), find, lambda identifier: _storage(contents, identifier)
    )

    @functools.cache
    def declared(module: str) -> Mapping[str, tuple[str, ...]]:
        entry = entries.get(f"{folder}code/{module.replace('.', '/')}.py")
        return {} if entry is None else _declared(unpacked(archive, entry))

    for module in modules:
        within, _, cls = module.name.rpartition(".")
        module.tensors = declared(within).get(cls)
    return root


def _content(archive: zipfile.ZipFile, data: mmap.mmap, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of an entry, without a copy if they are not compressed, as PyTorch writes them."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return memoryview(unpacked(archive, entry))
    header = data[entry.header_offset : entry.header_offset + 30]
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise ValueError(f"the entry {entry.filename} of its zip archive is damaged")
    start = entry.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))
    found = memoryview(data)[start : start + entry.file_size]
    if len(found) < entry.file_size:
        raise ValueError(f"the entry {entry.filename} of its zip archive is truncated")
    return found


def _declared(code: bytes) -> dict[str, tuple[str, ...]]:
    """The parameters and buffers that each class in a file of `code/` declares."""
    found = re.finditer(
        r"^class (\w+)\(Module\):\n *__parameters__ = \[(.*)\]\n(?: *__buffers__ = \[(.*)\]\n)?",
        code.decode("utf-8", "replace"),
        re.MULTILINE,
    )
    return {x[1]: tuple(re.findall(r'"([^"]*)"', f"{x[2]} {x[3] or ''}")) for x in found}


def _stacked(data: mmap.mmap) -> Any:
    """The format before PyTorch 1.6, or a pickle of arrays."""
    storages: dict[str, _Storage] = {}
    contents: dict[str, memoryview] = {}
    file = _File(data)
    file.load = contents.__getitem__

    def storage(identifier: Any) -> _Storage:
        found = _storage(file, identifier)
        if storages.setdefault(found.key, found) != found:
            raise ValueError(f"the storage {found.key} has two sizes")
        return found

    def load() -> Any:
        return pickles.run(data, len(data), _find, storage)

    if (first := load()) != _MAGIC:
        return first
    load()  # version of the format
    system = load()
    file.swapped = isinstance(system, dict) and system.get("little_endian") is False
    root, keys = load(), load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the names of its storages are damaged")
    if storages.keys() != set(keys):
        raise ValueError("storages are missing")
    position = data.tell()
    for key in keys:
        size = storages[key].count * storages[key].dtype.itemsize
        content = memoryview(data)[position : position + 8 + size]
        if int.from_bytes(content[:8], "little") != storages[key].count:
            raise ValueError(f"the storage {key} has another size, or is missing")
        contents[key] = content[8:]
        position += 8 + size
    return root


def _storage(file: _File, identifier: Any) -> _Storage:
    """The storage that a persistent id names."""
    if not isinstance(identifier, tuple) or not identifier:
        raise ValueError("a storage has no name")
    if identifier[0] == "module":
        raise RefusedError("a whole model")
    _, dtype, key, _, count, *view = identifier
    if not isinstance(dtype, np.dtype):
        raise RefusedError("a storage of another type")
    if view and view[0] is not None:
        raise RefusedError("a view of a storage, as PyTorch 0.3 saved it")
    if not isinstance(key, str):
        raise ValueError("a storage has no name")
    return _Storage(file, key, dtype, _integers(count)[0])


# --- names in pickles


@dataclass
class _Tensor(Pending):
    """A tensor: a strided view of a storage; offset and strides are numbers of elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    metadata: Any = None

    def value(self) -> np.ndarray:
        """The array, in the memory of the file where that is possible."""
        if len(self.shape) != len(self.strides):
            raise ValueError("a tensor has a shape that does not fit its strides")
        found = self.storage.array(self)
        if isinstance(self.metadata, dict):  # the bits of a lazy conjugate or negative
            for name, change in (("conj", np.conj), ("neg", np.negative)):
                if self.metadata.get(name):
                    found = change(self.storage.file.copied(found))
        return found


class _Dtype(Pending):
    """A type of numpy."""

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str):
            raise RefusedError("a numpy type of several fields")
        if not re.fullmatch(r"[<>=|]?[?biufcSU]\d{0,9}", name):
            raise RefusedError(f"the numpy type {name}")
        self.dtype = np.dtype(name)

    def restore(self, state: Any) -> None:
        """Takes its byte order, the second of its state."""
        if len(state) < 3 or state[2] is not None or state[1] not in ("<", ">", "|", "="):
            raise RefusedError("a numpy type of several fields")
        self.dtype = self.dtype.newbyteorder(state[1])

    def value(self) -> np.dtype:
        """The type."""
        return self.dtype


class _Array(Pending):
    """An array of numpy."""

    array: np.ndarray | None = None

    def restore(self, state: Any) -> None:
        """Takes shape, type, order and bytes."""
        _, shape, dtype, fortran, content = state
        self.array = _numpy_array(content, dtype, shape, "F" if fortran else "C")

    def value(self) -> np.ndarray:
        """The array."""
        if self.array is None:
            raise ValueError("an array of numpy has no content")
        return self.array


def _numpy_array(content: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise RefusedError("a numpy array of objects, or of Python 2")
    if prod(_size(shape)) * dtype.dtype.itemsize != len(content):
        raise ValueError(f"a numpy array of shape {shape} has {len(content)} bytes")
    flat: np.ndarray = np.ndarray(prod(shape), dtype.dtype, content)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _numpy_scalar(dtype: Any, content: Any) -> Any:
    if isinstance(content, str) and len(content) <= 16:  # of Python 2
        content = content.encode("latin-1")
    return _numpy_array(content, dtype, ())[()]


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError("_codecs.encode to another encoding than Latin-1")
    return text.encode("latin-1")


def _ordered(items: Any = ()) -> OrderedDict:
    found: OrderedDict = OrderedDict()
    pickles.set_items(found, [x for key, value in items for x in (key, value)])
    return found


def _size(shape: Any = ()) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or len(shape) > 64:
        raise ValueError("a size has too many axes")
    return _integers(*shape)


def _device(*parts: Any) -> str:
    if not all(isinstance(part, str) or type(part) is int for part in parts):
        raise ValueError("a device has no name")
    return ":".join(map(str, parts))


def _integers(*numbers: Any) -> tuple[int, ...]:
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise ValueError("a size, offset or stride is not a number of elements")
    return numbers


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None, metadata: Any = None
) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    return _Tensor(
        storage,
        _integers(offset)[0],
        _size(shape),
        _size(strides),
        storage.dtype if dtype is None else _DTYPES[_type_name(dtype)],
        metadata,
    )


def _tensor_v2(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    # requires_grad, hooks, metadata
    return _tensor(storage, offset, shape, strides, None, rest[2] if len(rest) > 2 else None)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> _Tensor:  # fmt: skip
    return _tensor(storage, offset, shape, strides, dtype, metadata)


def _type_name(dtype: Any) -> str:
    if not isinstance(dtype, str) or not dtype.startswith("torch."):
        raise ValueError("a tensor has no type")
    return dtype.removeprefix("torch.")


def _first(value: Any, *_: Any) -> Any:
    return value


def _typed(function: Any, cls: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a class that Python knows, such as a parameter with attributes."""
    if not isinstance(cls, Known) or cls.make is not _never:
        raise RefusedError("a tensor of another class")
    return pickles.call(function, arguments)


def _never(*_: Any) -> Any:
    raise RefusedError("a call of a class")


_MAKERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "builtins.complex": complex,
    "_codecs.encode": _encode,
    "numpy.ndarray": _never,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.numeric._frombuffer": _numpy_array,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.Tensor": _never,
    "torch.nn.parameter.Parameter": _never,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
}
"""The names in pickles that stand for data, and what makes it."""


def _find(name: str) -> Any:
    """A `Known`, the numpy type of a storage, or the text of a type of PyTorch."""
    name = re.sub(r"^__builtin__\.", "builtins.", name)
    name = re.sub(r"^numpy\._core\.", "numpy.core.", name)
    if name in _MAKERS:
        return Known(name, _MAKERS[name])
    if match := re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name):
        if match[1] in _STORAGES:
            return _DTYPES[_STORAGES[match[1]]]
        if match[1].startswith("Q"):
            raise RefusedError(f"a quantized tensor ({name})")
    if name in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        return np.dtype(np.uint8)
    dtype = name.removeprefix("torch.")
    if (dtype := _ALIASES.get(dtype, dtype)) in _DTYPES and name.startswith("torch."):
        return f"torch.{dtype}"
    raise RefusedError(name)


def _short(error: Exception) -> str:
    """The message in one line of at most 300 printable characters."""
    return repr(" ".join(str(error).split())[:300])[1:-1]
