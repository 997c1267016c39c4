"""A checkpoint that a program of the gallery reads once, for the index and for searches."""

import contextlib
import dataclasses
import functools
import os
from typing import TypeAlias

from zse_jax.checkpoints import reading
from zse_jax.gallery.encoder import CompiledEncoder
from zse_jax.gallery.tables import Tables
from zse_jax.retrieval.encoding import fingerprint
from zse_jax.retrievers.base import Retriever


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read.

    Attributes:
      place: where it was read from.
      step: its step.
      retriever: its system.
    """

    place: str | os.PathLike
    step: int
    retriever: Retriever

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of the weights, `zse_jax.retrieval.encoding.fingerprint`."""
        return fingerprint(self.retriever)

    @functools.cached_property
    def encoder(self) -> CompiledEncoder:
        """The system with its compiled functions."""
        return CompiledEncoder(self.retriever)


Checkpoint: TypeAlias = str | os.PathLike | Loaded
"""What `zse_jax.load` reads, or a checkpoint that has been read."""


def load(checkpoint: Checkpoint) -> Loaded:
    """Reads a checkpoint, unless it has been read.

    Raises:
      FileNotFoundError, ValueError: as `zse_jax.load`.
    """
    if isinstance(checkpoint, Loaded):
        return checkpoint
    return Loaded(checkpoint, *reading.load_step(checkpoint))


def checkpoint_of(index: str | os.PathLike, checkpoint: Checkpoint | None = None) -> Loaded:
    """Reads the checkpoint of an index that may not exist yet.

    Args:
      index: its location.
      checkpoint: None: the recorded one, or for a new index the model of this package.

    Raises:
      FileNotFoundError, ValueError: as `zse_jax.load`; or the index is damaged.
    """
    if checkpoint is None:
        checkpoint = reading.DEFAULT
        with contextlib.suppress(FileNotFoundError):
            about = Tables(index).about
            checkpoint = reading.place_of(about["checkpoint"], about["step"])
    return load(checkpoint)
