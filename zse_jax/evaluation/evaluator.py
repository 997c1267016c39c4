"""Evaluates a system: ranks the photos of the unseen classes for their sketches."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict
from rich.table import Table

from data_pipelines import loading, splits
from zse_jax.checkpoints import reading
from zse_jax.evaluation import data_selection, text_baseline
from zse_jax.retrieval import metrics, protocols
from zse_jax.retrieval.results import Evaluation
from zse_jax.retrieval.storage import Storage
from zse_jax.retrievers.base import Encoder
from zse_jax.runtime import config_io, sharding

logger = logging.getLogger(__name__)


Values = Mapping[str, float]
"""{"relation/exact/mAP@all": 0.43, ...}: ranking / convention / metric, in [0, 1]."""


WORTH_WORKERS = 4000
"""Images from which on it pays to start processes that decode them, which takes seconds."""


class Evaluator:
    """Ranks the unseen classes' photos for their sketches, as often as it is called.

    Attributes:
      config: of the setting.
      sharding: of its batches.
      sketches, photos: the items (not read yet) that the setting ranks, thinned by the strides.
      notes: how they were chosen, as plain values.
      size: how many there are of each, for people.
      title: the split they are of, for people.
      fine_grained: whether only the photo that was drawn is right.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, sketch_stride: int, photo_stride: int):
        """Opens the data set of the setting, preparing it first where it is not there.

        Raises:
          ValueError: unknown names, nothing to rank, or a batch that does not divide over the mesh.
          FileNotFoundError: the data set is not on this machine.
        """
        sharding.check_batch_size(
            mesh, config.evaluation.batch_size, "config.evaluation.batch_size"
        )
        self.config, self.sharding = config, sharding.batch_sharding(mesh)
        self.sketches, self.photos, self.notes = data_selection.evaluated_items(
            config, sketch_stride, photo_stride
        )
        self.size = f"{len(self.sketches):,} sketches x {len(self.photos):,} photos"
        self.title = self.notes["data"] if config.data.split is None else self.notes["split"]
        self.fine_grained = config.evaluation.protocol == "fine_grained"

    @property
    def instances(self) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " g"]]:
        """Which instance each sketch and each photo is of, as numbers that they share."""
        return data_selection.instance_numbers(self.sketches, self.photos)

    def __call__(
        self, retriever: Encoder, *, folder: str | os.PathLike | None = None, **options: Any
    ) -> Evaluation:
        """What `retriever` reaches.

        Args:
          retriever: the system.
          folder: where features that are kept on disk and finished scores lie, so that an
            evaluation that is killed continues; None: nowhere.
          options: those of `protocols.zero_shot`.
        """
        evaluation = self.config.evaluation
        storage = Storage(
            where=evaluation.storage,
            dtype=evaluation.storage_dtype,
            folder=folder,
            key=self._key(retriever.image_size),
        )
        given: dict[str, Any] = {
            "rankings": evaluation.rankings or None,
            "sharding": self.sharding,
            "storage": storage,
            "folder": folder,
            "class_names": self.photos.class_names,
            "notes": self.notes,
        }
        run: Any = protocols.zero_shot
        if self.fine_grained:
            run = protocols.fine_grained
            given["sketch_instances"], given["photo_instances"] = self.instances
        sketches = self.sketches
        if evaluation.queries == "text":
            retriever = text_baseline.ByName(retriever, self.photos.class_names)
            sketches = text_baseline.spelled(sketches)
        batches = (self.batches(x, retriever.image_size) for x in (sketches, self.photos))
        return run(retriever, *batches, **given | options)

    def _key(self, image_size: int) -> str:
        """Which images are evaluated, in which order and size."""
        digest = hashlib.sha256()
        for items in (self.sketches, self.photos):
            for name in items.names:
                digest.update(name.encode() + b"\n")
        return f"{self.notes['data']}/{image_size}/{digest.hexdigest()[:16]}"

    def batches(self, items: loading.Items, image_size: int) -> Any:
        """Evaluation batches of some items, images of `image_size` pixels a side."""
        return loading.evaluation_batches(
            items,
            image_size=image_size,
            batch_size=self.config.evaluation.batch_size // jax.process_count(),
            workers=self.config.data.workers if len(items) > WORTH_WORKERS else 0,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )


def check_select(config: ConfigDict, rankings: Iterable[str]) -> None:
    """Checks that `config.evaluation.select` is measured in the setting, by one of `rankings`.

    Raises:
      ValueError: it is not, naming the nearest that is.
    """
    measured: Mapping[str, Sequence[str]] = dict.fromkeys(metrics.CONVENTIONS, metrics.METRICS)
    if config.evaluation.protocol == "fine_grained":
        measured = dict.fromkeys(("class", "all"), metrics.ACCURACY)
    known = [
        f"{ranking}/{scope}/{name}"
        for ranking in config.evaluation.rankings or rankings
        for scope, names in measured.items()
        for name in names
    ]
    select = config.evaluation.select
    if select not in known:
        raise ValueError(
            f"config.evaluation.select={select!r} is no metric of this system and protocol: did "
            f"you mean {config_io.nearest(select, known)!r}?"
        )


def comparison(before: Values, after: Values, step: int, size: str) -> Table:
    """What training brought: "untrained -> step N" for everything that was measured."""
    table = Table(
        title=f"Unseen classes: untrained \N{RIGHTWARDS ARROW} step {step}",
        caption=f"percent; {size}",
    )
    names = tuple(dict.fromkeys(key.rpartition("/")[2] for key in after))
    for name in ("ranking", "", *names):
        table.add_column(name, justify="right" if name in names else "left")
    for row in dict.fromkeys(key.rpartition("/")[0] for key in after):
        cells = (
            "\N{RIGHTWARDS ARROW}".join(
                f"{100 * values[f'{row}/{name}']:.1f}" for values in (before, after) if values
            )
            for name in names
        )
        table.add_row(*row.split("/"), *cells)
    return table


def trained_on(path: str, config: ConfigDict, ranked: Sequence[str]) -> dict[str, Any]:
    """Notes on classes that the checkpoint at `path` was trained on although they are ranked.

    There are none while it is evaluated in its own setting. In another one it is warned of, because
    such numbers are no zero-shot results.
    """
    trained = reading.read_config(path)
    if (trained.data.name, trained.data.split) == (config.data.name, config.data.split):
        return {}
    seen = data_selection.split_of(trained, trained.data)
    leaked = splits.same_classes(ranked, seen.seen)
    if leaked:
        names = ", ".join(f"{ours} (as {theirs})" for ours, theirs in leaked.items())
        logger.warning(
            "%s was trained on %s, and with it on %d of the %d classes that are ranked: %s. This "
            "is no zero-shot result; a config with a target leaves such classes out.",
            path,
            trained.data.split or trained.data.name,
            len(leaked),
            len(ranked),
            names,
        )
    return {"trained_on": trained.data.split or trained.data.name, "seen_but_ranked": leaked}


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes `content` to the file `path`, creating its folder; the first process does."""
    if jax.process_index():
        return
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")
