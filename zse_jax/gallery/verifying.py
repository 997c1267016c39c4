"""Looking over an index: is it whole, and are the photos on disk still those it knows?"""

import os
from typing import NamedTuple

import numpy as np

from zse_jax.gallery.tables import Tables


class Verification(NamedTuple):
    """What was found wrong in an index.

    Attributes:
      photos: how many there are.
      refused: files that were kept out: name and reason.
      twice: paths that are there more than once.
      damaged: paths of photos whose embedding or thumbnail cannot be right.
      gone: paths whose files are no longer there.
      changed: paths whose files are newer than the index; `add` them again.
    """

    photos: int
    refused: list[tuple[str, str]]
    twice: list[str]
    damaged: list[str]
    gone: list[str]
    changed: list[str]


def verify(index: str | os.PathLike) -> Verification:
    """Reads everything of an index but features, and looks at every file it names.

    Raises:
      FileNotFoundError, ValueError: as `Index`, or a part of it cannot be read.
    """
    table = Tables(index)
    columns = table.columns("id", "path", "file", "size", "modified", "thumbnail")
    paths = columns.column("path").to_pylist()
    ids = columns.column("id").to_pylist()
    lengths = [np.linalg.norm(some, axis=1) for some, _ in table.embedding_batches()]
    good = np.abs(np.concatenate([np.zeros(0), *lengths]) - 1) < 1e-2  # no if it is not a number
    good &= np.array([bool(t) for t in columns.column("thumbnail").to_pylist()], bool)
    seen: set[str] = set()
    twice = [path for one, path in zip(ids, paths, strict=True) if one in seen or seen.add(one)]  # type: ignore[func-returns-value]
    gone, changed = [], []
    for name, file, size, modified in zip(
        paths, *(columns.column(c).to_pylist() for c in ("file", "size", "modified")), strict=True
    ):
        try:
            status = os.stat(file)  # noqa: PTH116 - bytes: the name may be no text
        except OSError:
            gone.append(name)
            continue
        if (status.st_size, status.st_mtime_ns) != (size, modified):
            changed.append(name)
    refused = table.refused()
    damaged = [path for path, fine in zip(paths, good, strict=True) if not fine]
    return Verification(len(paths), refused, twice, damaged, gone, changed)
