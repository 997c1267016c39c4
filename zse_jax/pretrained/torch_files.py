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
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from zse_jax.pretrained import pickles, torch_data
from zse_jax.pretrained.pickles import Known, Pending, RefusedError

__all__ = ["RefusedError", "ScriptModule", "checked_archive", "read", "unpacked"]

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the format before PyTorch 1.6."""


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

    contents = torch_data.StorageFile(data)
    contents.load = load
    if order := entries.get(f"{folder}byteorder"):
        contents.swapped = bytes(_content(archive, data, order)) == b"big"
    modules: list[ScriptModule] = []

    def find(name: str) -> Any:
        if not (script and name.startswith("__torch__.")):
            return torch_data.find(name)
        if name.startswith("__torch__.torch.classes."):
            raise RefusedError(name.removeprefix("__torch__."))

        def make() -> ScriptModule:
            modules.append(ScriptModule(name))
            return modules[-1]

        return Known(name, make)

    root = pickles.run(
        BytesIO(text), len(text), find, lambda identifier: torch_data.storage(contents, identifier)
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
    storages: dict[str, torch_data.Storage] = {}
    contents: dict[str, memoryview] = {}
    file = torch_data.StorageFile(data)
    file.load = contents.__getitem__

    def storage(identifier: Any) -> torch_data.Storage:
        found = torch_data.storage(file, identifier)
        if storages.setdefault(found.key, found) != found:
            raise ValueError(f"the storage {found.key} has two sizes")
        return found

    def load() -> Any:
        return pickles.run(data, len(data), torch_data.find, storage)

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


def _short(error: Exception) -> str:
    """The message in one line of at most 300 printable characters."""
    return repr(" ".join(str(error).split())[:300])[1:-1]
