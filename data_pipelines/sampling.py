"""Samplers: draw the sketches and photos of one training sample from the seen classes.

A sampler is a pure function of a random generator and of the items, grouped by class or instance.
It returns positions of items, not images, so that drawing is cheap and the loader reads only the
drawn images. To add a sampler, write one function and add one line to `SAMPLERS`.

All samplers take the random generator, their only source of randomness, and the sketches and photos
of the same non-empty groups in the same order.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from data_pipelines.suggestions import suggest

ByClass = Sequence[Int[np.ndarray, "_"]]
"""For each class, the positions of its items."""

ByInstance = Sequence[ByClass]
"""For each class and each of its instances, the positions of the instance's items."""


class Sample(NamedTuple):
    """One sample: positions of sketches and positions of photos."""

    sketches: Int[np.ndarray, "s"]
    photos: Int[np.ndarray, "p"]


class Sampler(NamedTuple):
    """How a sample is drawn.

    Attributes:
      draw: `draw(rng, sketches, photos) -> Sample`, with items grouped by `level`.
      level: "class" or "instance".
      pairs: number of instance pairs that every class must have; 0: classes with fewer than two
        are skipped.
      distinct: whether the samples of a batch must all differ in class. The loader ensures this by
        passing one class at a time to `draw`.
      epochs: whether each sketch is drawn once per epoch, in random order. The loader ensures this
        by passing the `sketch_of_epoch` to `draw`.
    """

    draw: Callable[..., Sample]
    level: Literal["class", "instance"]
    pairs: int = 0
    distinct: bool = False
    epochs: bool = False


def quadruplet(
    rng: np.random.Generator, sketches_by_class: ByClass, photos_by_class: ByClass
) -> Sample:
    """A matching and a non-matching pair, as in ZSE (Lin et al., CVPR 2023, section 4).

    Classes c != c' are uniform over the seen classes. Index 0 is a sketch and a photo of c. Index 1
    is another sketch of c (the same one if c has only one) and a photo of c'.
    """
    c, other = _two_classes(rng, len(sketches_by_class))
    sketches = sketches_by_class[c]
    first = rng.integers(len(sketches))
    second = (first + rng.integers(1, max(2, len(sketches)))) % len(sketches)
    photos = [rng.choice(photos_by_class[c]), rng.choice(photos_by_class[other])]
    return Sample(sketches[[first, second]], np.array(photos))


def _two_classes(rng: np.random.Generator, count: int) -> tuple[int, int]:
    c = int(rng.integers(count))
    return c, (c + int(rng.integers(1, count))) % count


def instance_quadruplet(
    rng: np.random.Generator, sketches_by_instance: ByInstance, photos_by_instance: ByInstance
) -> Sample:
    """A `quadruplet` of instances of one class, for fine-grained retrieval; our reading.

    The class is uniform. Index 0 is a sketch and the photo it was drawn from. Index 1 is another
    sketch of that photo (the same one if there is only one) and another photo of the class, so that
    the two photos differ in instance but not in class. Every class needs at least two instances.
    """
    c = int(rng.integers(len(sketches_by_instance)))
    return quadruplet(rng, sketches_by_instance[c], photos_by_instance[c])


def triplet(
    rng: np.random.Generator, sketches_by_class: ByClass, photos_by_class: ByClass, number: int
) -> Sample:
    """A sketch, a photo of its class and a photo of another class, as in CLIP-AT (CVPR 2023).

    The sketch is `number` among those of all classes. The photo of its class and the other class
    are uniform. (The published code does not exclude the class of the sketch.)
    """
    ends = np.cumsum([len(sketches) for sketches in sketches_by_class])
    c = int(np.searchsorted(ends, number, side="right"))
    other = (c + int(rng.integers(1, len(ends)))) % len(ends)
    photos = [rng.choice(photos_by_class[c]), rng.choice(photos_by_class[other])]
    return Sample(sketches_by_class[c][[number - ends[c]]], np.array(photos))  # from the end


