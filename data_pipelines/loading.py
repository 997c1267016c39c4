"""Device-ready batches: endless and shuffled for training, finite and padded for evaluation.

grain reads positions, draws samples, decodes and preprocesses in worker processes and stacks uint8
batches. Every batch is a function of the seed and its number alone: the same for any number of
workers, and, put together, for any number of hosts.
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

from data_pipelines import images, prepared, sampling, splits
from data_pipelines.images import Modality
from data_pipelines.streaming import Batch, Batches
from data_pipelines.streaming import to_device as to_device

logger = logging.getLogger(__name__)

_ENDLESS = 2**40
"""Samples before training data ends: a million per second for twelve days."""


@runtime_checkable
class EncodedImages(Protocol):
    """Random access to encoded images; must be picklable when worker processes read it."""

    def __getitem__(self, row: int) -> bytes: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Images of one modality that are not read yet, with what is known of them.

    Attributes:
      modality: "sketch" or "photo".
      source: random access to the encoded images.
      rows: where in `source` each item lies.
      labels: class of each item, an index into `class_names`.
      class_names: the classes, in the order that was asked for.
      instances: id of the photo that each item is, or was drawn from; "" where unknown.
      names: relative path of each item.
    """

    modality: Modality
    source: EncodedImages
    rows: Int[np.ndarray, "n"]
    labels: Int32[np.ndarray, "n"]
    class_names: tuple[str, ...]
    instances: tuple[str, ...]
    names: tuple[str, ...]

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
        """Items 0, n, 2n, ...: the subset on which the literature validates while training."""
        return self.select(np.arange(0, len(self), n))

    def by_class(self) -> list[Int[np.ndarray, "_"]]:
        """Positions of the items of each class."""
        return [np.flatnonzero(self.labels == label) for label in range(len(self.class_names))]

    def by_instance(self) -> dict[tuple[int, str], Int[np.ndarray, "_"]]:
        """Positions of the items of each (class, instance); items of no known instance are none."""
        positions: dict[tuple[int, str], list[int]] = {}
        for position, key in enumerate(zip(self.labels.tolist(), self.instances, strict=True)):
            if key[1]:
                positions.setdefault(key, []).append(position)
        return {key: np.array(found) for key, found in positions.items()}

    def image(self, i: SupportsIndex, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """Item `i`, decoded and preprocessed as its modality asks, `size` pixels wide.

        Raises:
          images.UnreadableImageError: naming the item.
        """
        try:
            rgb = images.decode(self.source[int(self.rows[i])])
        except images.UnreadableImageError as error:
            raise images.UnreadableImageError(
                f"The {self.modality} {self.names[i]} cannot be read: {error}. If the prepared "
                "data set is damaged, delete its folder and prepare it again."
            ) from error
        return images.PREPARE[self.modality](rgb, size)


def load_items(
    name: str,
    modality: Modality,
    classes: Sequence[str],
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    skip_unreadable: bool = False,
) -> Items:
    """The images of some classes of a data set, which is prepared first when it is not there.

    Items are ordered by class, as in `classes`, then by name.

    Args:
      name: "sketchy", "doodles", ...: a package in `data_pipelines.builders`.
      modality: "sketch" or "photo".
      classes: their names; labels count in this order.
      data_dir: where prepared data sets lie; ~/tensorflow_datasets if None.
      manual_dir: where the unpacked archives lie, for data sets that no program can download.
      skip_unreadable: while preparing, leave unreadable images out instead of stopping.

    Raises:
      ValueError: when the data set lacks some of `classes`, and as `prepared.prepare`.
      FileNotFoundError: as `prepared.prepare`.
    """
    folder = prepared.prepare(
        name, data_dir=data_dir, manual_dir=manual_dir, skip_unreadable=skip_unreadable
    )
    records, index = prepared.open_split(folder, modality)
    where = f"the {modality} part of {folder}"
    splits.check_classes(set(index.class_names), classes, where, allow_more=True)
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
    shard_index: int = 0,
    shard_count: int = 1,
) -> Batches:
    """Endless training batches.

    Batch t of one process with batch size b * n is batch t of n processes with b each, put
    together in the order of their shards.

    Args:
      sketches: of the seen classes.
      photos: of the same classes, in the same order.
      kind: of sampler: as `sampling.sampler` takes it, such as the retriever's `batch_kind`.
      image_size: side of the square images, in pixels.
      batch_size: samples per batch of this process.
      seed: of everything random.
      workers: processes that decode; 0 decodes in threads of this process.
      augment: above 0, half of the pairs (sketch i and photo i of a sample) are mirrored, and every
        pair moves at random by up to this share of its side; both images alike.
      shard_index: this process among those that train together.
      shard_count: how many processes train together.

    Returns:
      Batches of sketches uint8 [B, s, H, W, 3], photos uint8 [B, p, H, W, 3], sketch_labels int32
      [B, s] and photo_labels int32 [B, p], where s = p = 2 for quadruplets, s = 1 and p = 2 for
      triplets, s = p = K for groups of K.

    Raises:
      ValueError: for an unknown kind, fewer than two classes, classes that differ between
        sketches and photos or have no sketch or no photo, or, if instances are sampled, no class
        with two instance pairs, or one with fewer than a group needs; or more samples per batch
        than classes, where these must differ; or `augment` outside [0, 0.5].
    """
    if not 0 <= augment <= 0.5:
        raise ValueError(f"augment={augment} is no share of an image's side from 0 to 0.5.")
    sampler = sampling.sampler(kind)
    _check_training_classes(sketches, photos)
    draw = _draw(sampler, sketches, photos)
    if sampler.distinct:
        draw = _distinct(draw, batch_size * shard_count, seed)
    samples = grain.MapDataset.range(_ENDLESS).random_map(draw, seed=seed)
    samples = samples.map(_LoadSample(sketches, photos, image_size))
    if augment:  # by random numbers of its own: the same samples are drawn with and without it
        of_vary = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        samples = samples.random_map(_Vary(round(augment * image_size)), seed=of_vary)
    return Batches(samples.batch(batch_size)[shard_index::shard_count], workers)


