"""Selects the images of a zero-shot setting: training images, queries and gallery.

A setting is defined by the groups `data`, `target` and `evaluation` of a config:

- category level (the default): sketches and photos of the unseen classes;
- generalized (`evaluation.seen_gallery`): the gallery also contains photos of the seen classes,
  either all of them, or those excluded from training by `data.held_out` (20 % in the literature,
  Dutta and Akata, CVPR 2019);
- cross-dataset (`target`): the unseen classes of another data set, without those that training has
  seen under any name (`splits.cross_dataset`);
- fine-grained (`evaluation.protocol`): photos with instances, and the sketches drawn from them.

This module reads names only. `zse_jax.retrieval.protocols` defines the metrics of a ranking.
"""

import dataclasses
import hashlib
import logging
import zlib
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from data_pipelines import class_names, file_lists, loading, prepared, splits
from data_pipelines.images import Modality
from data_pipelines.loading import Items
from data_pipelines.suggestions import counted
from zse_jax.retrieval.intervals import OVER
from zse_jax.retrievers import registry

logger = logging.getLogger(__name__)

CLASSES = ("unseen", "held_out")
"""By which classes checkpoints are selected, see `config.evaluation.classes`."""

HELD_OUT_CLASSES = 0.1
"""Share of the seen classes that do not train with `config.evaluation.classes="held_out"`."""

SEEN_GALLERY = ("none", "held_out", "all")
PROTOCOLS = ("category", "fine_grained")


class Evaluated(NamedTuple):
    """The sketches and photos that an evaluation uses.

    Attributes:
      sketches: the queries.
      photos: the gallery; its labels refer to the same classes as those of the sketches.
      notes: how they were chosen, as plain values for the results.
      whole: the numbers of sketches and photos without strides.
    """

    sketches: Items
    photos: Items
    notes: dict[str, Any]
    whole: tuple[int, int] = (0, 0)


def training_items(config: ConfigDict) -> tuple[Items, Items]:
    """Sketches and photos of the seen classes, without the held-out photos.

    With `config.data.images_per_class`, a part of them, see `few_of_each_class`.

    Raises:
      ValueError: unknown names, or an invalid share.
      FileNotFoundError: the data set is not on this machine.
    """
    data = config.data
    seen = split_of(config, data).seen
    sketches, photos = (
        load(config, data, modality, seen, ["train"]) for modality in ("sketch", "photo")
    )
    if data.held_out:
        held_out = held_out_photos(photos, data.held_out, data.held_out_seed)
        photos = photos.select(np.setdiff1d(np.arange(len(photos)), held_out))
    if (count := data.get("images_per_class")) is not None:
        sketches, photos = (
            few_of_each_class(items, count, data.held_out_seed) for items in (sketches, photos)
        )
    return sketches, photos


def evaluated_items(
    config: ConfigDict, sketch_stride: int, photo_stride: int, *, selection: bool = False
) -> Evaluated:
    """Queries and gallery of a setting, every n-th of each.

    With `selection`, they are of the classes by which checkpoints are selected: the validation
    classes of the split if it has them, else its unseen classes.

    Raises:
      ValueError: unknown names, contradictory settings, or nothing left to rank.
      FileNotFoundError: the data set is not on this machine.
    """
    _check(config)
    data = config.data if config.target.name is None else config.target
    _check_unseen(config, data, selection)
    split, notes = split_of(config, data), {"data": data.name, "split": data.split or "own"}
    if selection and split.validation:
        split = dataclasses.replace(split, unseen=split.validation)
        notes |= {"classes": "validation"}
    unseen, excluded = split.unseen, dict[str, str]()
    if config.target.name is not None:
        unseen, excluded = _across(config, split)
        notes |= {"trained_on": config.data.split or config.data.name, "excluded": excluded}
    lists = data.get("lists")
    notes |= {"file_lists": PurePosixPath(lists).name if lists else "none, sorted by name"}
    classes = unseen
    parts: list[file_lists.Part] = ["zero"]
    if config.evaluation.seen_gallery != "none":
        classes, parts = unseen + split.seen, ["zero", "train"]
        if config.evaluation.get("classes") == "held_out" and not selection:
            classes += split.validation
        notes |= {"seen_gallery": config.evaluation.seen_gallery}
    sketches = load(config, data, "sketch", unseen, ["zero"], excluded)
    photos = load(config, data, "photo", classes, parts, excluded)
    if config.evaluation.seen_gallery == "held_out":
        photos = _without_trained(photos, len(unseen), config.data)
        notes |= {"held_out": config.data.held_out, "held_out_seed": config.data.held_out_seed}
    if config.evaluation.protocol == "fine_grained":
        photos = photos.select([i for i, name in enumerate(photos.instances) if name])
        whole = len(_paired(sketches, photos)), len(photos)
        photos = photos.every(photo_stride)
        paired = _paired(sketches, photos)
        notes |= {"sketches_without_their_photo": len(sketches) - len(paired)}
        if not paired:
            raise ValueError(
                f"Fine-grained retrieval needs sketches with their own photos, but in {data.name} "
                f"none of the {len(sketches)} sketches of the unseen classes has its photo among "
                f"the {len(photos)} photos with an instance. Use a data set with instance pairs "
                "(sketchy, doodles, folder), or a smaller stride."
            )
        sketches = sketches.select(paired).every(sketch_stride)
    else:
        whole = len(sketches), len(photos)
        sketches, photos = sketches.every(sketch_stride), photos.every(photo_stride)
    if config.evaluation.protocol != "fine_grained" and len(np.unique(photos.labels)) == 1:
        logger.warning(
            "All photos that are ranked are of one class, %s: every ranking of them is perfect. "
            "Name at least two unseen classes.",
            photos.class_names[photos.labels[0]],
        )
    return Evaluated(sketches, photos, notes | {"strides": (sketch_stride, photo_stride)}, whole)


