"""Resumable streams of batches, and their transfer to the devices.

Adds to grain: a checkpoint that does not depend on the number of workers, the length of finite
streams, and global arrays on a mesh of several hosts.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
import jax
from absl import flags

Batch = dict[str, Any]
"""Name -> array; the leading axis is the item or sample."""


class Batches(grain.IterDataset):
    """Batches, prefetched by processes or threads, with resumable iterators.

    The state of grain's own iterators depends on the number of workers. Here it is the number of
    batches returned so far, so that training can resume with another number of workers.
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
        """Grain's iterator over the batches, starting at batch `start`."""
        # Each element is a whole batch, so a few threads keep every core busy.
        threads = 1 if self._workers else min(4, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        remaining = self._batches[start:].to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads absl flags; notebooks do not parse any.
                flags.FLAGS.mark_as_parsed()
            remaining = remaining.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers),
                worker_init_fn=_follow_the_parent,
            )
        return iter(remaining)


def _follow_the_parent(index: int, count: int) -> None:
    """Makes a worker end when its parent does, and not earlier.

    A terminal and SLURM send Ctrl-C and SIGUSR1 to all processes of a program: only the parent
    handles them. Grain's workers would outlive a parent that is killed.
    """
    del index, count

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    for number in {signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)}:
        signal.signal(number, signal.SIG_IGN)


class _BatchIterator(grain.DatasetIterator):
    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        self._next_index = 0
        self._reader: Any = None

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if self._next_index >= len(self._batches):
            self._close_reader()  # Ends worker processes without waiting for the garbage collector.
            raise StopIteration
        self.start_prefetch()
        batch = next(self._reader)
        self._next_index += 1
        return batch

    def start_prefetch(self) -> None:
        if self._reader is None:  # Lazily, so that workers start after the state is restored.
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


class OnDevice(grain.experimental.ThreadPrefetchIterDataset):
    """Batches as global `jax.Array`s, with a length; see `to_device`."""

    def __init__(self, batches: Batches, sharding: jax.sharding.Sharding, buffer_size: int):
        moved = batches.map(functools.partial(jax.make_array_from_process_local_data, sharding))
        super().__init__(moved, prefetch_buffer_size=buffer_size)
        self._count = len(batches)

    def __len__(self) -> int:
        return self._count


def to_device(batches: Batches, sharding: jax.sharding.Sharding, buffer_size: int = 2) -> OnDevice:
    """Copies the next `buffer_size` batches to the devices while the current one is processed.

    Each process provides its shard of the global batch. The state of the iterators counts the
    batches returned, not the prefetched ones.

    Args:
      batches: the batches of this process.
      sharding: sharding of the arrays along their leading axis.
      buffer_size: number of prefetched batches on the devices.

    Returns:
      A data set of `jax.Array`s with the global shape.
    """
    return OnDevice(batches, sharding, buffer_size)
