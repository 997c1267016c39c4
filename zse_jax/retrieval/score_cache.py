"""Scores on disk, so that an interrupted scoring can resume.

    FOLDER/scores.bin    float32 [Q, G], row-major, NaN where a pair is not scored yet
    FOLDER/record.json   retriever, features and ranking of the scores, and their shape

No score is NaN, so every value on disk is either valid or still to be computed, whenever a process
was killed and whatever its tiles were. The record is written last and atomically: without it,
scoring starts from the beginning.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from data_pipelines import paths
from zse_jax.retrieval.encoding import fetched
from zse_jax.retrieval.storage import across_processes
from zse_jax.retrievers.base import Features

logger = logging.getLogger(__name__)

_FORMAT = 1
_CHUNK = 2**22
_SAMPLES = 64


class ScoreFile:
    """The scores of Q sketches with G photos in a folder. Only the first process reads or writes.

    Attributes:
      finished: number of pairs that were scored when it was opened.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Mapping[str, Any]):
        """Opens or creates the folder. With several processes, all must call it.

        Args:
          folder: created if it does not exist; used as an empty one, with a warning, if it is
            damaged.
          about: what the scores depend on; "shape" is [Q, G].

        Raises:
          ValueError: the folder contains scores of something else.
        """
        self._folder = Path(folder)
        self._about = {"format": _FORMAT, **about}
        self._shape = tuple(about["shape"])
        failure: Exception | None = None
        if jax.process_index() == 0:
            try:
                self._open()
            except (OSError, ValueError) as error:
                failure = error
        if across_processes([failure is not None]).any():
            raise failure or ValueError(f"The first process cannot use {folder}; see its error.")
        self.finished = int(self._broadcast(np.asarray(self._count(), np.float64)))

    def block(self, rows: slice) -> Float[np.ndarray, "q g"]:
        """The scores of some sketches, NaN where not computed yet, in every process.

        On the first process, writing to the array writes to the file.
        """
        if jax.process_index() == 0:
            block: np.ndarray = self._mapped(rows)
        else:
            block = np.empty((rows.stop - rows.start, self._shape[1]), np.float32)
        if jax.process_count() > 1:
            received = self._broadcast(block)
            block = block if jax.process_index() == 0 else received
        return block

    @staticmethod
    def _broadcast(values: np.ndarray) -> np.ndarray:
        if jax.process_count() == 1:
            return values
        return np.array(multihost_utils.broadcast_one_to_all(values))

    @property
    def _scores(self) -> Path:
        return self._folder / "scores.bin"

    def _mapped(self, rows: slice) -> np.memmap:
        shape = (rows.stop - rows.start, self._shape[1])
        offset = 4 * rows.start * self._shape[1]
        return np.memmap(self._scores, np.float32, mode="r+", offset=offset, shape=shape)

    def _count(self) -> int:
        if jax.process_index():
            return 0
        step = max(1, _CHUNK // self._shape[1])
        starts = range(0, self._shape[0], step)
        blocks = (self._mapped(slice(i, min(i + step, self._shape[0]))) for i in starts)
        return sum(int((~np.isnan(block)).sum()) for block in blocks)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        record = self._folder / "record.json"
        found = paths.read_json(record)
        if found is None:
            self._begin(record)
            return
        wrong = [key for key in {**self._about, **found} if found.get(key) != self._about.get(key)]
        if wrong:
            differences = "; ".join(
                f"{key} was {found.get(key)!r} and is {self._about.get(key)!r}" for key in wrong
            )
            raise ValueError(
                f"{self._folder} contains scores of something else: {differences}. Choose another "
                "folder, or delete it to score again."
            )
        size = self._scores.stat().st_size if self._scores.exists() else 0
        if size != 4 * np.prod(self._shape, dtype=np.int64):
            logger.warning(
                "%s has %d bytes, but %d x %d scores take 4 bytes each: it is damaged, and all "
                "pairs are scored again.",
                self._scores,
                size,
                *self._shape,
            )
            self._begin(record)

    def _begin(self, record: Path) -> None:
        left = int(np.prod(self._shape, dtype=np.int64))
        with self._scores.open("wb") as file:
            empty = np.full(min(_CHUNK, left), np.nan, np.float32)
            while left:
                file.write(empty[:left].data)
                left -= min(left, len(empty))
            file.flush()
            os.fsync(file.fileno())
        paths.replace(record, json.dumps(self._about, indent=2))


def digest(features: Features) -> str:
    """A digest of features: shapes, types, and the values of some items, evenly spread.

    With several processes, all must call it.
    """
    result = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree.leaves_with_path(features):
        items = np.unique(np.linspace(0, len(leaf) - 1, _SAMPLES).astype(np.int64))
        taken = jnp.take(leaf, items, axis=0) if isinstance(leaf, jax.Array) else leaf[items]
        rows = np.ascontiguousarray(next(fetched([taken])))
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {rows.dtype.name}".encode())
        result.update(rows.reshape(-1).view(np.uint8).data)
    return result.hexdigest()
