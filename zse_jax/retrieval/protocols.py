"""How the papers evaluate: which images are queries, which the gallery, and what is measured.

`zero_shot` is the category-level protocol: every sketch of the unseen classes is a query, every
photo of the unseen classes is in the gallery, a photo is relevant if it is of the query's class.
The published validation while training is the same on every n-th sketch and photo.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int32
from rich.table import Table

from zse_jax.retrieval import metrics
from zse_jax.retrieval.encoding import Batch, encode
from zse_jax.retrieval.scoring import ranking_kind, similarity
from zse_jax.retrievers.base import Retriever

Values = Mapping[str, Mapping[metrics.Convention, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a protocol measured.

    Attributes:
      values: ranking -> convention of average precision -> metric -> value in 0..1.
      queries, gallery, classes: sketches ranked, photos they were ranked among, classes of either.
      queries_without_match: sketches of a class without a photo in the gallery; they are no part
        of the means.
      chance: expected precision of a random ranking, in 0..1.
      seconds: wall time by stage: "encode/sketch", "encode/photo", then "rank/<ranking>" and
        "metrics".
      sketch_labels, photo_labels: classes, in the order of the similarities.
      similarities: ranking -> float32 [queries, gallery]; empty unless asked for.
    """

    values: Values
    queries: int
    gallery: int
    classes: int
    queries_without_match: int
    chance: float
    seconds: Mapping[str, float]
    sketch_labels: Int32[np.ndarray, " q"] = dataclasses.field(repr=False)
    photo_labels: Int32[np.ndarray, " g"] = dataclasses.field(repr=False)
    similarities: Mapping[str, Float[np.ndarray, "q g"]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def flat(self) -> dict[str, float]:
        """The values for a metric writer: {"relation/exact/mAP@all": 0.52, ...}."""
        return {
            f"{ranking}/{convention}/{name}": value
            for ranking, conventions in self.values.items()
            for convention, named in conventions.items()
            for name, value in named.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, ready for `json.dump`."""
        arrays = {"sketch_labels", "photo_labels", "similarities"}
        fields = (field.name for field in dataclasses.fields(self))
        return {name: _plain(getattr(self, name)) for name in fields if name not in arrays}

    def table(self, title: str = "Zero-shot retrieval") -> Table:
        """The values in percent, for `rich.print`."""
        excluded = (
            f"; {self.queries_without_match} sketches without a photo of their class left out"
            if self.queries_without_match
            else ""
        )
        table = Table(
            title=title,
            caption=f"percent; {self.queries} sketches x {self.gallery} photos of {self.classes} "
            f"classes, chance {100 * self.chance:.1f}{excluded}",
        )
        table.add_column("ranking")
        table.add_column("convention")
        for name in metrics.METRICS:
            table.add_column(name, justify="right")
        for ranking, conventions in self.values.items():
            for position, (convention, named) in enumerate(conventions.items()):
                table.add_row(
                    ranking if position == 0 else "",
                    convention,
                    *(f"{100 * named[name]:.1f}" for name in metrics.METRICS),
                    end_section=position == len(conventions) - 1,
                )
        return table


def zero_shot(
    retriever: Retriever,
    sketches: Iterable[Batch],
    photos: Iterable[Batch],
    *,
    rankings: Sequence[str] | None = None,
    conventions: Sequence[metrics.Convention] = metrics.CONVENTIONS,
    sharding: NamedSharding | None = None,
    tile: tuple[int, int] | None = None,
    keep_similarities: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Category-level zero-shot retrieval: rank all photos for every sketch, and measure.

    Args:
      retriever: the system; its dropout is off while it is evaluated.
      sketches: evaluation batches of the queries; see `encoding.Batch`.
      photos: evaluation batches of the gallery, labelled by the same classes.
      rankings: which of the retriever's rankings; all by default.
      conventions: of average precision; all by default.
      sharding: how a batch is spread over a mesh; None: the default device.
      tile: see `scoring.similarity`.
      keep_similarities: return the similarities too (4 bytes for each pair and ranking).
      progress: show what is being done, and how long it will take.

    Raises:
      ValueError: no images, an unknown ranking or convention, or no sketch whose class has a photo.
      FloatingPointError: features or similarities are NaN.
    """
    rankings = tuple(retriever.rankings if rankings is None else rankings)
    for ranking in rankings:
        ranking_kind(retriever, ranking)  # A misspelt name shall not cost an hour of encoding.
    watch = _Stopwatch()
    with watch("encode/sketch"):
        sketch_features, sketch_labels = encode(
            retriever, sketches, "sketch", sharding=sharding, progress=_say(progress, "sketches")
        )
    with watch("encode/photo"):
        photo_features, photo_labels = encode(
            retriever, photos, "photo", sharding=sharding, progress=_say(progress, "photos")
        )
    values, similarities = {}, {}
    for ranking in rankings:
        with watch(f"rank/{ranking}"):
            scores = similarity(
                retriever,
                sketch_features,
                photo_features,
                ranking,
                sharding=sharding,
                tile=tile,
                progress=_say(progress, ranking),
            )
        with watch("metrics"):
            by_query = metrics.query_metrics(scores, sketch_labels, photo_labels, conventions)
            values[ranking] = metrics.mean_over_queries(by_query)
        if keep_similarities:
            similarities[ranking] = scores
    return Evaluation(
        values=values,
        queries=len(sketch_labels),
        gallery=len(photo_labels),
        classes=len(np.union1d(sketch_labels, photo_labels)),
        queries_without_match=metrics.without_match(sketch_labels, photo_labels),
        chance=metrics.chance_level(sketch_labels, photo_labels),
        seconds=watch.seconds,
        sketch_labels=sketch_labels,
        photo_labels=photo_labels,
        similarities=similarities,
    )


class _Stopwatch:
    """Adds up wall time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _say(progress: bool, what: str) -> str | None:
    return what if progress else None


def _plain(value: Any) -> Any:
    """Mappings of any kind as dicts, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
