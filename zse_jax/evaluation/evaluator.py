"""Evaluates a retriever: ranks the photos of the unseen classes for their sketches."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from data_pipelines import loading, paths, splits
from data_pipelines.suggestions import counted
from zse_jax.checkpoints import initial_weights
from zse_jax.evaluation import data_selection, tables, text_baseline, training_record
from zse_jax.retrieval import metrics, protocols
from zse_jax.retrieval.expansion import EXPANDED
from zse_jax.retrieval.results import Evaluation, metric_labels
from zse_jax.retrieval.storage import Storage
from zse_jax.retrievers.base import Encoder
from zse_jax.runtime import config_io, consistency, sharding

logger = logging.getLogger(__name__)

Values = Mapping[str, float]
"""{"relation/exact/mAP@all": 0.43, ...}: ranking / convention / metric, in [0, 1]."""

WORTH_WORKERS = 4000
"""Number of images from which decoding in worker processes is faster, despite their start-up."""


class Evaluator:
    """Ranks the photos of the unseen classes for their sketches, each time it is called.

    Attributes:
      config: the config of the setting.
      sharding: of the batches.
      sketches, photos: the queries and the gallery, every n-th by the strides; images are not read
        yet.
      notes: how they were chosen, as plain values.
      size: their numbers, as text.
      title: the name of their split.
      fine_grained: whether only the photo that was drawn is relevant.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        sketch_stride: int,
        photo_stride: int,
        *,
        selection: bool = False,
    ):
        """Opens the data set of the setting, and prepares it if necessary.

        With `selection`, it ranks the classes by which checkpoints are selected, see
        `data_selection.evaluated_items`.

        Raises:
          ValueError: unknown names, nothing to rank, or a batch that does not divide over the mesh.
          FileNotFoundError: the data set is not on this machine.
        """
        sharding.check_batch_size(
            mesh, config.evaluation.batch_size, "config.evaluation.batch_size"
        )
        self.config, self.sharding = config, sharding.batch_sharding(mesh)
        self._evaluated = data_selection.evaluated_items(
            config, sketch_stride, photo_stride, selection=selection
        )
        self.sketches, self.photos, self.notes, self._whole = self._evaluated
        self._selection = selection
        if config.evaluation.get("expansion", 0):
            self.notes["expansion"] = f"by {config.evaluation.expansion} photos of the gallery"
        if config.evaluation.get("pooled_tokens", False):
            self.notes["scores"] = "inexact: from means of 2 x 2 tokens"
        sketches = counted(len(self.sketches), "sketch", "sketches")
        self.size = f"{sketches} x {counted(len(self.photos), 'photo', 'photos')}"
        self.title = title(config)
        self.fine_grained = config.evaluation.protocol == "fine_grained"

    def compare(self, record: training_record.Record) -> None:
        """Compares what trained, see `training_record.compare`; adds to `notes`.

        Raises:
          TrainedError: the evaluation is not zero-shot, and `config.evaluation.allow_trained` is
            false.
        """
        self.notes |= training_record.compare(record, self._evaluated, self.config)
        if leak := self.notes.get("not_zero_shot"):
            logger.warning("Not zero-shot: %s.", leak)

    @property
    def ranked(self) -> tables.Ranked:
        """What is ranked: the first line of every table."""
        config, notes = self.config, self.notes
        kind, test = "unseen classes", not notes.get("classes")
        if not test:
            own = config.data.split and splits.get(config.data.split).validation
            kind = "validation classes" if own else "held-out seen classes"
        gallery = notes.get("seen_gallery")
        return tables.Ranked(
            f"{kind} of {self.title}",
            (len(self.sketches), self._whole[0]),
            (len(self.photos), self._whole[1]),
            test=test,
            subset=self._selection,
            gallery=f"gallery with photos of seen classes ({gallery})" if gallery else "",
            not_zero_shot=notes.get("not_zero_shot", ""),
        )

    @property
    def classes(self) -> str:
        """What is evaluated, in two words; says so if some of it trained."""
        if "not_zero_shot" in self.notes:
            return "Classes (NOT ZERO-SHOT)"
        return "Validation classes" if self.notes.get("classes") else "Unseen classes"

    @property
    def labels(self) -> dict[str, str]:
        """The names of the metrics for tables, see `results.metric_labels`."""
        known = (*metrics.METRICS, *metrics.FIRST_PHOTOS, *metrics.ACCURACY)
        return metric_labels(known, self.sketches.labels, self.photos.labels)

    @property
    def instances(self) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " g"]]:
        """The instance of each sketch and each photo, as numbers that both share."""
        return data_selection.instance_numbers(self.sketches, self.photos)

    def __call__(
        self, retriever: Encoder, *, folder: str | os.PathLike | None = None, **options: Any
    ) -> Evaluation:
        """Measures `retriever`.

        Args:
          retriever: the system to evaluate.
          folder: keeps features and finished scores on disk, so that an evaluation that was killed
            resumes; None: keeps nothing.
          options: those of `protocols.zero_shot`.
        """
        evaluation = self.config.evaluation
        folder = None if folder is None else paths.local(folder, "--scratch")
        storage = Storage(
            where=evaluation.storage,
            dtype=evaluation.storage_dtype,
            folder=folder,
            key="" if folder is None else self.key(retriever.image_size),
        )
        given: dict[str, Any] = {
            "rankings": evaluation.rankings or None,
            "expansion": evaluation.get("expansion", 0),
            "sharding": self.sharding,
            "storage": storage,
            "folder": folder,
            "class_names": self.photos.class_names,
            "clusters": data_selection.photos_drawn(self.sketches),
            "over": evaluation.get("intervals", "sketches"),
            "notes": self.notes,
        }
        run: Any = protocols.zero_shot
        if not self.fine_grained:
            given["precision"] = metrics.FIRST_PHOTOS
        else:
            run = protocols.fine_grained
            given["sketch_instances"], given["photo_instances"] = self.instances
        queries: Any = self.batches(self.sketches, retriever.image_size)
        if evaluation.queries == "text":
            queries = text_baseline.class_queries(retriever, self.sketches)
        photos = self.batches(self.photos, retriever.image_size)
        if evaluation.get("pooled_tokens", False):
            retriever = retriever.with_pooled_tokens()
        if self.notes.get("started_from") == initial_weights.RANDOM_VALUES:
            name = options.get("name", str(self.ranked))
            options["name"] = f"{name}, started from {initial_weights.RANDOM_VALUES}"
        return run(retriever, queries, photos, **given | options)

    def key(self, image_size: int) -> str:
        """Identifies the features and scores of an evaluation, besides the retriever.

        The queries and the gallery in their order, with the content of every image, which is read
        for this; the size of the images; and the code.
        """
        queries = self.config.evaluation.queries
        code = consistency.code_digest(*consistency.FEATURE_CODE)
        images = " and ".join(map(data_selection.content_digest, (self.sketches, self.photos)))
        data = self.notes["data"]
        return f"{data}, {queries} queries, {image_size} pixels, images {images}, code {code}"

    def batches(self, items: loading.Items, image_size: int) -> Any:
        """Evaluation batches of `items`, with square images of `image_size` pixels."""
        return loading.evaluation_batches(
            items,
            image_size=image_size,
            batch_size=self.config.evaluation.batch_size // jax.process_count(),
            workers=self.config.data.workers if len(items) > WORTH_WORKERS else 0,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )


