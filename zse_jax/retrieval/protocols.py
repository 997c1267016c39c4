"""The papers' evaluation protocols: which images are queries and gallery, and what is measured.

A protocol is a list of tasks. Each task (`Task`) defines which photos are relevant for a sketch,
among which photos they are ranked, and how that ranking is measured. The runner encodes the images,
scores the pairs block by block, and passes each block to every task.

- `zero_shot`: every sketch of the unseen classes is a query, every photo of the gallery is ranked,
  and is relevant if it is of the query's class. In the generalized setting the gallery also
  contains photos of seen classes; across data sets, sketches and photos are of another data set
  than the training's. The published validation during training uses every n-th sketch and photo.
- `fine_grained`: the one relevant photo is the one from which the sketch was drawn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Unpack

import numpy as np
from jaxtyping import Int

from zse_jax.retrieval import metrics
from zse_jax.retrieval.encoding import Batch
from zse_jax.retrieval.ranking import Ranked
from zse_jax.retrieval.results import Evaluation
from zse_jax.retrieval.runner import Encoded, Measured, Options, Task, Words, evaluate
from zse_jax.retrievers.base import Encoder


def zero_shot(
    retriever: Encoder,
    sketches: Iterable[Batch] | Encoded,
    photos: Iterable[Batch],
    *,
    conventions: Sequence[metrics.Convention] = metrics.CONVENTIONS,
    precision: Mapping[str, int] = MappingProxyType({}),
    **options: Unpack[Options],
) -> Evaluation:
    """Category-level retrieval: rank all photos for every sketch; those of its class are relevant.

    Args:
      retriever: the system; evaluated with dropout off.
      sketches: evaluation batches of the queries (see `encoding.Batch`), or encoded queries.
      photos: evaluation batches of the gallery, labelled by the same classes; it may contain
        classes without a sketch.
      conventions: of average precision; all by default.
      precision: further metrics {"P@k": k}.
      options: see `Options`.

    Raises:
      ValueError: no images, an unknown ranking or convention, or no sketch whose class has a photo.
      FloatingPointError: features or similarities are NaN.
    """
    metrics.check_conventions(conventions)
    if not conventions:
        raise ValueError(f"conventions is empty: choose from {', '.join(metrics.CONVENTIONS)}.")

    def measure(ranked: Ranked) -> Measured:
        measured = metrics.query_metrics_of(ranked, conventions)
        first = {name: metrics.precision_at(ranked, k) for name, k in precision.items()}
        return {str(convention): named | first for convention, named in measured.items()}

    def tasks(sketch_labels: np.ndarray, photo_labels: np.ndarray) -> list[Task]:
        if not np.isin(sketch_labels, photo_labels).any():
            raise ValueError(
                f"None of the {len(sketch_labels)} queries is of a class that has a photo in the "
                "gallery: there is nothing to measure. Check that sketches and photos are labelled "
                "by one split and that strides do not skip whole classes."
            )
        return [Task(sketch_labels, photo_labels, measure)]

    return evaluate(retriever, sketches, photos, Words("Zero-shot retrieval"), tasks, **options)


def fine_grained(
    retriever: Encoder,
    sketches: Iterable[Batch] | Encoded,
    photos: Iterable[Batch],
    *,
    sketch_instances: Int[np.ndarray, " q"],
    photo_instances: Int[np.ndarray, " g"],
    **options: Unpack[Options],
) -> Evaluation:
    """Fine-grained retrieval: whether the photo that was drawn is among the first 1, 5 or 10.

    The values' scopes are "class", ranked among the photos of the sketch's class, as papers usually
    report; and "all", ranked among all photos. Both use the same scores.

    Args:
      retriever: the system; evaluated with dropout off.
      sketches: evaluation batches of the queries; see `encoding.Batch`. Labels are classes.
      photos: evaluation batches of the gallery, labelled by the same classes.
      sketch_instances: the instance that each sketch shows, in the order of the batches; negative
        if it is not known.
      photo_instances: the instance of each photo; negative if there is no sketch of it. Numbers are
        unique across classes. If an instance has several photos, any of them counts as correct.
      options: see `Options`.

    Raises:
      ValueError: no images, an unknown ranking, instances that do not match the images or their
        classes, or no sketch with its own photo in the gallery.
      FloatingPointError: features or similarities are NaN.
    """

    def tasks(sketch_labels: np.ndarray, photo_labels: np.ndarray) -> list[Task]:
        own = _instances(sketch_instances, sketch_labels, photo_instances, photo_labels)
        within = Task(*own, _accuracy("class"), sketch_labels, photo_labels)
        return [within, Task(*own, _accuracy("all"))]

    words = Words("Fine-grained retrieval", "ranked among", "their own photo")
    return evaluate(retriever, sketches, photos, words, tasks, **options)


def _accuracy(scope: str) -> Callable[[Ranked], Measured]:
    return lambda ranked: {scope: metrics.accuracy_at(ranked)}


def _instances(
    sketches: np.ndarray, sketch_labels: np.ndarray, photos: np.ndarray, photo_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Checked instances of sketches and photos; unknown ones never match."""
    images = ("photo", photos, photo_labels), ("sketch", sketches, sketch_labels)
    for what, instances, labels in images:
        if len(instances) != len(labels):
            raise ValueError(
                f"There are {len(instances)} {what}_instances for {len(labels)} {what} images: "
                "pass one for every image, in the order of the batches."
            )
    known, first = np.unique(photos, return_index=True)
    for what, instances, labels in images:
        place = np.searchsorted(known, instances).clip(max=len(known) - 1)
        expected = photo_labels[first[place]]
        paired = (instances >= 0) & (known[place] == instances)
        if (wrong := np.flatnonzero(paired & (expected != labels))).size:
            number = wrong[0]
            raise ValueError(
                f"Instance {instances[number]} is of class {expected[number]} by its first photo, "
                f"but {what} {number}, counting from 0, is of class {labels[number]}: instance "
                "numbers must be unique across classes, and a sketch must have its photo's class."
            )
    if not (np.isin(sketches, photos) & (sketches >= 0)).any():
        raise ValueError(
            f"None of the {len(sketches)} sketches has its own photo in the gallery of "
            f"{len(photos)}: there is nothing to measure. Fine-grained retrieval needs a data set "
            "with instance pairs, and strides that keep both images of a pair."
        )
    return np.where(sketches < 0, -2, sketches), np.maximum(photos, -1)