def _paired(sketches: Items, photos: Items) -> list[int]:
    """The positions of the sketches whose own photo is among `photos`."""
    own = photos.by_instance()
    keys = zip(sketches.labels.tolist(), sketches.instances, strict=True)
    return [i for i, key in enumerate(keys) if key in own]


def instance_numbers(
    sketches: Items, photos: Items
) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " g"]]:
    """The instance of each sketch and photo, as numbers that both share."""
    keys: dict[tuple[int, str], int] = {}

    def numbers(items: Items) -> Int[np.ndarray, " n"]:
        pairs = zip(items.labels.tolist(), items.instances, strict=True)
        return np.array([keys.setdefault(pair, len(keys)) for pair in pairs], np.int32)

    photo_numbers = numbers(photos)
    return numbers(sketches), photo_numbers


def content_digest(items: Items) -> str:
    """A digest of the names, the classes and the bytes of all images, in their order.

    It differs for another preprocessing than "crop", which older versions did not have.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, label, row in zip(items.names, items.labels, items.rows, strict=True):
        encoded = items.source[int(row)]
        digest.update(f"{items.class_names[label]}\0{name}\0{len(encoded)}\0".encode())
        digest.update(encoded)
    if items.preprocessing != "crop":
        digest.update(items.preprocessing.encode())
    return digest.hexdigest()


def selection_note(config: ConfigDict) -> str | None:
    """How the best checkpoint of a run is selected, for results; None if nothing selects it."""
    every, steps = config.evaluation.every, config.train.steps
    if not every or not evaluates(config)[0]:
        return None
    number = counted(-(-steps // every), "evaluation", "evaluations")
    on = f"by {config.evaluation.select} on the {selecting_classes(config)}"
    return f"best of {number} after step 0 {on}"


def evaluates(config: ConfigDict) -> tuple[bool, bool]:
    """Whether a run has classes by which to select checkpoints, and unseen classes to test on.

    Without `config.data.unseen`, all classes of a user's own images train, for search.
    """
    data = config.data
    tests = (
        config.target.name is not None
        or data.split is not None
        or bool(class_names.listed(data.unseen))
    )
    return tests or config.evaluation.get("classes") == "held_out", tests


def unseen_note(config: ConfigDict) -> str:
    """Which classes of a user's own images are unseen in a run; "" for a published split."""
    selects, tests = evaluates(config)
    if config.data.split is not None:
        return ""
    if class_names.listed(config.data.unseen):
        return f"Unseen classes: {config.data.unseen}"
    if tests:
        return "All classes train, because config.data.unseen is not set."
    if selects:
        return (
            "All classes train, except those held out for validation: there is no test evaluation, "
            "because config.data.unseen is not set."
        )
    return (
        "All classes train, because config.data.unseen is not set: there is no validation and no "
        "test evaluation."
    )


def selecting_classes(config: ConfigDict) -> str:
    """The classes by which checkpoints are selected, in words."""
    data = config.data if config.target.name is None else config.target
    held_out = config.evaluation.get("classes", "unseen") == "held_out"
    validation = held_out or (data.split is not None and splits.get(data.split).validation)
    return f"{'validation' if validation else 'unseen'} classes"


def photos_drawn(sketches: Items) -> Int[np.ndarray, " q"] | None:
    """The photo that each sketch shows, as a number; None if no two sketches show the same."""
    keys = [
        (label, instance) if instance else position
        for position, (label, instance) in enumerate(
            zip(sketches.labels.tolist(), sketches.instances, strict=True)
        )
    ]
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return None if len(number) == len(keys) else np.array([number[key] for key in keys])


