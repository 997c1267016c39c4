"""Looks at every image once: whether it decodes, whether it is blank, and a digest of its pixels.

Only those few bytes of an image are kept, so memory hardly grows with the data set.
"""

import hashlib
import multiprocessing
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import tqdm
from jaxtyping import UInt8

from data_pipelines import images
from data_pipelines.builders import folders

_PARALLEL_FROM = 2000
"""Below this many files, starting processes takes longer than decoding."""


class Inspected(NamedTuple):
    """What is known of one image.

    Attributes:
      unreadable: why it does not decode; "" if it does.
      digest: 16 bytes, equal if and only if size and RGB pixels are; b"" if it does not decode.
      one_colour: nothing is to be seen on it.
      inkless: no pixel is dark enough to count as ink (R + G + B <= 300).
    """

    unreadable: str = ""
    digest: bytes = b""
    one_colour: bool = False
    inkless: bool = False


def inspect(file: folders.ImageFile) -> Inspected:
    """Reads and decodes one image completely."""
    try:
        rgb = images.decode(file.read())
    except (images.UnreadableImageError, OSError) as error:
        return Inspected(unreadable=str(error))
    return Inspected("", _digest(rgb), bool((rgb == rgb[0, 0]).all()), not _has_ink(rgb))


def inspect_all(files: Sequence[folders.ImageFile]) -> dict[str, Inspected]:
    """Name -> what is known of each image; on all cores, with a progress bar and the time left."""
    progress = {
        "total": len(files),
        "desc": "Checking images",
        "unit": " images",
        "disable": not files,
    }
    if len(files) < _PARALLEL_FROM:
        found = list(tqdm.tqdm(map(inspect, files), **progress))
    else:
        with multiprocessing.get_context("spawn").Pool() as pool:
            found = list(tqdm.tqdm(pool.imap(inspect, files, chunksize=64), **progress))
    return {file.name: result for file, result in zip(files, found, strict=True)}


def _digest(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(rgb).data, digest_size=16)
    digest.update(repr(rgb.shape).encode())  # 2 x 8 and 8 x 2 pixels of one colour differ.
    return digest.digest()


def _has_ink(rgb: UInt8[np.ndarray, "h w 3"]) -> bool:
    red, green, blue = cv2.split(rgb)
    return bool((red.astype(np.uint16) + green + blue <= images.INK_MAX_SUM).any())
