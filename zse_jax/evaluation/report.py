"""Draws the results of an evaluation and writes its HTML report."""

import io
import json
import os
import platform
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from data_pipelines import loading, paths
from zse_jax.checkpoints import reading
from zse_jax.evaluation import data_selection
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.retrieval import encoding
from zse_jax.retrieval.results import Evaluation
from zse_jax.retrieval.storage import Storage
from zse_jax.retrievers.base import Encoder, Explainable, Modality
from zse_jax.runtime import config_io
from zse_jax.runtime.console import duration
from zse_jax.runtime.metrics_file import METRICS_FILE, read_metrics
from zse_jax.version import __version__

if TYPE_CHECKING:
    from zse_jax.explain.report import Embedded

MAPPED = 128
"""Images of each modality on the map of embeddings, which are encoded again."""


def draw(evaluator: Evaluator, results: Evaluation, image_size: int, folder: str) -> None:
    """Draws the photos that each ranking finds for one sketch of every unseen class.

    Args:
      evaluator: has the images of `results`.
      results: of the evaluation.
      image_size: of the drawn images, in pixels.
      folder: gets a picture for each ranking, retrieved-RANKING.png.
    """
    from zse_jax.explain import figures  # imports matplotlib, which training does not need

    _, queries = np.unique(results.sketch_labels, return_index=True)
    sketches = Prepared(evaluator.sketches.select(queries), image_size)
    instances: dict[str, Any] = {}
    if evaluator.fine_grained:
        sketch_instances, photo_instances = evaluator.instances
        instances = {
            "sketch_instances": sketch_instances[queries],
            "photo_instances": photo_instances,
        }
    for ranking, top in results.top.items():
        two_stage = "@" in ranking  # its similarities are ranks
        figure = figures.retrieval_grid(
            sketches,
            Prepared(evaluator.photos, image_size),
            top[queries],
            sketch_labels=results.sketch_labels[queries],
            photo_labels=results.photo_labels,
            class_names=evaluator.photos.class_names,
            similarity=None if two_stage else results.top_similarity[ranking][queries],
            title=f"Most similar photos by {ranking}",
            **instances,
        )
        save(figure, folder, f"retrieved-{ranking}.png")


def draw_training(path: str | os.PathLike, folder: str, metric: str) -> None:
    """Draws the loss and `metric` over steps into `folder`, if `path` belongs to a run."""
    from zse_jax.explain import figures

    if records := training_records(path):
        classes = data_selection.selecting_classes(reading.read_config(path))
        save(
            figures.training_curves(records, metric=metric, classes=classes), folder, "training.png"
        )


def training_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of the run that `path` belongs to; empty if there is no run."""
    path = reading.absolute(path)
    for workdir in (path, *path.parents[:2]):
        if (workdir / METRICS_FILE).exists():
            return read_metrics(workdir / METRICS_FILE)
    return []


def write_report(
    evaluator: Evaluator,
    results: Evaluation,
    retriever: Encoder,
    path: str | os.PathLike,
    file: str | os.PathLike,
) -> None:
    """Writes the HTML report of an evaluation. All processes encode, process 0 writes.

    Args:
      evaluator: has the images of `results`.
      results: of the evaluation.
      retriever: that was evaluated.
      path: of its checkpoint.
      file: the page to write; its folder is created.

    Raises:
      ValueError: `results` do not belong to `evaluator`.
    """
    from zse_jax.explain import report
    from zse_jax.explain.correspondence import Explainer

    began = time.monotonic()
    print("report: encoding for the map, explaining and drawing", flush=True)
    config, size = evaluator.config, retriever.image_size
    text = config.evaluation.queries == "text"
    mapped = None if text else embedded(evaluator, retriever)
    step = reading.step_of(path)  # called by all processes
    if jax.process_index():
        return
    why_not = ""
    if text:
        why_not = "the queries are class names; the sketches stand for their classes."
    elif not isinstance(retriever, Explainable):
        why_not = f"{type(retriever).__name__} compares images as wholes and has no local evidence."
    instances = evaluator.instances if evaluator.fine_grained else (None, None)
    leak = results.notes.get("not_zero_shot")
    select, measured = config.evaluation.select, [*results.flat()]
    ranking = select.partition("/")[0]
    of_ranking = [name for name in measured if name.startswith(f"{ranking}/")]
    material = report.Material(
        sketches=Prepared(evaluator.sketches, size),
        photos=Prepared(evaluator.photos, size),
        headline=select if select in measured else next(iter(of_ranking), ""),
        sketch_instances=instances[0],
        photo_instances=instances[1],
        explainer=None if why_not else Explainer(retriever),
        unexplained=why_not,
        records=training_records(path),
        validated_on=data_selection.selecting_classes(reading.read_config(path)),
        embedded=mapped,
        about={
            "checkpoint": str(path),
            "step": str(step),
            "system": f"{config.model.system} ({type(retriever).__name__})",
            "versions": f"zse_jax {__version__}, jax {jax.__version__} on {jax.default_backend()}, "
            f"Python {platform.python_version()}",
        },
        config=json.dumps(config_io.to_plain(config), indent=2),
        warnings=[f"not zero-shot: {leak}."] if leak else [],
    )
    page = report.report(results, material, progress=True)
    content = page.encode()
    paths.replace(file, content)
    took = duration(time.monotonic() - began)
    print(f"wrote {file} ({len(content) / 1e6:.1f} MB, {took})")


def embedded(evaluator: Evaluator, retriever: Encoder) -> "Embedded | None":
    """Embeddings of up to `MAPPED` sketches and photos at even intervals; None for fewer than 4.

    Only classes with sketches are on the map, even if the gallery has more.
    """
    from zse_jax.explain.report import Embedded

    vectors, labels, sides = [], [], []
    both: tuple[tuple[loading.Items, Modality], ...] = (
        (evaluator.sketches, "sketch"),
        (evaluator.photos, "photo"),
    )
    for items, modality in both:
        of_interest = np.flatnonzero(np.isin(items.labels, evaluator.sketches.labels))
        count = min(MAPPED, len(of_interest))
        some = items.select(of_interest[np.linspace(0, len(of_interest) - 1, count).astype(int)])
        batches = evaluator.batches(some, retriever.image_size)
        features, found = encoding.encode(
            retriever, batches, modality, sharding=evaluator.sharding, storage=Storage("host")
        )
        features = jax.tree.map(jnp.asarray, features)
        vectors.append(np.asarray(retriever.embed(features, modality), np.float32))
        labels.append(found)
        sides.append(np.full(len(found), modality == "sketch"))
    if sum(map(len, labels)) < 4:
        return None
    return Embedded(*(np.concatenate(parts) for parts in (vectors, labels, sides)))


class Prepared:
    """The prepared images of some items, read on access."""

    def __init__(self, items: loading.Items, size: int):
        """`size`: side of the square images in pixels."""
        self._items, self._size = items, size

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "h w 3"]:
        """The image of item `index`."""
        return self._items.image(index, self._size)


def save(figure: Any, folder: str | os.PathLike, name: str) -> None:
    """Writes a figure into a folder, which is created."""
    file = paths.located(folder) / name
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    paths.replace(file, content.getvalue())
    print(f"wrote {file}")
