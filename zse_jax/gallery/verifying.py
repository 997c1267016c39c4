"""Verifies an index: are its rows valid, and do they match the files on disk?"""

import collections
import os
from typing import NamedTuple

import numpy as np

from data_pipelines.files import is_gone, message
from zse_jax.gallery.photos import path_of, state_of
from zse_jax.gallery.tables import Tables


class Verification(NamedTuple):
    """The problems of an index.

    Attributes:
      photos: number of photos.
      refused: files that were skipped: name and reason.
      twice: paths that occur more than once.
      damaged: paths of photos with an invalid embedding or thumbnail.
      gone: paths of photos whose files no longer exist.
      changed: paths of photos whose files have changed; `add` updates them.
      closed: photos whose files cannot be opened: path and reason.
    """

    photos: int
    refused: list[tuple[str, str]]
    twice: list[str]
    damaged: list[str]
    gone: list[str]
    changed: list[str]
    closed: list[tuple[str, str]]


def verify(index: str | os.PathLike) -> Verification:
    """Reads the whole index except features, and compares it with the files on disk.

    Raises:
      FileNotFoundError, ValueError: as `Index`, or a part of the index cannot be read.
    """
    table = Tables(index)
    columns = table.columns("id", "path", "file", "size", "modified", "thumbnail")
    rows = columns.to_pylist()
    lengths = [np.linalg.norm(some, axis=1) for some, _ in table.embedding_batches()]
    unit = np.abs(np.concatenate([np.zeros(0), *lengths]) - 1) < 1e-2  # False for NaN
    damaged = [
        r["path"] for r, fine in zip(rows, unit, strict=True) if not (fine and r["thumbnail"])
    ]
    counts = collections.Counter(row["id"] for row in rows)
    twice = list(dict.fromkeys(row["path"] for row in rows if counts[row["id"]] > 1))
    gone, changed, closed = [], [], []
    for row in rows:
        file = path_of(row["file"])
        try:
            if state_of(file.stat()) != (row["size"], row["modified"]):
                changed.append(row["path"])
        except OSError as error:
            if is_gone(file):
                gone.append(row["path"])
            else:
                closed.append((row["path"], message(error)))
    return Verification(len(rows), table.refused(), twice, damaged, gone, changed, closed)
