"""Features of a data set in files, written batch by batch.

They are raw arrays that numpy maps into memory, with a record of what they are:

    FOLDER/photo/record.json     retriever, data, shapes, and how many batches are finished
    FOLDER/photo/features0.bin   one file for each array of the features, row-major, item by item
    FOLDER/photo/labels.bin      int32

Batches are written as they come. The record is replaced in one step, after what it speaks of has
reached the disk, so that a process killed at any moment leaves a folder that the next can go on
with. Several processes may share a folder: they write the same bytes to the same places.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from zse_jax.retrieval.storage import Place, across_processes
from zse_jax.retrievers.base import Features

RECORD = "record.json"

_FORMAT = 1

_ENTRIES = {
    *("format", "about", "arrays", "batches", "batch_size"),
    *("finished", "items", "complete"),
}

# The disk is waited for this often; a killed process loses no more.
_RECORD_SECONDS = 5.0


class OnDisk:
    """Features in files, written batch by batch.

    Attributes:
      items: how many images are kept.
      finished: how many batches they came in.
      place: where the features are to end, where that is known already.
      complete: whether the folder held the whole data set when it was opened.
    """

    def __init__(
        self,
        folder: Path | None,
        about: Mapping[str, Any],
        batches: int,
        place: Place | None = None,
    ):
        """Opens a folder, or files that vanish with the process.

        Args:
          folder: new, or what an earlier call left there, finished or not.
          about: of the retriever and the images; plain values, by name.
          batches: how many there are, 0 if that is not known.
          place: see above.

        Raises:
          ValueError: the folder holds something else; the message says in what it differs.
        """
        self.items = self.finished = 0
        self.complete = False
        self.place = place
        self._folder = folder
        self._record: dict[str, Any] = {
            "format": _FORMAT,
            "about": dict(about),
            "batches": batches,
            "batch_size": None,
            "arrays": [],
        }
        self._files: list[IO[bytes]] = []
        self._recorded = time.monotonic()
        if folder is not None:
            self._open(folder)

    def append(self, features: Features, labels: Int[np.ndarray, " b"], batch_size: int) -> None:
        """Keeps the real images of a batch, which held `batch_size` with its padding.

        Raises:
          ValueError: batches of another size were recorded.
          OSError: the disk is too small.
        """
        if self._files:
            self.check_structure(features)
        else:
            self._begin(features, batch_size)
        if batch_size != self._record["batch_size"]:
            raise ValueError(
                f"The features in {self._folder} were being encoded in batches of "
                f"{self._record['batch_size']} images, and now come in batches of {batch_size}. "
                f"Go on with {self._record['batch_size']}, or delete the folder to start again."
            )
        arrays = [*jax.tree.leaves(features), labels.astype(np.int32)]
        for file, array in zip(self._files, arrays, strict=True):
            file.seek(self.items * array[:1].nbytes)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.items += len(labels)
        self.finished += 1
        if time.monotonic() - self._recorded >= _RECORD_SECONDS:
            self._write_record(complete=False)

    def close(self) -> None:
        """Records what is finished, before an error or an interrupt ends the encoding."""
        if self._files and not self.complete:
            self._write_record(complete=False)
        for file in self._files:
            file.close()

    def result(self, structure: Any) -> tuple[Features, Int[np.ndarray, " n"]]:
        """All features, mapped into memory as a pytree of `structure`, and all labels."""
        if not self.complete:
            for file, described in zip(self._files, self._record["arrays"], strict=True):
                file.truncate(self.items * _row_bytes(described))
            self._write_record(complete=True)
        arrays = [
            np.memmap(
                file,
                dtype=jnp.dtype(described["dtype"]),
                mode="r",
                shape=(self.items, *described["shape"]),
            )
            for file, described in zip(self._files, self._record["arrays"], strict=True)
        ]
        for file in self._files:
            file.close()  # A mapping does not need it.
        return jax.tree.unflatten(structure, arrays[:-1]), np.array(arrays[-1])

    def check_structure(self, features: Features) -> None:
        """Raises ValueError unless the files hold arrays like these (without their items)."""
        made = _described(features)
        if made != self._record["arrays"]:
            raise ValueError(
                f"{self._folder} holds {self._record['arrays']}, and the retriever makes {made}. "
                "Delete the folder to encode again, or name another one."
            )

    def _open(self, folder: Path) -> None:
        """Takes up what is recorded; all processes agree on how much that is."""
        found: dict[str, Any] = {}
        problem = ""
        try:
            found = _read_record(folder)
            problem = self._difference(found)
        except ValueError as error:
            problem = str(error)
        state = [
            not problem,
            found.get("complete", False),
            found.get("finished", 0),
            found.get("items", 0),
        ]
        sound, complete, finished, items = across_processes(state).min(axis=0).tolist()
        if not sound:
            raise ValueError(
                f"{folder}: {problem or 'another process cannot use it'}. Delete the folder to "
                "encode again, or name another one."
            )
        if not found:
            return
        self.complete, self.finished, self.items = bool(complete), finished, items
        self._record |= {name: found[name] for name in ("arrays", "batch_size")}
        self._open_files()

    def _difference(self, found: Mapping[str, Any]) -> str:
        """In what a record differs from what is to be encoded; empty if in nothing."""
        if not found:
            return ""
        for name, value in self._record["about"].items():
            if (other := found["about"].get(name)) != value:
                return f"these are features of another {name}, {other!r} and not {value!r}"
        if found["batches"] != self._record["batches"] and not found["complete"]:
            return (
                f"these features were being encoded in {found['batches']} batches, and now there "
                f"are {self._record['batches']} of them: another batch size, or other images"
            )
        return ""

    def _begin(self, features: Features, batch_size: int) -> None:
        """Describes and creates the files, by the first batch."""
        self._record["arrays"] = _described(features)
        self._record["batch_size"] = batch_size
        folder = Path(tempfile.gettempdir()) if self._folder is None else self._folder
        folder.mkdir(parents=True, exist_ok=True)
        needed = sum(map(_row_bytes, self._record["arrays"])) * batch_size * self._record["batches"]
        if needed > (free := shutil.disk_usage(folder).free):
            raise OSError(
                f"The features take {needed / 1e9:.1f} GB, and the disk of {folder} has "
                f"{free / 1e9:.1f} GB free. Choose a folder on a larger disk, or halve them with "
                'dtype="bfloat16".'
            )
        self._open_files()

    def _open_files(self) -> None:
        names = [self._file_name(i) for i in range(len(self._record["arrays"]))]
        if self._folder is None:
            self._files = [tempfile.TemporaryFile() for _ in names]  # noqa: SIM115
            return
        for name in names:
            if not self.complete:  # Without emptying it: another process may have begun.
                (self._folder / name).touch()
            # Open until `result`: encoding takes hours, and closes them however it ends.
            mode = "rb" if self.complete else "r+b"
            self._files.append((self._folder / name).open(mode))

    def _file_name(self, index: int) -> str:
        return "labels.bin" if index == len(self._record["arrays"]) - 1 else f"features{index}.bin"

    def _write_record(self, *, complete: bool) -> None:
        for file in self._files:
            file.flush()
        if self._folder is not None:
            for file in self._files:
                os.fsync(file.fileno())
            self._record |= {
                "finished": self.finished,
                "items": self.items,
                "complete": complete,
            }
            new = self._folder / f"{RECORD}.{jax.process_index()}.new"
            with new.open("w", encoding="utf-8") as file:
                json.dump(self._record, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._folder / RECORD)
        self._recorded = time.monotonic()


def _read_record(folder: Path) -> dict[str, Any]:
    """The record of a folder; empty where there is none.

    Raises:
      ValueError: it cannot be read, or the files hold less than it says.
    """
    if not (folder / RECORD).exists():
        return {}
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ValueError(f"{RECORD} is of format {record['format']}, not {_FORMAT}")
        if missing := _ENTRIES - set(record):
            raise ValueError(f"{RECORD} lacks {', '.join(sorted(missing))}")
        arrays, items = record["arrays"], record["items"]
        sizes = [items * _row_bytes(described) for described in arrays]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{RECORD} is damaged ({error!r})") from error
    names = [f"features{index}.bin" for index in range(len(arrays) - 1)] + ["labels.bin"]
    for name, size in zip(names, sizes, strict=True):
        there = (folder / name).stat().st_size if (folder / name).exists() else 0
        if there < size or (record["complete"] and there != size):
            raise ValueError(
                f"{name} holds {there:,} bytes, and {RECORD} speaks of {items:,} items, {size:,} "
                "bytes: it is damaged or was copied in part"
            )
    return record


def _described(features: Features) -> list[dict[str, Any]]:
    """Name, precision and shape (without the items) of each array that is kept."""
    arrays = [
        {
            "name": f"features{jax.tree_util.keystr(path)}",
            "dtype": jnp.dtype(leaf.dtype).name,
            "shape": list(leaf.shape[1:]),
        }
        for path, leaf in jax.tree.leaves_with_path(features)
    ]
    return [*arrays, {"name": "labels", "dtype": "int32", "shape": []}]


def _row_bytes(described: Mapping[str, Any]) -> int:
    return int(np.prod(described["shape"], dtype=np.int64)) * jnp.dtype(described["dtype"]).itemsize
