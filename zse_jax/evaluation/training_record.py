"""What a checkpoint was trained on, and whether an evaluation ranks any of it.

A record travels with every checkpoint: the classes that trained and a digest of each image, also of
the checkpoints that the run was initialised from. An evaluation is zero-shot only if none of it is
ranked. A record is plain JSON:

    {"sources": [{"data": name, "split": name or None, "classes": [...], "images": digests}, ...],
     "unknown": [weights whose training data are not recorded, ...],
     "selection": how the best checkpoint of the run is selected, or None}

`digests` is the concatenation of `DIGEST` characters per image: base64 of the first 48 bits of the
BLAKE2b hash of the encoded image, its modality and the stem of its file name. So an image is found
again in another class or data set. The name keeps apart blank images and exact copies across
classes, which data sets contain: `python -m data_pipelines.check` lists those.
"""

import base64
import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import splits
from data_pipelines.loading import Items
from zse_jax.checkpoints import initial_weights, reading
from zse_jax.evaluation import data_selection

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]

DIGEST = 8
"""Characters of an image's digest. Among 10^5 trained and 10^5 ranked images, the probability of an
accidental match is below 10^-4."""

DUPLICATES = 0.01
"""Share of ranked images that may have trained, because data sets contain a few copies of an image
with the same name in two classes. They are counted in the notes."""


class TrainedError(ValueError):
    """An evaluation ranks classes or images that trained."""


def of_run(config: ConfigDict, saved: Record | None) -> dict[str, Any]:
    """The record of a run: its training images, and what its initial weights were trained on.

    Args:
      config: of the run.
      saved: the record in the checkpoint from which the run resumes; None: it starts.
    """
    sketches, photos = data_selection.training_items(config)
    own = {
        "data": config.data.name,
        "split": config.data.split,
        "classes": list(sketches.class_names),
        "images": "".join(sorted({*digests(sketches), *digests(photos)})),
    }
    before = _of_initial_weights(config) if saved is None else saved
    sources = [source for source in before["sources"] if source != own]
    return {
        "sources": [*sources, own],
        "unknown": list(before["unknown"]),
        "selection": data_selection.selection_note(config),
    }


def of_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The record of a checkpoint; of an earlier version's, what its config implies.

    Raises:
      FileNotFoundError, ValueError: as `reading.read_config`.
    """
    if (found := reading.read_record(path)) is not None:
        return found
    config, name = reading.read_config(path), os.fspath(path)
    if not reading.step_of(path):  # converted weights
        return unknown(name)
    try:
        classes = list(data_selection.split_of(config, config.data).seen)
    except (ValueError, FileNotFoundError):  # the classes of a folder that is not on this machine
        return unknown(name)
    source = {"data": config.data.name, "split": config.data.split, "classes": classes}
    before = _of_initial_weights(config)
    return {
        "sources": [*before["sources"], source | {"images": ""}],
        "selection": data_selection.selection_note(config),
        "unknown": [*before["unknown"], f"the images of {unknown(name)['unknown'][0]}"],
    }


def untrained(config: ConfigDict) -> str:
    """The first alternative of `config.init_from` that did not train on the unseen classes.

    The last one is taken in any case. "default or package:NAME" starts from the model of this
    package unless it trained on an unseen class.

    Raises:
      ValueError, FileNotFoundError: as `data_selection.split_of`, for several alternatives.
    """
    *preferred, last = initial_weights.alternatives(config.init_from)
    unseen = data_selection.split_of(config, config.data).unseen if preferred else ()
    for path, following in zip(preferred, [*preferred[1:], last], strict=True):
        known = _trained(of_checkpoint(path), unseen)
        if not known:
            return str(path)
        names = ", ".join(known)
        logger.warning(
            "Training starts from %s, not from %s, which has trained on classes that are unseen "
            "here: %s.", following, path, names,
        )  # fmt: skip
    return str(last)


def unknown(name: str | os.PathLike) -> dict[str, Any]:
    """The record of weights whose training data are not recorded, such as a publisher's."""
    text = os.fspath(name)
    return {"sources": [], "unknown": [text if "://" in text else PurePath(text).name]}


