"""Device-ready batches: endless and shuffled for training, finite and padded for evaluation.

grain draws samples, decodes and preprocesses images in worker processes and stacks uint8 batches.
Every batch is a function of the seed and its index: it is the same for any number of workers and,
concatenated, for any number of hosts.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, Int32, UInt8

from data_pipelines import images, prepared, sampling, splits, variation
from data_pipelines.images import Modality
from data_pipelines.streaming import Batch, Batches
from data_pipelines.streaming import to_device as to_device
from data_pipelines.suggestions import counted

logger = logging.getLogger(__name__)

_ENDLESS = 2**40
"""Samples before training data ends: 12 days at a million samples per second."""


@runtime_checkable
class EncodedImages(Protocol):
    """Random access to encoded images; must be picklable when worker processes read it."""

    def __getitem__(self, row: int) -> bytes: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Images of one modality, not read yet, and their metadata.

    Attributes:
      modality: "sketch" or "photo".
      source: random access to the encoded images.
      rows: index of each item in `source`.
      labels: class of each item, an index into `class_names`.
      class_names: the classes, in the requested order.
      instances: id of the photo that the item is or was drawn from; "" if unknown.
      names: relative path of each item.
      preprocessing: of the images, that of the system which takes them.
    """

    modality: Modality
    source: EncodedImages
    rows: Int[np.ndarray, "n"]
    labels: Int32[np.ndarray, "n"]
    class_names: tuple[str, ...]
    instances: tuple[str, ...]
    names: tuple[str, ...]
    preprocessing: images.Preprocessing = "crop"

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Int[np.ndarray, "m"] | Sequence[int]) -> "Items":
        """The items at `indices`, in that order."""
        indices = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            rows=self.rows[indices],
            labels=self.labels[indices],
            instances=tuple(self.instances[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
        )

    def every(self, n: int) -> "Items":
        """Items 0, n, 2n, ...: the subset that the literature validates on during training."""
        return self.select(np.arange(0, len(self), n))

    def by_class(self) -> list[Int[np.ndarray, "_"]]:
        """Positions of the items of each class."""
        return [np.flatnonzero(self.labels == label) for label in range(len(self.class_names))]

    def by_instance(self) -> dict[tuple[int, str], Int[np.ndarray, "_"]]:
        """Positions of the items of each (class, instance); skips items of unknown instance."""
        positions: dict[tuple[int, str], list[int]] = {}
        for position, key in enumerate(zip(self.labels.tolist(), self.instances, strict=True)):
            if key[1]:
                positions.setdefault(key, []).append(position)
        return {key: np.array(found) for key, found in positions.items()}

    def image(
        self, i: SupportsIndex, size: int, variant: int = 0
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """Item `i`, decoded and preprocessed for its modality, `size` x `size` pixels.

        Above 0, `variant` is the number of a random change (`variation`), which is always the same.

        Raises:
          images.UnreadableImageError: naming the item.
        """
        try:
            rgb = images.decode(self.source[int(self.rows[i])])
        except images.UnreadableImageError as error:
            raise images.UnreadableImageError(
                f"The {self.modality} {self.names[i]} cannot be read: {error}. If the prepared "
                "data set is damaged, delete its folder to prepare it again."
            ) from error
        image = images.PREPARE[self.modality](rgb, size, self.preprocessing)
        if not variant:
            return image
        rng = np.random.default_rng([variant, int(self.rows[i])])
        return variation.variant(image, self.modality, rng)


@dataclasses.dataclass
class Computed:
    """Arrays in place of images, by variant: [n, 1 or 2, ...], of images and their mirror images.

    They are set before the first batch is read.
    """

    values: list[np.ndarray] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class ComputedItems(Items):
    """Items of which training reads arrays that were computed from the images in advance."""

    computed: Computed = dataclasses.field(default_factory=Computed)

    @classmethod
    def of(cls, items: Items) -> "ComputedItems":
        """The items, without arrays yet."""
        fields = {field.name: getattr(items, field.name) for field in dataclasses.fields(items)}
        return cls(**fields, computed=Computed())

    def images(self) -> Items:
        """The items with their images."""
        names = [field.name for field in dataclasses.fields(Items)]
        return Items(**{name: getattr(self, name) for name in names})

    def image(self, i: SupportsIndex, size: int, variant: int = 0) -> np.ndarray:
        """The arrays of item `i`, and of its mirror image if there are such, [1 or 2, ...]."""
        del size
        assert self.computed.values, "the arrays were not computed yet"
        return self.computed.values[variant][i]


def load_items(
    name: str,
    modality: Modality,
    classes: Sequence[str],
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    name_as: str | None = None,
    content: str | None = None,
    skip_unreadable: bool = False,
) -> Items:
    """The images of some classes of a data set. Prepares the data set on first use.

    Items are ordered by class, as in `classes`, then by name.

    Args:
      name: "sketchy", "doodles", ...: a package in `data_pipelines.builders`.
      modality: "sketch" or "photo".
      classes: class names; label i is `classes[i]`.
      data_dir: folder of prepared data sets; ~/tensorflow_datasets if None.
      manual_dir: folder of the unpacked archives, for data sets that must be downloaded by hand.
      name_as, content: of a user's own images, see `prepared.prepare`.
      skip_unreadable: during preparation, skip unreadable images instead of raising an error.

    Raises:
      ValueError: if the data set lacks some of `classes`, and as `prepared.prepare`.
      FileNotFoundError: as `prepared.prepare`.
    """
    folder = prepared.prepare(
        name,
        data_dir=data_dir,
        manual_dir=manual_dir,
        name_as=name_as,
        content=content,
        skip_unreadable=skip_unreadable,
    )
    records, index = prepared.open_split(folder, modality)
    splits.check_classes(
        set(index.class_names),
        classes,
        f"the {modality} part of {folder}",
        allow_more=True,
        advice=f"Correct the names, or add images. Unless they are your own images (config.data."
        f"name='folder'), then delete {folder} to prepare it again. "
        "Evaluation needs the unseen classes only: python -m data_pipelines.check --for=evaluate.",
    )
    label_of = {class_name: label for label, class_name in enumerate(classes)}
    labels = np.array([label_of.get(class_name, -1) for class_name in index.class_names], np.int32)
    every_class = Items(
        modality,
        records,
        np.asarray(index.rows, np.int64),
        labels,
        tuple(classes),
        tuple(index.instances),
        tuple(index.names),
    )
    order = np.argsort(labels, kind="stable")  # The index is sorted by name.
    return every_class.select(order[labels[order] >= 0])


def train_batches(
    sketches: Items,
    photos: Items,
    *,
    kind: str,
    image_size: int,
    batch_size: int,
    seed: int,
    workers: int,
    augment: float = 0.0,
    mirror: bool = False,
    variants: int = 1,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Batches:
    """Endless training batches.

    Batch t of one process with batch size b * n equals batch t of n processes with batch size b,
    concatenated in shard order.

    Args:
      sketches: of the seen classes.
      photos: of the same classes, in the same order.
      kind: name of a sampler (see `sampling.sampler`), such as the retriever's `batch_kind`.
      image_size: side of the square images, in pixels.
      batch_size: samples per batch of this process.
      seed: random seed.
      workers: number of decoding processes; 0 decodes in threads of this process.
      augment: above 0, mirrors half of the pairs (sketch i and photo i of a sample) and shifts
        every pair at random by up to this fraction of its side. Both images of a pair get the same
        change.
      mirror: mirrors half of the pairs, also without `augment`.
      variants: of each image, among which one is drawn each time (`variation`); 1: only itself.
      shard_index: index of this process.
      shard_count: number of processes that train together.

    Returns:
      Batches of sketches uint8 [B, s, H, W, 3], photos uint8 [B, p, H, W, 3], sketch_labels int32
      [B, s] and photo_labels int32 [B, p], where s = p = 2 for quadruplets, s = 1 and p = 2 for
      triplets, s = p = K for groups of K.

    Raises:
      ValueError: for an unknown kind; fewer than two classes; classes that differ between
        sketches and photos, or lack sketches or photos; too few instance pairs, if instances are
        sampled; more samples per batch than classes, if these must differ; `augment` outside
        [0, 0.5], or `variants` below 1.
    """
    if variants < 1:
        raise ValueError(f"variants={variants} must be at least 1 (--config.train.variants).")
    if not 0 <= augment <= 0.5:
        raise ValueError(
            f"augment={augment} must be a fraction of the image's side from 0 to 0.5 "
            "(--config.train.augment)."
        )
    sampler = sampling.sampler(kind)
    _check_training_classes(sketches, photos)
    draw = _draw(sampler, sketches, photos, batch_size * shard_count, seed)
    samples = grain.MapDataset.range(_ENDLESS).random_map(draw, seed=seed)
    load = _LoadSample(sketches, photos, image_size, variants)
    samples = samples.random_map(load, seed=_seed(seed, 2)) if variants > 1 else samples.map(load)
    computed = isinstance(sketches, ComputedItems)
    if computed and augment:
        raise ValueError(
            f"augment={augment} moves images, but the output of frozen layers is computed in "
            "advance: set config.train.augment=0 (config.train.mirror is possible), or "
            "config.train.cache_frozen=false."
        )
    if computed:
        workers = 0  # The arrays are in the memory of this process.
    if augment or mirror or computed:
        # A separate seed: the same samples are drawn with and without augmentation.
        change = _Augment(round(augment * image_size), mirror or augment > 0)
        samples = samples.random_map(change, seed=_seed(seed, 1))
    return Batches(samples.batch(batch_size)[shard_index::shard_count], workers)


def _seed(seed: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0])


def evaluation_batches(
    items: Items,
    *,
    image_size: int,
    batch_size: int,
    workers: int = 0,
    variant: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Batches:
    """Every item once, in order, in batches of equal size; `len()` is the number of batches.

    The last batches are padded with zeros, so that all processes get the same number of batches
    and no item is dropped. With n processes, the batches t of all processes, concatenated in shard
    order, start at item t * n * batch_size.

    Args:
      items: images to read.
      image_size: side of the square images, in pixels.
      batch_size: items per batch of this process.
      workers: number of decoding processes; 0 decodes in threads of this process.
      variant: number of the images' variant; 0: the images themselves.
      shard_index: index of this process.
      shard_count: number of processes that evaluate together.

    Returns:
      Batches of image uint8 [B, H, W, 3], label int32 [B] and mask bool [B], False for padding.

    Raises:
      ValueError: if `items` is empty.
    """
    if not len(items):
        raise ValueError(
            f"There is no {items.modality} to evaluate on in {len(items.class_names)} classes. "
            "Check the split and the strides in config.evaluation."
        )
    batches = math.ceil(len(items) / (batch_size * shard_count)) * shard_count
    padded = grain.MapDataset.range(batches * batch_size).map(_LoadItem(items, image_size, variant))
    return Batches(padded.batch(batch_size)[shard_index::shard_count], workers)


# Classes instead of closures, so that worker processes can unpickle them by name.


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Draws a sample; with `sampler.distinct`, the samples of a global batch differ in class."""

    sampler: sampling.Sampler
    sketches: sampling.ByClass | sampling.ByInstance
    photos: sampling.ByClass | sampling.ByInstance
    global_batch_size: int
    seed: int

    def __call__(self, index: int, rng: np.random.Generator) -> sampling.Sample:
        sketches, photos = self.sketches, self.photos
        if self.sampler.distinct:
            c = sampling.distinct_class(self.seed, index, self.global_batch_size, len(sketches))
            sketches, photos = sketches[c : c + 1], photos[c : c + 1]
        if self.sampler.epochs:
            number = sampling.sketch_of_epoch(self.seed, index, sum(map(len, sketches)))
            return self.sampler.draw(rng, sketches, photos, number)
        return self.sampler.draw(rng, sketches, photos)


def _draw(
    sampler: sampling.Sampler, sketches: Items, photos: Items, global_batch_size: int, seed: int
) -> _Draw:
    if sampler.level == "class":
        draw = _Draw(sampler, sketches.by_class(), photos.by_class(), global_batch_size, seed)
    else:
        draw = _Draw(sampler, *_instances(sampler, sketches, photos), global_batch_size, seed)
    classes = len(draw.sketches)
    if sampler.distinct and not 2 <= global_batch_size <= classes:
        raise ValueError(
            f"A batch of {global_batch_size} groups of different classes cannot be drawn from "
            f"{classes} seen classes. Choose a batch size from 2 to {classes} "
            "(--config.train.batch_size)."
        )
    return draw


def _instances(
    sampler: sampling.Sampler, sketches: Items, photos: Items
) -> tuple[sampling.ByInstance, sampling.ByInstance]:
    *groups, too_few = sampling.group_by_instance(
        sketches.by_instance(), photos.by_instance(), sampler.pairs or 2
    )
    if not groups[0]:
        raise ValueError(
            f"Training by instances needs sketches paired with photos, but none of the "
            f"{len(sketches.class_names)} seen classes has {sampler.pairs or 2} pairs: "
            f"{sum(map(bool, sketches.instances))} of {len(sketches)} sketches and "
            f"{sum(map(bool, photos.instances))} of {len(photos)} photos have an instance id. Use "
            "a data set with instance pairs (sketchy, doodles, folder), or train by class: "
            "--config.train.sampler=quadruplet."
        )
    counts = ", ".join(f"{sketches.class_names[c]} ({n})" for c, n in too_few.items())
    if too_few and sampler.pairs:
        fewer = counted(len(too_few), "class has fewer", "classes have fewer")
        raise ValueError(
            f"Groups of {sampler.pairs} instances need {sampler.pairs} pairs of sketch and photo "
            f"in every seen class, but {fewer}: {counts}. Choose smaller groups "
            "(--config.train.sampler=instance_group:2), or remove these classes from the split."
        )
    if too_few:
        logger.warning(
            "%d classes are not trained on: they have fewer than two pairs of sketch and photo: "
            "%s.",
            len(too_few),
            counts,
        )
    return groups[0], groups[1]


@dataclasses.dataclass(frozen=True)
class _LoadSample:
    sketches: Items
    photos: Items
    image_size: int
    variants: int

    def __call__(self, sample: sampling.Sample, rng: np.random.Generator | None = None) -> Batch:
        def loaded(items: Items, positions: Int[np.ndarray, "_"]) -> np.ndarray:
            count = len(positions)
            chosen = rng.integers(self.variants, size=count).tolist() if rng else [0] * count
            return np.stack(
                [items.image(i, self.image_size, k) for i, k in zip(positions, chosen, strict=True)]
            )

        return {
            "sketches": loaded(self.sketches, sample.sketches),
            "photos": loaded(self.photos, sample.photos),
            "sketch_labels": self.sketches.labels[sample.sketches],
            "photo_labels": self.photos.labels[sample.photos],
        }


@dataclasses.dataclass(frozen=True)
class _Augment:
    max_shift: int  # pixels
    mirror: bool

    def __call__(self, sample: Batch, rng: np.random.Generator) -> Batch:
        count = max(len(sample["sketches"]), len(sample["photos"]))
        mirrored = (rng.random(count) < (0.5 if self.mirror else 0.0)).tolist()
        shifts = rng.integers(-self.max_shift, self.max_shift, (count, 2), endpoint=True).tolist()
        augmented = {
            side: [
                image[int(mirror)]
                if image.ndim == 4  # of `ComputedItems`
                else images.augment(image, mirror, right, down)
                for image, mirror, (right, down) in zip(
                    sample[side], mirrored, shifts, strict=False
                )
            ]
            for side in ("sketches", "photos")
        }
        return sample | {side: np.stack(found) for side, found in augmented.items()}


@dataclasses.dataclass(frozen=True)
class _LoadItem:
    items: Items
    image_size: int
    variant: int

    def __call__(self, i: int) -> Batch:
        if i >= len(self.items):
            image, label = np.zeros((self.image_size, self.image_size, 3), np.uint8), np.int32(0)
        else:
            image = self.items.image(i, self.image_size, self.variant)
            label = self.items.labels[i]
        return {"image": image, "label": label, "mask": np.bool_(i < len(self.items))}


def _check_training_classes(sketches: Items, photos: Items) -> None:
    classes = sketches.class_names
    if classes != photos.class_names:
        differing = sorted(set(classes) ^ set(photos.class_names)) or "only their order"
        raise ValueError(
            "Sketches and photos must be loaded with the same classes in the same order, but they "
            f"differ: {differing}."
        )
    if reason := splits.too_few_classes(classes):
        raise ValueError(reason)
    for items in (sketches, photos):
        counts = np.bincount(items.labels, minlength=len(classes))
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(classes)} seen classes have no {items.modality}: "
                f"{', '.join(empty)}. Every seen class needs at least one sketch and one photo. "
                "Add images, or remove the class from the split."
            )
