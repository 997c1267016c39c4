"""Where the features of a data set are kept: on the device, in host memory or on disk.

`feature_files` is the disk.
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
import psutil  # type: ignore[import-untyped]
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped

from zse_jax.retrievers.base import Features

Place = Literal["device", "host", "disk"]

Devices = Collection[jax.Device]

PLACES: tuple[Place, ...] = ("device", "host", "disk")

# Shares of the free memory that the features of one modality may take: the other one comes too,
# and on the device scoring needs the rest for its tiles.
_DEVICE_SHARE, _HOST_SHARE = 0.25, 0.5


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where features are kept, and in which precision.

    Attributes:
      where: "device" (on a mesh: whole on every device, so that any of them can take any rows),
        "host", "disk", or "auto": by size, on the device where it is no CPU and they take at most
        a quarter of its free memory; else on disk with a folder; else in host memory while they
        take at most half of what is free of it; else on disk.
      dtype: "bfloat16" halves floating-point features of a float32 system; None keeps them.
      folder: keeps the features for later: finished batches are recorded, an interrupted encoding
        goes on, a finished one is read. Local, since files are mapped into memory. Without it,
        features on disk lie in a file that vanishes with the process.
      key: says which images are encoded (data set, split, image size, stride, ...): features of
        other images in the folder are an error. Needed with a folder.

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
                f"Features kept in {os.fspath(self.folder)} need a key that says which images they "
                'are of, such as key="sketchy/zeroshot1/224": without it, those of other images '
                "could be taken for them later."
            )

    def place(self, size: int | None, devices: Devices) -> Place:
        """Where features of `size` bytes (None: not known) are kept, given the devices in use.

        With several processes, all get the same answer and all must ask.
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
        """Nothing yet of what is to end in `place`."""
        self.items = 0
        self.place = place
        self._chunks: list[Features] = []
        self._labels: list[np.ndarray] = []

    def append(self, features: Features, labels: Int[np.ndarray, " b"], batch_size: int) -> None:
        """Keeps the real images of a batch."""
        del batch_size
        self._chunks.append(features)
        self._labels.append(labels.astype(np.int32))
        self.items += len(labels)

    def close(self) -> None:
        """Nothing of it outlives the process."""

    def check_structure(self, features: Features) -> None:
        """They come from this process, all alike."""

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
    """Some rows of features on the host; of memory-mapped ones nothing else stays in memory."""
    if not isinstance(array, np.memmap):
        return array[rows]
    found = np.array(array[rows])
    mapped = getattr(array, "_mmap", None)
    # What was read would count as this process's memory until the machine runs short of it.
    if mapped is not None and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    return found


def free_device_memory(devices: Devices) -> int:
    """Bytes free on the fullest of this process's `devices`; 0 on a CPU, which has none of its own.

    Devices that do not report their memory count as full.
    """
    stats = [d.memory_stats() for d in devices if d.process_index == jax.process_index()]
    return min(
        (s["bytes_limit"] - s["bytes_in_use"] if s and "bytes_limit" in s else 0 for s in stats),
        default=0,
    )


def free_host_memory() -> int:
    """Bytes that this process can still take: of the machine, and of its container's limit."""
    available = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # No such control group, or "max".
        return available
    return min(available, max(0, limit - psutil.Process().memory_info().rss))


def across_processes(values: Sequence[int | bool]) -> Int[np.ndarray, "process n"]:
    """The values of every process, in each; all must ask."""
    row = np.asarray(values, np.int32)
    if jax.process_count() == 1:
        return row[None]
    return np.asarray(multihost_utils.process_allgather(row))


def _joined(chunks: list[Features]) -> list[np.ndarray]:
    """Whole arrays, one for each leaf.

    Empties `chunks`, and frees each piece once it is copied: the system commits an empty array's
    pages as they are written, so features that fill half of the memory never lie in it twice.
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