def digests(items: Items) -> list[str]:
    """The digest of each image, in their order; reads the images."""
    found = []
    for row, name in zip(items.rows, items.names, strict=True):
        named = f"{items.modality}/{PurePath(name).stem}".encode(errors="surrogateescape")
        hashed = hashlib.blake2b(items.source[int(row)] + named, digest_size=DIGEST * 3 // 4)
        found.append(base64.urlsafe_b64encode(hashed.digest()).decode())
    return found


def compare(
    record: Record, evaluated: data_selection.Evaluated, config: ConfigDict
) -> dict[str, Any]:
    """Compares what trained with the sketches, photos and classes that count as untrained.

    These are all sketches, the photos of their classes and, for `seen_gallery="held_out"`, the
    other photos.

    Args:
      record: of the checkpoint.
      evaluated: the queries and the gallery of the evaluation.
      config: of the evaluation.

    Returns:
      Notes for the results: "selected_as" states how the checkpoint was, "training_data_unknown"
      names weights without a record, "trained_duplicates" counts images that trained (up to
      `DUPLICATES`), and "not_zero_shot" states what trained, if `config.evaluation.allow_trained`.

    Raises:
      TrainedError: it ranks classes that trained, or more than `DUPLICATES` of the sketches or of
        the photos trained, and `config.evaluation.allow_trained` is false.
    """
    notes: dict[str, Any] = {}
    if record.get("selection"):
        notes["selected_as"] = record["selection"]
    if record["unknown"]:
        notes["training_data_unknown"] = [*record["unknown"]]
    ranked = evaluated.sketches.class_names
    classes = _trained(record, ranked)
    images = {
        text[i : i + DIGEST]
        for text in (source["images"] for source in record["sources"])
        for i in range(0, len(text), DIGEST)
    }
    photos = evaluated.photos
    if config.evaluation.seen_gallery != "held_out":
        photos = photos.select((photos.labels < len(ranked)).nonzero()[0])
    counts, share = {}, 0.0
    for name, items in (("sketches", evaluated.sketches), ("photos", photos)) if images else ():
        if count := _among(items, images):
            counts[name] = f"{count} of {len(items)}"
            share = max(share, count / len(items))
    if not classes and share <= DUPLICATES:
        return notes | ({"trained_duplicates": counts} if counts else {})
    names = ", ".join(x if x == y else f"{x} as {y}" for x, y in classes.items())
    parts = [f"{len(classes)} of {len(ranked)} classes ({names})"] if classes else []
    leak = ", ".join([*parts, *(f"{count} {name}" for name, count in counts.items())])
    if not config.evaluation.get("allow_trained", False):
        raise TrainedError(
            f"The result would not be zero-shot: the model was trained on {leak} that this "
            "evaluation ranks as unseen. Evaluate in the setting of its training, or choose other "
            "unseen classes (config.data.unseen, config.data.split, config.target) and the photos "
            "that its training held out (config.data.held_out, config.data.held_out_seed). To "
            "measure it anyway, with marked results, set --config.evaluation.allow_trained=true."
        )
    return notes | {"not_zero_shot": f"trained on {leak}"}


def _trained(record: Record, classes: Sequence[str]) -> dict[str, str]:
    """Those of `classes` that trained, each with its name in the training."""
    found: dict[str, str] = {}
    for source in record["sources"]:
        found |= splits.same_classes(classes, source["classes"])
    return found


def _among(items: Items, images: Collection[str]) -> int:
    return sum(digest in images for digest in digests(items))


def _of_initial_weights(config: ConfigDict) -> dict[str, Any]:
    """The record of the weights that training starts from: of `init_from` and of the teacher."""
    sources: list[Any] = []
    names: list[str] = []
    for path in (config.get("init_from"), config.get("teacher", {}).get("weights")):
        if not path or path == initial_weights.RANDOM:
            continue
        try:
            known = initial_weights.is_checkpoint(path)
            found = of_checkpoint(path) if known else unknown(path)
        except (ValueError, OSError):  # not a checkpoint: whoever reads it reports that
            found = unknown(path)
        sources += [source for source in found["sources"] if source not in sources]
        names += found["unknown"]
    return {"sources": sources, "unknown": list(dict.fromkeys(names))}
