"""Which sketch meets which photos: one training sample, drawn at random from the seen classes.

A sampler is a pure function of a generator and of the items, grouped by class or by instance. It
returns positions of items, not images, so that drawing is cheap and testable and the loader reads
only what was drawn. A new sampler is one function and one line in `SAMPLERS`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

ByClass = Sequence[Int[np.ndarray, "_"]]
"""For each class, the positions of its items."""

ByInstance = Sequence[ByClass]
"""For each class, and for each of its instances, the positions of the instance's items."""


class Sample(NamedTuple):
    """One sample: positions among the sketches and among the photos."""

    sketches: Int[np.ndarray, "s"]
    photos: Int[np.ndarray, "p"]


class Sampler(NamedTuple):
    """How a sample is drawn: `draw(rng, sketches, photos)`, both grouped by `level`.

    `pairs`: how many instance pairs every class must have; 0: those with fewer than two are left
    out. `distinct`: the samples of a batch are of classes that all differ, which the loader sees
    to: `draw` gets one class at a time.
    """

    draw: Callable[..., Sample]
    level: Literal["class", "instance"]
    pairs: int = 0
    distinct: bool = False


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


def instance_quadruplet(
    rng: np.random.Generator, sketches_by_instance: ByInstance, photos_by_instance: ByInstance
) -> Sample:
    """A `quadruplet` of instances of one class, for fine-grained retrieval; our reading.

    The class is uniform. Index 0 is a sketch and the photo it was drawn from; index 1 another
    sketch of that photo (the same one if there is no other) and another photo of the class, so
    that only the instance tells the two photos apart.

    Args:
      rng: the only source of randomness.
      sketches_by_instance: at least one class; each of at least two instances, none of them empty.
      photos_by_instance: the same instances in the same order.

    Returns:
      Two sketches and two photos.
    """
    c = int(rng.integers(len(sketches_by_instance)))
    return quadruplet(rng, sketches_by_instance[c], photos_by_instance[c])


def triplet(
    rng: np.random.Generator, sketches_by_class: ByClass, photos_by_class: ByClass
) -> Sample:
    """A sketch, a photo of its class and a photo of another, as CLIP-AT trains (CVPR 2023).

    Classes c != c' are uniform over the seen classes.

    Args:
      rng: the only source of randomness.
      sketches_by_class: at least two classes, none of them empty.
      photos_by_class: the same classes in the same order.

    Returns:
      One sketch and two photos.
    """
    count = len(sketches_by_class)
    c = int(rng.integers(count))
    other_c = (c + int(rng.integers(1, count))) % count
    photos = [rng.choice(photos_by_class[c]), rng.choice(photos_by_class[other_c])]
    return Sample(sketches=rng.choice(sketches_by_class[c], 1), photos=np.array(photos))


def instance_group(
    rng: np.random.Generator,
    sketches_by_instance: ByInstance,
    photos_by_instance: ByInstance,
    size: int = 4,
) -> Sample:
    """`size` instances of one class, a sketch and a photo of each, for CLIP-AT's fine-grained loss.

    The class is uniform over those given, and so are its instances, in random order; sketch i was
    drawn from photo i. The other photos of the group are the hard negatives: of the same class.

    Args:
      rng: the only source of randomness.
      sketches_by_instance: at least one class; each of at least `size` instances, none empty.
      photos_by_instance: the same instances in the same order.
      size: K of the loss.

    Returns:
      As many sketches and photos.
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
    """`size` sketches and as many photos of one class: a P x K batch is P of these.

    The class is uniform over those given. Nothing comes twice in a group, unless the class has
    fewer than `size` of its kind. As EfficientCNN trains (Tursun et al., 2022); our reading.

    Args:
      rng: the only source of randomness.
      sketches_by_class: at least one class, none of them empty.
      photos_by_class: the same classes in the same order.
      size: K.

    Returns:
      As many sketches and photos.
    """
    c = int(rng.integers(len(sketches_by_class)))
    sketches, photos = (
        rng.choice(items, size, replace=len(items) < size)
        for items in (sketches_by_class[c], photos_by_class[c])
    )
    return Sample(sketches, photos)


def distinct_class(seed: int, index: int, group: int, classes: int) -> int:
    """The class of sample `index`, where every `group` samples in a row are of different classes.

    Each group is a new draw from the classes, without replacement.
    """
    draw, position = divmod(index, group)
    order = np.random.default_rng([seed, draw]).permutation(classes)
    return int(order[position])


def group_by_instance(
    sketches: Mapping[tuple[int, str], Int[np.ndarray, "_"]],
    photos: Mapping[tuple[int, str], Int[np.ndarray, "_"]],
    pairs: int = 2,
) -> tuple[ByInstance, ByInstance, dict[int, int]]:
    """The instances that have both a sketch and a photo, for each class that has enough of them.

    Args:
      sketches: (class, instance) -> positions of its sketches.
      photos: (class, instance) -> positions of its photos.
      pairs: how many are enough.

    Returns:
      Sketches and photos by class and instance, and the classes, counted from 0, left out because
      they have fewer than `pairs`, with how many they have.
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
    "triplet": Sampler(triplet, "class"),
    "instance_group": Sampler(instance_group, "instance", pairs=4, distinct=True),
    "class_group": Sampler(class_group, "class", distinct=True),
}
"""By name: a `Retriever.batch_kind`, or what config.train.sampler puts in its place."""


def sampler(kind: str) -> Sampler:
    """The sampler of a name; "instance_group:8", "class_group:8": groups of 8 instead of 4.

    Raises:
      ValueError: there is no such sampler, or no such size of it.
    """
    name, colon, size = kind.partition(":")
    if name not in SAMPLERS:
        raise ValueError(
            f"There is no sampler {kind!r}; data_pipelines.sampling.SAMPLERS has "
            f"{', '.join(SAMPLERS)}."
        )
    if not colon:
        return SAMPLERS[name]
    least = {"instance_group": 2, "class_group": 1}.get(name)
    if not least or not size.isdigit() or int(size) < least:
        raise ValueError(
            f"The sampler {kind!r} has no such size: instance_group takes one of at least 2, "
            "class_group of at least 1, such as instance_group:8; the others take none."
        )
    found = SAMPLERS[name]
    draw = functools.partial(found.draw, size=int(size))
    return found._replace(draw=draw, pairs=int(size) if found.pairs else 0)
