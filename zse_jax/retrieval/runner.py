"""Runs an evaluation: encode once, score block by block, measure every task.

Memory is bounded: similarities exist for one block of sketches, on the device that computed them;
only the metrics and the first photos of each sketch are kept.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int, Real

from zse_jax.retrieval import metrics, scoring
from zse_jax.retrieval.encoding import Batch, encode
from zse_jax.retrieval.expansion import EXPANDED
from zse_jax.retrieval.intervals import Over
from zse_jax.retrieval.ranking import Ranked, rank
from zse_jax.retrieval.results import Evaluation
from zse_jax.retrieval.storage import Storage
from zse_jax.retrieval.two_stage import two_stage_blocks
from zse_jax.retrievers.base import Encoder, Features, Modality

KEPT = 200
"""Number of first photos of every sketch that an `Evaluation` keeps."""

Block = tuple[slice, np.ndarray | jax.Array]
"""Consecutive sketches, and their similarity with every photo."""

Measured = Mapping[str, Mapping[str, Float[np.ndarray, " q"]]]
"""scope -> metric -> value of every query."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Which photos are relevant and ranked, and how the ranking is measured.

    Attributes:
      query_labels, gallery_labels: a photo is relevant if its label is the query's.
      measure: maps a ranking to scope -> metric -> value of every query.
      query_groups, gallery_groups: a photo is ranked if its group is the query's; None: all are.
    """

    query_labels: Int[np.ndarray, " q"]
    gallery_labels: Int[np.ndarray, " g"]
    measure: Callable[[Ranked], Measured]
    query_groups: Int[np.ndarray, " q"] | None = None
    gallery_groups: Int[np.ndarray, " g"] | None = None

    def rank(self, similarity: Real[np.ndarray | jax.Array, "b g"], rows: slice) -> Ranked:
        """The ranking of some consecutive queries, by their similarity with every photo."""
        return rank(
            similarity,
            self.query_labels[rows],
            self.gallery_labels,
            query_groups=None if self.query_groups is None else self.query_groups[rows],
            gallery_groups=self.gallery_groups,
            top=KEPT,
            first_query=rows.start,
        )


class Options(TypedDict, total=False):
    """Options of every protocol.

    Attributes:
      rankings: which of the retriever's rankings to measure; None, the default: all.
      shortlists: numbers of photos K. For each, every ranking of kind "score" is measured a second
        time as "RANKING@K": only the K photos that are nearest by the first ranking of kind
        "embedding" are scored, at the cost of K photos instead of the whole gallery. A K of at
        least the gallery's size gives the ranking itself.
      expansion: number of photos that expand each query, see `zse_jax.retrieval.expansion`; 0, the
        default: none. If given, every ranking of kind "embedding" is measured a second time as
        "RANKING+expansion", and two-stage rankings as "RANKING@K+expansion".
      sharding: how a batch is spread over a mesh; None, the default: the default device.
      tile: see `scoring.similarity_blocks`.
      storage: where features are kept, see `storage.Storage`.
      folder: keeps the scores of each ranking of kind "score" as they are computed, so that a
        killed run can resume; None, the default: not kept.
      progress: show progress bars.
      name: title of the tables.
      notes: plain values to store in the results: split, seed, excluded classes, ...
      class_names: name of each class, by label.
      clusters, over: for the intervals, see `Evaluation`.
    """

    rankings: Sequence[str] | None
    shortlists: Sequence[int]
    expansion: int
    sharding: NamedSharding | None
    tile: tuple[int, int] | None
    storage: Storage
    folder: str | PathLike | None
    progress: bool
    name: str | None
    notes: Mapping[str, Any]
    class_names: Sequence[str] | None
    clusters: Int[np.ndarray, " q"] | None
    over: Over


class Encoded(NamedTuple):
    """Queries that are already encoded: features with the query as leading axis, and labels [Q]."""

    features: Features
    labels: Int[np.ndarray, " q"]


class Words(NamedTuple):
    """A protocol's words for tables: its name, its scopes, what sketches without a value lack."""

    name: str
    scope: str = "convention"
    missing: str = "a photo of their class"


