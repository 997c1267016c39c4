"""Streams of batches that can be resumed anywhere, and their transfer to the devices.

What grain leaves open: a position that does not depend on the number of workers, a length for
finite streams, and global arrays on a mesh of several hosts.
"""

import os
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

Batch = dict[str, Any]
"""Name -> array with the item or sample as leading axis."""


class Batches(grain.IterDataset):
    """Batches, read ahead by processes or threads, whose iterators can be resumed anywhere.

    grain's own iterator state depends on the number of workers; here it is the number of batches
    handed out, so that training continues with other workers than it began with.
    """

    def __init__(self, batches: grain.MapDataset, workers: int):
        super().__init__()
        self._batches = batches
        self._workers = workers

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> grain.DatasetIterator:
        return _BatchIterator(self)

    def read_from(self, start: int) -> Iterator[Batch]:
        """Grain's iterator over the batches from number `start` on."""
        # An element is a whole batch: few, but enough to keep every core busy.
        threads = 1 if self._workers else min(4, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        remaining = self._batches[start:].to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads its flags; notebooks parse none.
                flags.FLAGS.mark_as_parsed()
            remaining = remaining.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers)
            )
        return iter(remaining)


class OnDevice(grain.IterDataset):
    """Batches as global arrays on the devices."""

    def __init__(
        self, batches: grain.IterDataset, sharding: jax.sharding.Sharding, buffer_size: int
    ):
        super().__init__(batches)
        self._sharding = sharding
        self._buffer_size = buffer_size

    def __len__(self) -> int:
        return len(self._parent)

    def __iter__(self) -> grain.DatasetIterator:
        return to_device(iter(self._parent), self._sharding, self._buffer_size)


class _BatchIterator(grain.DatasetIterator):
    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        self._next_index = 0
        self._reader: Any = None

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if self._next_index >= len(self._batches):
            self._close_reader()  # Worker processes would wait for the garbage collector.
            raise StopIteration
        self.start_prefetch()
        batch = next(self._reader)
        self._next_index += 1
        return batch

    def start_prefetch(self) -> None:
        if self._reader is None:  # Late, so that a restored state starts no worker in vain.
            self._reader = self._batches.read_from(self._next_index)
            self._reader.start_prefetch()

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next_index}

    def set_state(self, state: dict[str, int]) -> None:
        self._close_reader()
        self._next_index = int(state["next_index"])

    def close(self) -> None:
        super().close()
        self._close_reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _TransferIterator(grain.DatasetIterator):
    def __init__(self, batches: grain.DatasetIterator, sharding: jax.sharding.Sharding):
        super().__init__(batches)
        self._sharding = sharding

    def __next__(self) -> Batch:
        def transfer(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_process_local_data(self._sharding, array)

        return jax.tree.map(transfer, next(self._parent))

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


def to_device(
    batches: grain.IterDataset | grain.DatasetIterator,
    sharding: jax.sharding.Sharding,
    buffer_size: int = 2,
) -> OnDevice | grain.DatasetIterator:
    """Copies the next `buffer_size` batches to the device while the current one is computed.

    Each process gives its share of the global batch. The state of the iterators counts batches
    that were handed out, not those waiting.

    Args:
      batches: of this process; a data set, or an iterator of one.
      sharding: of the arrays, over their leading axis.
      buffer_size: batches held on the device, waiting.

    Returns:
      The same kind of thing, of `jax.Array`s with the global shape.
    """
    if isinstance(batches, grain.IterDataset):
        return OnDevice(batches, sharding, buffer_size)
    return grain.experimental.ThreadPrefetchDatasetIterator(
        _TransferIterator(batches, sharding), prefetch_buffer_size=buffer_size
    )
