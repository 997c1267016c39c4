"""Features of a data set in files, written batch by batch.

The files are raw arrays that numpy maps into memory, and a record that describes them:

    FOLDER/photo/record.json     retriever, data, shapes, and number of finished batches
    FOLDER/photo/features0.bin   one file for each array of the features, row-major, item by item
    FOLDER/photo/labels.bin      int32

The record is replaced atomically, after the batches that it counts have reached the disk: a process
that is killed at any time leaves a folder from which the next one can resume. Several processes may
share a folder: they write the same bytes to the same places.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from data_pipelines import paths
from zse_jax.retrieval.storage import Place, across_processes
from zse_jax.retrievers.base import Features

logger = logging.getLogger(__name__)

RECORD = "record.json"

_FORMAT = 1

# Interval between records; a killed process loses no more work than this.
_RECORD_SECONDS = 5.0


class OnDisk:
    """Features in files, written batch by batch.

    Attributes:
      items: number of stored images.
      finished: number of batches they came in.
      place: where the features go in the end; None: not decided yet.
      complete: whether the folder contained the whole data set when it was opened.
    """

    def __init__(
        self,
        folder: Path | None,
        about: Mapping[str, Any],
        batches: int,
        place: Place | None = None,
    ):
        """Opens a folder, or temporary files.

        Args:
          folder: a new folder or one of an earlier call, finished or not; None: temporary files.
          about: identifies the retriever and the images; plain values, by name.
          batches: number of batches, 0 if it is not known.
          place: see the attributes.

        A damaged folder is used as an empty one, with a warning.

        Raises:
          ValueError: the folder contains something else; the message says what.
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
        """Stores the real images of a batch of `batch_size` with padding.

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
                f"Continue with {self._record['batch_size']}, or delete the folder to start again."
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
        """Records the finished batches when an error or an interrupt ends the encoding."""
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
            file.close()  # The mapping stays valid.
        return jax.tree.unflatten(structure, arrays[:-1]), np.array(arrays[-1])

    def check_structure(self, features: Features) -> None:
        """Raises ValueError unless the files contain arrays of this structure, type and shape."""
        made = _described(features)
        if made != self._record["arrays"]:
            raise ValueError(
                f"{self._folder} contains {self._record['arrays']}, but the retriever returns "
                f"{made}. Delete the folder to encode again, or choose another one."
            )

    def _open(self, folder: Path) -> None:
        """Resumes from the record; all processes agree on what is finished."""
        found = paths.read_json(folder / RECORD) or {}
        problem = self._problem(found) if found else ""
        if found and not problem and (damage := self._damage(folder, found)):
            logger.warning("%s: %s. The features are encoded again.", folder, damage)
            found = {}
        state = [False] * 4
        if not problem:
            state = [True, *(found.get(name, 0) for name in ("complete", "finished", "items"))]
        sound, complete, finished, items = across_processes(state).min(axis=0).tolist()
        if not sound:
            raise ValueError(
                f"{folder}: {problem or 'another process cannot use it'}. Delete the folder to "
                "encode again, or choose another one."
            )
        if not found:
            return
        self.complete, self.finished, self.items = bool(complete), finished, items
        self._record |= {name: found[name] for name in ("arrays", "batch_size")}
        self._open_files()

    def _problem(self, found: Mapping[str, Any]) -> str:
        """Why the features of this record are not the wanted ones; empty if they are."""
        if found.get("format", _FORMAT) != _FORMAT:
            return f"{RECORD} has format {found['format']}, not {_FORMAT}"
        about = found.get("about", {})
        for name, value in self._record["about"].items():
            if about and (other := about.get(name)) != value:
                return f"these are features of another {name}, {other!r} and not {value!r}"
        if not found.get("complete", True) and found.get("batches") != self._record["batches"]:
            return (
                f"these features were being encoded in {found.get('batches')} batches, and now "
                f"there are {self._record['batches']}: another batch size, or other images"
            )
        return ""

    def _damage(self, folder: Path, found: Mapping[str, Any]) -> str:
        """What is missing in the folder with this record; empty if nothing is."""
        try:
            return self._missing(folder, found)
        except (KeyError, TypeError) as error:
            return f"{RECORD} is damaged ({error!r})"

    def _missing(self, folder: Path, found: Mapping[str, Any]) -> str:
        if missing := {*self._record, "finished", "items", "complete"} - set(found):
            return f"{RECORD} lacks {', '.join(sorted(missing))}"
        for index, described in enumerate(found["arrays"]):
            file = folder / _file_name(found["arrays"], index)
            size = found["items"] * _row_bytes(described)
            there = file.stat().st_size if file.exists() else 0
            if there < size or (found["complete"] and there != size):
                return (
                    f"{file.name} has {there:,} bytes, but the {found['items']:,} items of "
                    f"{RECORD} take {size:,}: it is damaged or an incomplete copy"
                )
        return ""

    def _begin(self, features: Features, batch_size: int) -> None:
        """Creates the files for features like those of the first batch."""
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
        arrays = self._record["arrays"]
        if self._folder is None:
            self._files = [tempfile.TemporaryFile() for _ in arrays]  # noqa: SIM115
            return
        for index in range(len(arrays)):
            path = self._folder / _file_name(arrays, index)
            if not self.complete:  # Not truncated: another process may have written to it.
                path.touch()
            self._files.append(path.open("rb" if self.complete else "r+b"))

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
            paths.replace(self._folder / RECORD, json.dumps(self._record, indent=2))
        self._recorded = time.monotonic()


def _described(features: Features) -> list[dict[str, Any]]:
    """Name, type and shape (without the items) of each stored array."""
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


def _file_name(arrays: Sequence[Any], index: int) -> str:
    return "labels.bin" if index == len(arrays) - 1 else f"features{index}.bin"
