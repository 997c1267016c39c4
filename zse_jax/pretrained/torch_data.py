"""Tensors of PyTorch and arrays of numpy in pickles, as numpy arrays.

`find` maps the names that stand for data to what makes it, and refuses all others: the counterpart
of `torch._utils` and of numpy's `__reduce__`, without the libraries' own code.
"""

import mmap
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from zse_jax.pretrained import pickles
from zse_jax.pretrained.pickles import Known, Pending, RefusedError

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


class StorageFile:
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
class Storage:
    """The bytes of one or more tensors.

    Attributes:
      file: that contains them.
      key: its name in the file.
      dtype: of its elements.
      count: how many elements it has.
    """

    file: StorageFile
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


def storage(file: StorageFile, identifier: Any) -> Storage:
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
    return Storage(file, key, dtype, _integers(count)[0])


@dataclass
class _Tensor(Pending):
    """A tensor: a strided view of a storage; offset and strides are numbers of elements."""

    storage: Storage
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


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """As numpy's: with the order "K", `axes` is the order of the axes in memory."""
    if order != "K" or axes is None:
        return _numpy_array(content, dtype, shape, order)
    if sorted(_size(axes)) != list(range(len(shape))):
        raise ValueError("an array of numpy has an impossible order of axes")
    return _numpy_array(content, dtype, shape).transpose(axes)


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
    if not isinstance(storage, Storage):
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
    "numpy.core.numeric._frombuffer": _frombuffer,
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


def find(name: str) -> Any:
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