def title(config: ConfigDict) -> str:
    """The name of the split that a setting evaluates on, or of a data set without splits."""
    data = config.data if config.target.name is None else config.target
    return data.split or data.name


def check_select(config: ConfigDict, rankings: Mapping[str, str]) -> None:
    """Checks that the setting measures `config.evaluation.select`.

    Args:
      config: of the setting.
      rankings: of the system, see `Encoder.rankings`.

    Raises:
      ValueError: it does not; names the nearest metric that is measured.
    """
    named: Sequence[str] = (*metrics.METRICS, *metrics.FIRST_PHOTOS)
    measured: Mapping[str, Sequence[str]] = dict.fromkeys(metrics.CONVENTIONS, named)
    if config.evaluation.protocol == "fine_grained":
        measured = dict.fromkeys(("class", "all"), metrics.ACCURACY)
    names = config.evaluation.rankings or tuple(rankings)
    expands = config.evaluation.get("expansion", 0)
    expanded = [name for name in names if expands and rankings.get(name) == "embedding"]
    known = [
        f"{ranking}/{scope}/{name}"
        for ranking in (*names, *(name + EXPANDED for name in expanded))
        for scope, names in measured.items()
        for name in names
    ]
    select = config.evaluation.select
    if select not in known:
        raise ValueError(
            f"config.evaluation.select={select!r} is not a metric of this system and protocol: did "
            f"you mean {config_io.nearest(select, known)!r}?"
        )
