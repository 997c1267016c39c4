"""Where the features of a data set are kept: on the device, in host memory or on disk.

`feature_cache` implements the disk.
"""

import collections
import dataclasses
import math
import mmap
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped

from zse_jax.retrievers.base import Features

Place = Literal["device", "host", "disk"]

Devices = Collection[jax.Device]

PLACES: tuple[Place, ...] = ("device", "host", "disk")

# Shares of the free memory for the features of one modality. The other modality needs as much, and
# on the device scoring needs the rest.
_DEVICE_SHARE, _HOST_SHARE = 0.25, 0.5


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where features are kept, and in which precision.

    Attributes:
      where: "device" (replicated over a mesh, so that any device can take any rows), "host",
        "disk", or "auto": on the device if it is not a CPU and they take at most a quarter of its
        free memory; else on disk if there is a folder; else in host memory if they take at most
        half of its free part; else on disk.
      dtype: "bfloat16" halves the size of a float32 system's features; None keeps their precision.
      folder: a local folder that keeps the features: finished batches are recorded, an interrupted
        encoding resumes, a finished one is read. Without it, features on disk are in a temporary
        file of the process.
      key: identifies the images (data set, split, image size, stride, ...): features of other
        images in the folder are an error. Required with a folder.

    Raises:
      ValueError: an unknown place or precision, or a folder without a key.
    """

    where: Literal["auto", "device", "host", "disk"] = "auto"
    dtype: Literal["bfloat16"] | None = None
    folder: str | os.PathLike[str] | None = None
    key: str = ""

    def __post_init__(self) -> None:
        if self.where not in ("auto", *PLACES):
            raise ValueError(f"Storage where={self.where!r}: choose auto, {', '.join(PLACES)}.")
        if self.dtype not in (None, "bfloat16"):
            raise ValueError(
                f'Storage dtype={self.dtype!r}: choose "bfloat16", or None for the retriever\'s.'
            )
        if self.folder is not None and not self.key:
            raise ValueError(
                f"Features kept in {os.fspath(self.folder)} need a key that identifies their "
                'images, such as key="sketchy/zeroshot1/224": without it, they could be confused '
                "with features of other images."
            )

    def place(self, size: int | None, devices: Devices) -> Place:
        """Where features of `size` bytes (None: not known) are kept, given the devices in use.

        With several processes, all must call it and all get the same answer.
        """
        if self.where != "auto":
            return self.where
        if size is None:
            return "host" if self.folder is None else "disk"
        if size <= _DEVICE_SHARE * free_device_memory(devices):
            here: Place = "device"
        elif self.folder is None and size <= _HOST_SHARE * free_host_memory():
            here = "host"
        else:
            here = "disk"
        return PLACES[int(across_processes([PLACES.index(here)]).max())]


class InMemory:
    """Features in host memory, batch by batch, then as whole arrays."""

    def __init__(self, place: Place):
        """Empty; `place` is where the features go in the end."""
        self.items = 0
        self.place = place
        self._chunks: list[Features] = []
        self._labels: list[np.ndarray] = []

    def append(self, features: Features, labels: Int[np.ndarray, " b"], batch_size: int) -> None:
        """Stores the real images of a batch."""
        del batch_size
        self._chunks.append(features)
        self._labels.append(labels.astype(np.int32))
        self.items += len(labels)

    def close(self) -> None:
        """Does nothing: there is nothing to record."""

    def check_structure(self, features: Features) -> None:
        """Does nothing: all features come from this process."""

    def result(self, structure: Any) -> tuple[Features, Int[np.ndarray, " n"]]:
        """All features, as a pytree of `structure`, and all labels. Empties this object."""
        return jax.tree.unflatten(structure, _joined(self._chunks)), np.concatenate(self._labels)


def item_bytes(features: Features) -> int:
    """Bytes that the features of one item take."""
    leaves = jax.tree.leaves(features)
    return sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)


def read(
    array: Shaped[np.ndarray, "n ..."], rows: slice | Int[np.ndarray, "..."]
) -> Shaped[np.ndarray, "..."]:
    """Some rows of features on the host; releases the pages of memory-mapped ones."""
    if not isinstance(array, np.memmap):
        return array[rows]
    found = np.array(array[rows])
    mapped = getattr(array, "_mmap", None)
    # Otherwise the pages count as this process's memory until the machine runs short of it.
    if mapped is not None and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    return found


def free_device_memory(devices: Devices) -> int:
    """Smallest free memory of this process's `devices`, in bytes; 0 on a CPU.

    Devices that do not report their memory count as full.
    """
    stats = [d.memory_stats() for d in devices if d.process_index == jax.process_index()]
    return min(
        (s["bytes_limit"] - s["bytes_in_use"] if s and "bytes_limit" in s else 0 for s in stats),
        default=0,
    )


def free_host_memory() -> int:
    """Bytes that this process can still allocate, by the machine and its container's limit."""
    available = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # No control group, or "max".
        return available
    return min(available, max(0, limit - psutil.Process().memory_info().rss))


def across_processes(values: Sequence[int | bool]) -> Int[np.ndarray, "process n"]:
    """The values of every process; all processes must call it."""
    row = np.asarray(values, np.int32)
    if jax.process_count() == 1:
        return row[None]
    return np.asarray(multihost_utils.process_allgather(row))


def _joined(chunks: list[Features]) -> list[np.ndarray]:
    """Concatenated arrays, one for each leaf.

    Empties `chunks` and frees each piece once it is copied. The system commits an empty array's
    pages as they are written, so memory never contains the features twice.
    """
    columns = [collections.deque(c) for c in zip(*map(jax.tree.leaves, chunks), strict=True)]
    chunks.clear()
    whole = []
    for pieces in columns:
        joined = np.empty((sum(map(len, pieces)), *pieces[0].shape[1:]), pieces[0].dtype)
        row = 0
        while pieces:
            piece = pieces.popleft()
            joined[row : row + len(piece)] = piece
            row += len(piece)
        whole.append(joined)
    return whole