def split_of(config: ConfigDict, data: ConfigDict) -> splits.Split:
    """The seen, validation and unseen classes of a `data` or `target` group.

    With `config.evaluation.classes="held_out"`, a share `HELD_OUT_CLASSES` of the seen classes,
    drawn with `config.data.held_out_seed`, are validation classes, unless the split has its own.

    Raises:
      ValueError: see `_split_of`.
    """
    split = _split_of(config, data)
    if config.evaluation.get("classes", "unseen") != "held_out" or split.validation:
        return split
    rng = np.random.default_rng([config.data.held_out_seed, zlib.crc32(b"classes")])
    count = max(2, round(HELD_OUT_CLASSES * len(split.seen)))
    drawn = set(rng.permutation(sorted(split.seen))[:count].tolist())
    seen = tuple(name for name in split.seen if name not in drawn)
    if reason := splits.too_few_classes(seen):
        raise ValueError(
            f"config.evaluation.classes='held_out' holds {count} of {len(split.seen)} seen classes "
            f"out of training: {reason}"
        )
    validation = tuple(name for name in split.seen if name in drawn)
    return dataclasses.replace(split, seen=seen, validation=validation)


def _split_of(config: ConfigDict, data: ConfigDict) -> splits.Split:
    """The classes of a `data` or `target` group.

    Published splits have names. For a user's own folder, `data.unseen` lists the unseen classes,
    separated by commas, or is a share of the classes (20%), drawn with `config.data.held_out_seed`.
    All other classes with both sketches and photos are seen; without `data.unseen`, all.

    Raises:
      ValueError: an unknown split, a split of another data set, or unknown unseen classes.
    """
    if data.split is not None:
        split = splits.get(data.split)
        if split.dataset != data.name:
            raise ValueError(
                f"The split {data.split!r} is for the data set {split.dataset!r}, not for "
                f"{data.name!r}: change config.data.split or config.data.name (or those of "
                "config.target)."
            )
        return split
    folder = prepared.prepare(data.name, **_place(config, data))
    modalities: tuple[Modality, ...] = ("sketch", "photo")
    both = set.intersection(
        *(set(prepared.open_split(folder, modality)[1].class_names) for modality in modalities)
    )
    if (share := splits.share_of(data.unseen)) is not None:
        unseen = splits.draw(both, share, config.data.held_out_seed)
    else:
        unseen = class_names.listed(data.unseen)
    splits.check_classes(
        both,
        unseen,
        f"the data set {data.name!r}",
        allow_more=True,
        advice=f"Name unseen classes that have sketches and photos: {', '.join(sorted(both))}.",
    )
    return splits.Split(data.name, tuple(sorted(both - set(unseen))), unseen)


def resolved(config: ConfigDict) -> ConfigDict:
    """The config of a run, with what its images define, so that its checkpoints record it.

    These are the content of the folders of a user's own images, and the names of the unseen
    classes, if `data.unseen` is a share of the classes. Prepares the folders if necessary.

    Raises:
      ValueError, FileNotFoundError: as `split_of`.
    """
    config = config.copy_and_resolve_references()
    for data in (config.data, config.target):
        if data.name is None or not prepared.is_by_content(data.name):
            continue
        data.content = prepared.content_of(prepared.prepare(data.name, **_place(config, data)))
        if splits.share_of(data.unseen) is not None:
            data.unseen = class_names.written(_split_of(config, data).unseen)
    return config


def _place(config: ConfigDict, data: ConfigDict) -> dict[str, Any]:
    """Where the images of a `data` or `target` group are, for `prepared.prepare`."""
    return {
        "data_dir": config.data.data_dir,
        "manual_dir": data.manual_dir,
        "name_as": data.get("name_as"),
        "content": data.get("content"),
        "skip_unreadable": config.data.skip_unreadable,
    }


def load(
    config: ConfigDict,
    data: ConfigDict,
    modality: Modality,
    classes: Sequence[str],
    parts: Sequence[file_lists.Part],
    excluded: Collection[str] = (),
) -> Items:
    """The items of one modality and some classes in the data set of a `data` or `target` group.

    Their images are prepared for the system of `config.model`.
    They are sorted by class and name. With `data.lists`, the published lists of some `parts` define
    the members and their order; those of `excluded` classes are left out.
    """
    lists = [file_lists.find(data.lists, part, modality) for part in parts if data.get("lists")]
    items = loading.load_items(
        data.name,
        modality,
        [*classes, *excluded] if lists else classes,
        **_place(config, data),
    )
    items = dataclasses.replace(items, preprocessing=registry.preprocessing(config.model))
    if not lists:
        return items
    listed = file_lists.select(items, lists, missing_ok=config.data.skip_unreadable)
    kept = listed.select(np.flatnonzero(listed.labels < len(classes)))
    return dataclasses.replace(kept, class_names=tuple(classes))


