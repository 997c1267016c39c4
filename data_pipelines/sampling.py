"""Which sketch meets which photos: one training sample, drawn at random from the seen classes.

A sampler is a pure function of a generator and of the items of each class. It returns positions of
items, not images, so that drawing is cheap and testable and the loader reads only what was drawn.
A new sampler is one function and one line in `SAMPLERS`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

ByClass = Sequence[Int[np.ndarray, "_"]]
"""For each class, the positions of its items."""


class Sample(NamedTuple):
    """One sample: positions among the sketches and among the photos."""

    sketches: Int[np.ndarray, "s"]
    photos: Int[np.ndarray, "p"]


Sampler = Callable[[np.random.Generator, ByClass, ByClass], Sample]


def quadruplet(
    rng: np.random.Generator, sketches_by_class: ByClass, photos_by_class: ByClass
) -> Sample:
    """Two pairs, as ZSE trains (Lin et al., CVPR 2023, section 4): one matches, one does not.

    Classes c != c' are uniform over the seen classes. Index 0 is a sketch and a photo of c; index
    1 another sketch of c (the same one if c has no other) and a photo of c'.

    Args:
      rng: the only source of randomness.
      sketches_by_class: at least two classes, none of them empty.
      photos_by_class: the same classes in the same order.

    Returns:
      Two sketches and two photos.
    """
    count = len(sketches_by_class)
    c = int(rng.integers(count))
    other_c = (c + int(rng.integers(1, count))) % count
    sketches, photos, other_photos = (
        sketches_by_class[c],
        photos_by_class[c],
        photos_by_class[other_c],
    )
    first = rng.integers(len(sketches))
    second = (first + rng.integers(1, max(2, len(sketches)))) % len(sketches)
    return Sample(
        sketches=sketches[[first, second]],
        photos=np.array([rng.choice(photos), rng.choice(other_photos)]),
    )


SAMPLERS: Mapping[str, Sampler] = {"quadruplet": quadruplet}
"""Sampler of each `Retriever.batch_kind`."""
