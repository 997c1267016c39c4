"""`doodles` as a pure function of a seed: the instances, their poses, and both images of each.

Every random choice comes from a generator seeded by (seed, class, index, purpose), so an instance
does not depend on the other instances, their order or the number of processes.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.builders.doodles import nature, photo, sketch, things, vehicles
from data_pipelines.builders.doodles.classes import SEEN, UNSEEN
from data_pipelines.builders.doodles.parts import Part, turned

Modality = Literal["sketch", "photo"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
CLASSES = tuple(sorted(SEEN + UNSEEN))
_DRAW = {
    name: next(getattr(m, name) for m in (nature, things, vehicles) if hasattr(m, name))
    for name in CLASSES
}
SIZE = 64
"""Side of every image, in pixels."""


@dataclasses.dataclass(frozen=True)
class Doodle:
    """One image of one instance.

    Attributes:
      class_name: one of `CLASSES`.
      instance: id shared by a photo and its sketch, e.g. "house_0012".
      name: relative path, e.g. "photo/house/house_0012.png".
      image: uint8 [64, 64, 3].
    """

    class_name: str
    instance: str
    name: str
    image: UInt8[np.ndarray, "64 64 3"]


def generate(
    seed: int = 0,
    instances_per_class: int = 48,
    *,
    modality: Modality,
    classes: Sequence[str] = CLASSES,
    workers: int | None = None,
) -> Iterator[Doodle]:
    """Draws the instances of each class, class by class, in one modality.

    Args:
      seed: each seed gives another data set.
      instances_per_class: a larger number adds instances to those of a smaller one.
      modality: "photo" or "sketch"; the same seed gives both images of the same instances.
      classes: a subset of `CLASSES`.
      workers: number of drawing processes; 0: draw in this process; None: one per CPU core.

    Raises:
      ValueError: for an unknown class or modality.
    """
    unknown = sorted(set(classes) - set(CLASSES))
    if unknown or modality not in MODALITIES:
        raise ValueError(
            f"doodles cannot draw modality {modality!r} of classes {unknown or list(classes)}. Use "
            f"'sketch' or 'photo' and classes among {', '.join(CLASSES)}."
        )
    jobs = [(c, i) for c in classes for i in range(instances_per_class)]
    task = functools.partial(_doodle, seed=seed, modality=modality)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers == 0:
        yield from itertools.starmap(task, jobs)
        return
    # Not fork: the threads of TensorFlow and JAX do not support it.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(task, *zip(*jobs, strict=True), chunksize=16)


def render(
    class_name: str, index: int, modality: Modality, seed: int = 0
) -> UInt8[np.ndarray, "64 64 3"]:
    """One image of instance `index` of a class."""
    parts = posed(class_name, index, seed)
    draw = photo.draw if modality == "photo" else sketch.draw
    return draw(parts, SIZE, random(seed, class_name, index, modality))


@functools.cache
def content_digest() -> str:
    """A digest of one drawing of each class: another version of a library may draw differently."""
    digest = hashlib.blake2b(digest_size=8)
    for number, class_name in enumerate(CLASSES):
        digest.update(render(class_name, 0, MODALITIES[number % 2]).tobytes())
    return digest.hexdigest()


def posed(class_name: str, index: int, seed: int = 0) -> list[Part]:
    """The parts of an instance, placed in the frame; coordinates are in [0, 1]."""
    rng = random(seed, class_name, index, "parts")
    parts = _DRAW[class_name](rng)
    flip, stretch = rng.choice([-1, 1]), rng.uniform(0.88, 1.14)
    angle, extent = rng.uniform(-10, 10), rng.uniform(0.76, 0.93)
    moved = [
        dataclasses.replace(
            p, loops=tuple(turned(loop * [flip * stretch, 1], angle) for loop in p.loops)
        )
        for p in parts
    ]
    points = np.concatenate([loop for p in moved for loop in p.loops])
    low, high = points.min(0), points.max(0)
    scale = extent / (high - low).max()
    free = (1 - scale * (high - low)) / 2 - 0.03
    center = 0.5 + rng.uniform(-1, 1, 2) * np.clip(free, 0, 0.1)
    return [
        dataclasses.replace(
            p,
            loops=tuple((loop - (low + high) / 2) * scale + center for loop in p.loops),
            width=p.width * scale,
        )
        for p in moved
    ]


def _doodle(class_name: str, index: int, *, seed: int, modality: Modality) -> Doodle:
    cv2.setNumThreads(1)  # The images are small; several processes use the cores better.
    instance = f"{class_name}_{index:04d}"
    image = render(class_name, index, modality, seed)
    return Doodle(class_name, instance, f"{modality}/{class_name}/{instance}.png", image)


def random(seed: int, class_name: str, index: int, purpose: str) -> np.random.Generator:
    """The random generator of an instance; `purpose`: "parts", "photo" or "sketch"."""
    return np.random.default_rng([seed, zlib.crc32(f"{class_name}/{purpose}".encode()), index])