def held_out_photos(photos: Items, share: float, seed: int) -> Int[np.ndarray, " n"]:
    """Positions of the photos that are excluded from training: a `share` of each class, rounded.

    They depend only on `seed` and the name of the class, so that training and evaluation agree.
    Photos of a class with the same file name are held out together (Sketchy's extension repeats the
    photos that were drawn).

    Raises:
      ValueError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"config.data.held_out={share} must be a share between 0 and 1.")
    found = []
    for class_name, positions in zip(photos.class_names, photos.by_class(), strict=True):
        stems = [PurePosixPath(photos.names[i]).stem for i in positions]
        distinct = np.array(sorted(set(stems)))
        rng = np.random.default_rng([seed, zlib.crc32(class_name.encode())])
        chosen = set(rng.permutation(distinct)[: round(share * len(distinct))].tolist())
        found += [i for i, stem in zip(positions, stems, strict=True) if stem in chosen]
    return np.array(sorted(found), np.int64)


def few_of_each_class(items: Items, count: int, seed: int) -> Items:
    """`count` items of each class in their order, or all of a class that has fewer.

    They depend on `seed`, the modality and the name of the class. Those of a smaller `count` are
    among those of a larger one. Sketches and photos are drawn independently, so that few of them
    are instance pairs.

    Raises:
      ValueError: `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"config.data.images_per_class={count} must be at least 1, or None: all.")
    chosen = []
    for class_name, positions in zip(items.class_names, items.by_class(), strict=True):
        key = zlib.crc32(f"{items.modality} of {class_name}".encode())
        chosen += np.random.default_rng([seed, key]).permutation(positions)[:count].tolist()
    return items.select(sorted(chosen))


def _check(config: ConfigDict) -> None:
    evaluation = config.evaluation
    choices = (
        ("seen_gallery", SEEN_GALLERY),
        ("protocol", PROTOCOLS),
        ("intervals", OVER),
        ("classes", CLASSES),
    )
    for key, known in choices:
        if evaluation.get(key, known[0]) not in known:
            raise ValueError(
                f"config.evaluation.{key}={evaluation[key]!r}: choose one of {', '.join(known)}."
            )
    if evaluation.seen_gallery == "none":
        return
    if config.target.name is not None:
        raise ValueError(
            "config.target.name and config.evaluation.seen_gallery exclude each other: another "
            "data set has no seen classes. Set seen_gallery to 'none'."
        )
    if evaluation.seen_gallery == "held_out" and not config.data.held_out:
        raise ValueError(
            "config.evaluation.seen_gallery='held_out' needs photos excluded from training: set "
            "config.data.held_out to their share, such as 0.2, before training."
        )


def _check_unseen(config: ConfigDict, data: ConfigDict, selection: bool) -> None:
    """Raises ValueError if a `data` or `target` group has no unseen classes to evaluate."""
    held_out = selection and config.evaluation.get("classes") == "held_out"
    if data.split is not None or class_names.listed(data.unseen) or held_out:
        return
    group = "data" if config.target.name is None else "target"
    raise ValueError(
        f"There is nothing to evaluate: all classes of {data.name!r} are for training, because "
        f"config.{group}.unseen is not set. Name unseen classes, separated by commas, such as "
        f"--config.{group}.unseen=cat,dog (a name that contains a comma in double quotes), or a "
        f"share of them, --config.{group}.unseen=20%. A model that was trained on all classes can "
        "be evaluated on the classes of another folder: config.target."
    )


def _across(config: ConfigDict, target: splits.Split) -> tuple[tuple[str, ...], dict[str, str]]:
    """The target's unseen classes, without those seen in training; and these with their names."""
    kept, excluded = splits.cross_dataset(split_of(config, config.data), target)
    if excluded:
        names = ", ".join(f"{ours} (trained on as {theirs})" for ours, theirs in excluded.items())
        logger.warning(
            "%d of %d unseen classes of %s are excluded because training has seen them: %s.",
            len(excluded),
            len(target.unseen),
            config.target.split or config.target.name,
            names,
        )
    return tuple(kept), dict(excluded)


def _without_trained(photos: Items, unseen: int, data: ConfigDict) -> Items:
    """All photos of the first `unseen` classes, and the held-out photos of the others."""
    seen = np.flatnonzero(photos.labels >= unseen)
    held_out = held_out_photos(photos.select(seen), data.held_out, data.held_out_seed)
    return photos.select(np.concatenate([np.flatnonzero(photos.labels < unseen), seen[held_out]]))