def evaluation_batches(
    items: Items,
    *,
    image_size: int,
    batch_size: int,
    workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Batches:
    """Every item once, in order, in batches of equal size; `len()` is their number.

    The last batches are padded with zeros, so that all processes see the same number of batches
    and nothing is dropped. With n processes, batch t of all of them, put together in the order of
    their shards, holds the items from t * n * batch_size on.

    Args:
      items: what to read.
      image_size: side of the square images, in pixels.
      batch_size: items per batch of this process.
      workers: processes that decode; 0 decodes in threads of this process.
      shard_index: this process among those that evaluate together.
      shard_count: how many processes evaluate together.

    Returns:
      Batches of image uint8 [B, H, W, 3], label int32 [B] and mask bool [B], False for padding.

    Raises:
      ValueError: when there is no item.
    """
    if not len(items):
        raise ValueError(
            f"There is no {items.modality} to evaluate on, of {len(items.class_names)} classes. "
            "Check the split and the strides of config.evaluation."
        )
    batches = math.ceil(len(items) / (batch_size * shard_count)) * shard_count
    padded = grain.MapDataset.range(batches * batch_size).map(_LoadItem(items, image_size))
    return Batches(padded.batch(batch_size)[shard_index::shard_count], workers)


# Classes and not closures, so that worker processes can unpickle them by name.


@dataclasses.dataclass(frozen=True)
class _Draw:
    sampler: sampling.Sampler
    sketches: sampling.ByClass | sampling.ByInstance
    photos: sampling.ByClass | sampling.ByInstance

    def __call__(self, index: int, rng: np.random.Generator) -> sampling.Sample:
        return self.sampler.draw(rng, self.sketches, self.photos)


@dataclasses.dataclass(frozen=True)
class _DrawDistinct(_Draw):
    """The samples of a batch (of all processes together) are of different classes."""

    batch_size: int
    seed: int

    def __call__(self, index: int, rng: np.random.Generator) -> sampling.Sample:
        c = sampling.distinct_class(self.seed, index, self.batch_size, len(self.sketches))
        return self.sampler.draw(rng, self.sketches[c : c + 1], self.photos[c : c + 1])


def _distinct(draw: _Draw, batch_size: int, seed: int) -> _DrawDistinct:
    classes = len(draw.sketches)
    if not 2 <= batch_size <= classes:
        raise ValueError(
            f"A batch of {batch_size} groups, each of another class, cannot be drawn from "
            f"{classes} seen classes: choose a batch size from 2 to {classes} "
            "(--config.train.batch_size)."
        )
    return _DrawDistinct(draw.sampler, draw.sketches, draw.photos, batch_size, seed)


def _draw(sampler: sampling.Sampler, sketches: Items, photos: Items) -> _Draw:
    if sampler.level == "class":
        return _Draw(sampler, sketches.by_class(), photos.by_class())
    *groups, left_out = sampling.group_by_instance(
        sketches.by_instance(), photos.by_instance(), sampler.pairs or 2
    )
    if not groups[0]:
        raise ValueError(
            f"Training by instances needs sketches with their own photos, but none of the "
            f"{len(sketches.class_names)} seen classes has {sampler.pairs or 'two'} such pairs: of "
            f"{len(sketches)} sketches {sum(map(bool, sketches.instances))} name a photo, "
            f"of {len(photos)} photos {sum(map(bool, photos.instances))} are named. Use a data set "
            "with instance pairs (sketchy, doodles, folder), or train by classes: "
            "--config.train.sampler=quadruplet."
        )
    if left_out and sampler.pairs:
        counts = ", ".join(f"{sketches.class_names[c]} ({n})" for c, n in left_out.items())
        raise ValueError(
            f"Groups of {sampler.pairs} instances need as many pairs of sketch and photo in every "
            f"seen class, but {len(left_out)} classes have fewer: {counts}. Choose smaller groups "
            "(--config.train.sampler=instance_group:2), or leave these classes out of the split."
        )
    if left_out:
        names = ", ".join(sketches.class_names[c] for c in left_out)
        logger.warning(
            "%d classes with fewer than two pairs of sketch and photo do not train: %s.",
            len(left_out),
            names,
        )
    return _Draw(sampler, *groups)


@dataclasses.dataclass(frozen=True)
class _LoadSample:
    sketches: Items
    photos: Items
    image_size: int

    def __call__(self, sample: sampling.Sample) -> Batch:
        return {
            "sketches": np.stack(
                [self.sketches.image(i, self.image_size) for i in sample.sketches]
            ),
            "photos": np.stack([self.photos.image(i, self.image_size) for i in sample.photos]),
            "sketch_labels": self.sketches.labels[sample.sketches],
            "photo_labels": self.photos.labels[sample.photos],
        }


@dataclasses.dataclass(frozen=True)
class _Vary:
    most: int  # pixels

    def __call__(self, sample: Batch, rng: np.random.Generator) -> Batch:
        count = max(len(sample["sketches"]), len(sample["photos"]))
        mirrored = (rng.random(count) < 0.5).tolist()
        moves = rng.integers(-self.most, self.most, (count, 2), endpoint=True).tolist()

        def vary(side: str) -> UInt8[np.ndarray, "n h w 3"]:
            varied = zip(sample[side], mirrored, moves, strict=False)
            return np.stack([images.vary(x, m, right, down) for x, m, (right, down) in varied])

        return sample | {side: vary(side) for side in ("sketches", "photos")}


@dataclasses.dataclass(frozen=True)
class _LoadItem:
    items: Items
    image_size: int

    def __call__(self, i: int) -> Batch:
        if i >= len(self.items):
            image, label = np.zeros((self.image_size, self.image_size, 3), np.uint8), np.int32(0)
        else:
            image, label = self.items.image(i, self.image_size), self.items.labels[i]
        return {"image": image, "label": label, "mask": np.bool_(i < len(self.items))}


def _check_training_classes(sketches: Items, photos: Items) -> None:
    classes = sketches.class_names
    if classes != photos.class_names:
        differing = sorted(set(classes) ^ set(photos.class_names)) or "only their order"
        raise ValueError(
            "Sketches and photos must be loaded with the same classes in the same order, but they "
            f"differ: {differing}."
        )
    if len(classes) < 2:
        raise ValueError(
            f"Training needs at least two classes, but there is only {list(classes)}: a sample's "
            "wrong photo comes from another class."
        )
    for items in (sketches, photos):
        counts = np.bincount(items.labels, minlength=len(classes))
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(classes)} seen classes have no {items.modality}: "
                f"{', '.join(empty)}. Every class that trains needs at least one sketch and one "
                "photo; add images or leave the class out of the split."
            )
