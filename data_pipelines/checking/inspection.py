"""Reads every image once: whether it decodes, whether it is blank, and a digest of its pixels.

Keeps only a few bytes per image.
"""

import functools
import hashlib
import multiprocessing
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from jaxtyping import UInt8

from data_pipelines import images
from data_pipelines.builders import folders

PARALLEL_FROM = 2000
"""With fewer files, starting processes takes longer than decoding."""


class Inspected(NamedTuple):
    """The properties of one image.

    Attributes:
      unreadable: why it does not decode; "" if it does.
      digest: 16 bytes, equal if and only if size and RGB pixels are equal; b"" if unreadable.
      one_colour: whether all pixels are equal.
      inkless: whether no pixel is dark enough to count as ink (R + G + B <= 300).
      damaged_metadata: whether its metadata cannot be read, so that it may lie on its side.
    """

    unreadable: str = ""
    digest: bytes = b""
    one_colour: bool = False
    inkless: bool = False
    damaged_metadata: bool = False


def inspect(file: folders.ImageFile) -> Inspected:
    """Reads and decodes one image."""
    try:
        decoded = images.decode_file(file.read())
    except (images.UnreadableImageError, OSError) as error:
        return Inspected(unreadable=str(error))
    rgb = decoded.rgb
    one_colour, inkless = bool((rgb == rgb[0, 0]).all()), not images.ink(rgb).any()
    return Inspected("", _digest(rgb), one_colour, inkless, decoded.damaged_metadata)


def inspect_all(files: Sequence[folders.ImageFile]) -> dict[str, Inspected]:
    """Name -> properties of each image; uses all cores and shows a progress bar."""
    progress = functools.partial(
        tqdm.tqdm, total=len(files), desc="Checking images", unit=" images", disable=not files
    )
    if len(files) < PARALLEL_FROM:
        found = list(progress(map(inspect, files)))
    else:
        with multiprocessing.get_context("spawn").Pool() as pool:
            found = list(progress(pool.imap(inspect, files, chunksize=64)))
    return {file.name: result for file, result in zip(files, found, strict=True)}


def _digest(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(rgb).data, digest_size=16)
    digest.update(repr(rgb.shape).encode())  # Distinguishes 2 x 8 from 8 x 2 pixels.
    return digest.digest()