def evaluate(
    retriever: Encoder,
    sketches: Iterable[Batch] | Encoded,
    photos: Iterable[Batch],
    words: Words,
    tasks_of: Callable[[np.ndarray, np.ndarray], Sequence[Task]],
    **options: Unpack[Options],
) -> Evaluation:
    """Encodes, ranks by every ranking, measures every task; the first photos are the last task's.

    Args:
      retriever: the system.
      sketches, photos: evaluation batches, see `encoding.Batch`.
      words: for the tables.
      tasks_of: makes the tasks from the labels of sketches and photos.
      options: see `Options`.
    """
    shortlists, sharding = options.get("shortlists", ()), options.get("sharding")
    expansion = options.get("expansion", 0)
    storage, folder = options.get("storage", Storage()), options.get("folder")
    rankings = _checked_rankings(retriever, options.get("rankings"), shortlists)
    watch = _Stopwatch()

    def bar(description: str) -> str | None:
        return description if options.get("progress") else None

    def encoded(modality: Modality, batches: Iterable[Batch]) -> tuple[Features, np.ndarray]:
        with watch(f"encode/{modality}"):
            return encode(
                retriever,
                batches,
                modality,
                sharding=sharding,
                progress=bar("sketches" if modality == "sketch" else "photos"),
                storage=storage,
            )

    if not isinstance(sketches, Encoded):
        sketches = Encoded(*encoded("sketch", sketches))
    sketch_features, sketch_labels = sketches
    photo_features, photo_labels = encoded("photo", photos)
    features = retriever, sketch_features, photo_features
    tasks = tasks_of(sketch_labels, photo_labels)

    def blocks_of(ranking: str, expansion: int) -> Iterator[Block]:
        return scoring.similarity_blocks(
            *features,
            ranking,
            sharding=sharding,
            tile=options.get("tile"),
            progress=bar(ranking),
            folder=None if folder is None else Path(folder) / ranking,
            key=storage.key,
            expansion=expansion,
        )

    def ranked_blocks() -> Iterator[tuple[str, Iterator[Block]]]:
        """The name of every ranking to measure, and its similarities by blocks of sketches."""
        for ranking in rankings:
            yield ranking, blocks_of(ranking, 0)
            if scoring.ranking_kind(retriever, ranking) == "embedding":
                if expansion:
                    yield ranking + EXPANDED, blocks_of(ranking, expansion)
                continue
            for k in shortlists:
                for suffix, photos in {"": 0, EXPANDED: expansion}.items():
                    if suffix and not photos:
                        continue
                    name = f"{ranking}@{k}{suffix}"
                    yield (
                        name,
                        two_stage_blocks(
                            *features,
                            k,
                            second=ranking,
                            sharding=sharding,
                            expansion=photos,
                            progress=bar(name),
                        ),
                    )

    by_query, top, top_similarity = {}, {}, {}
    chances: Mapping[str, float] = {}
    for title, blocks in ranked_blocks():
        found, chances, first = _measure(watch.each(f"rank/{title}", blocks), tasks, watch)
        by_query[title], top[title], top_similarity[title] = found, *first
    return Evaluation(
        name=options.get("name") or words.name,
        by_query=by_query,
        chances=chances,
        seconds=watch.seconds,
        sketch_labels=sketch_labels,
        photo_labels=photo_labels,
        top=top,
        top_similarity=top_similarity,
        scope=words.scope,
        missing=words.missing,
        notes=options.get("notes") or {},
        class_names=options.get("class_names"),
        clusters=options.get("clusters"),
        over=options.get("over", "sketches"),
    )


def _checked_rankings(
    retriever: Encoder, rankings: Sequence[str] | None, shortlists: Sequence[int]
) -> tuple[str, ...]:
    """The rankings to measure.

    Raises:
      ValueError: no or an unknown ranking, a shortlist of less than 1 photo, or shortlists for a
        retriever without rankings of both kinds.
    """
    rankings = tuple(retriever.rankings if rankings is None else rankings)
    kinds = {scoring.ranking_kind(retriever, ranking) for ranking in rankings}
    if not rankings:
        raise ValueError(f"rankings is empty: choose from {', '.join(retriever.rankings)}.")
    if any(k < 1 for k in shortlists):
        raise ValueError(f"shortlists={tuple(shortlists)} must be numbers of photos, 1 or more.")
    if shortlists and not ("score" in kinds and "embedding" in retriever.rankings.values()):
        raise ValueError(
            f"shortlists={tuple(shortlists)} need a ranking of kind 'embedding' and one of kind "
            f"'score' to measure, but {type(retriever).__name__} ranks by "
            f"{dict(retriever.rankings)}, and rankings={rankings}."
        )
    return rankings


def _measure(
    blocks: Iterable[Block], tasks: Sequence[Task], watch: "_Stopwatch"
) -> tuple[Measured, dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """Metrics and chances of all tasks by scope, and the first photos of the last task.

    The ranks of relevant photos are dropped as soon as a block is measured.
    """
    parts: list[Measured] = []
    shares: list[Mapping[str, np.ndarray]] = []
    first: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, similarity in blocks:
        with watch("metrics"):
            measured: dict[str, Mapping[str, np.ndarray]] = {}
            share: dict[str, np.ndarray] = {}
            for task in tasks:
                ranked = task.rank(similarity, rows)
                scopes = task.measure(ranked)
                measured.update(scopes)
                share.update(dict.fromkeys(scopes, metrics.chance(ranked)))
            parts.append(measured)
            shares.append(share)
            first.append((ranked.top, ranked.top_similarity))
    by_query = {
        scope: {name: np.concatenate([part[scope][name] for part in parts]) for name in named}
        for scope, named in parts[0].items()
    }
    chances = {
        scope: float(np.nanmean(np.concatenate([share[scope] for share in shares])))
        for scope in by_query
    }
    top, top_similarity = map(np.concatenate, zip(*first, strict=True))
    return by_query, chances, (top, top_similarity)


class _Stopwatch:
    """Adds up wall time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def each(self, name: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items; adds up the time to make each of them."""
        iterator = iter(items)
        end = object()
        while True:
            with self(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item