def instance_group(
    rng: np.random.Generator,
    sketches_by_instance: ByInstance,
    photos_by_instance: ByInstance,
    size: int = 4,
) -> Sample:
    """`size` instances of one class, a sketch and a photo of each, for CLIP-AT's fine-grained loss.

    The class is uniform; its instances are uniform and in random order. Sketch i was drawn from
    photo i. The other photos of the group, which have the same class, are hard negatives. `size` is
    K of the loss; every class needs at least `size` instances.
    """
    c = int(rng.integers(len(sketches_by_instance)))
    chosen = rng.choice(len(sketches_by_instance[c]), size, replace=False)
    return Sample(
        sketches=np.array([rng.choice(sketches_by_instance[c][i]) for i in chosen]),
        photos=np.array([rng.choice(photos_by_instance[c][i]) for i in chosen]),
    )


def class_group(
    rng: np.random.Generator, sketches_by_class: ByClass, photos_by_class: ByClass, size: int = 4
) -> Sample:
    """`size` sketches and `size` photos of one class; a P x K batch contains P such groups.

    The class is uniform. Items are drawn without replacement, unless the class has fewer than
    `size` = K. As in EfficientCNN (Tursun et al., 2022); our reading.
    """
    c = int(rng.integers(len(sketches_by_class)))
    sketches, photos = (
        rng.choice(items, size, replace=len(items) < size)
        for items in (sketches_by_class[c], photos_by_class[c])
    )
    return Sample(sketches, photos)


def distinct_class(seed: int, index: int, group: int, classes: int) -> int:
    """The class of sample `index`, if each `group` consecutive samples differ in class.

    Each group is drawn from the classes without replacement.
    """
    draw, position = divmod(index, group)
    order = np.random.default_rng([seed, draw]).permutation(classes)
    return int(order[position])


def sketch_of_epoch(seed: int, index: int, count: int) -> int:
    """The number of the sketch of sample `index`: each of `count` once per epoch, shuffled."""
    epoch, position = divmod(index, count)
    return int(_order(seed, epoch, count)[position])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def group_by_instance(
    sketches: Mapping[tuple[int, str], Int[np.ndarray, "_"]],
    photos: Mapping[tuple[int, str], Int[np.ndarray, "_"]],
    pairs: int = 2,
) -> tuple[ByInstance, ByInstance, dict[int, int]]:
    """The instances with both a sketch and a photo, for each class with at least `pairs` of them.

    Args:
      sketches: (class, instance) -> positions of its sketches.
      photos: (class, instance) -> positions of its photos.
      pairs: smallest number of instances.

    Returns:
      Sketches by class and instance; photos by class and instance; and, for each skipped class
      (counted from 0), its number of instances.
    """
    paired = sorted(sketches.keys() & photos.keys())
    classes = sorted({c for c, _ in sketches.keys() | photos.keys()})
    instances = {c: [key for key in paired if key[0] == c] for c in classes}
    kept = [keys for keys in instances.values() if len(keys) >= pairs]
    return (
        [[sketches[key] for key in keys] for keys in kept],
        [[photos[key] for key in keys] for keys in kept],
        {c: len(keys) for c, keys in instances.items() if len(keys) < pairs},
    )


SAMPLERS: Mapping[str, Sampler] = {
    "quadruplet": Sampler(quadruplet, "class"),
    "instance_quadruplet": Sampler(instance_quadruplet, "instance"),
    "triplet": Sampler(triplet, "class", epochs=True),
    "instance_group": Sampler(instance_group, "instance", pairs=4, distinct=True),
    "class_group": Sampler(class_group, "class", distinct=True),
}
"""Name -> sampler. The default is `Retriever.batch_kind`; config.train.sampler overrides it."""


def sampler(kind: str) -> Sampler:
    """The sampler called `kind`. "instance_group:8" and "class_group:8" draw groups of 8, not 4.

    Raises:
      ValueError: if the sampler or its size is unknown.
    """
    name, colon, size = kind.partition(":")
    if name not in SAMPLERS:
        raise ValueError(
            f"There is no sampler {kind!r}{suggest(name, SAMPLERS)}. Set config.train.sampler to "
            f"one of {', '.join(SAMPLERS)}."
        )
    if not colon:
        return SAMPLERS[name]
    least = {"instance_group": 2, "class_group": 1}.get(name)
    if not least or not size.isdigit() or int(size) < least:
        raise ValueError(
            f"The sampler {kind!r} does not support this size. instance_group takes a size of at "
            "least 2, class_group of at least 1 (instance_group:8); the others take no size."
        )
    found = SAMPLERS[name]
    draw = functools.partial(found.draw, size=int(size))
    return found._replace(draw=draw, pairs=int(size) if found.pairs else 0)
