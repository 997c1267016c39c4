"""One evaluation, whatever the protocol: encode once, score by blocks, measure every task.

Memory stays bounded: similarities live for a block of sketches, on the device that computed them;
what is kept of each sketch is its metrics and the first photos.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int, Real

from zse_jax.retrieval import metrics, scoring
from zse_jax.retrieval.encoding import Batch, encode
from zse_jax.retrieval.metrics import Ranked
from zse_jax.retrieval.results import Evaluation
from zse_jax.retrieval.storage import Storage
from zse_jax.retrieval.two_stage import two_stage_blocks
from zse_jax.retrievers.base import Encoder, Features, Modality

KEPT = 200
"""First photos of every sketch that an `Evaluation` keeps."""

Block = tuple[slice, np.ndarray | jax.Array]
"""Consecutive sketches, and their similarity with every photo."""

Measured = Mapping[str, Mapping[str, Float[np.ndarray, " q"]]]
"""scope -> metric -> value of every query."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is asked of a ranking.

    Attributes:
      query_labels, gallery_labels: a photo is relevant if its label is the query's.
      measure: what is made of the ranking: scope -> metric -> value of every query.
      query_groups, gallery_groups: a photo is ranked if its group is the query's; None: all are.
    """

    query_labels: Int[np.ndarray, " q"]
    gallery_labels: Int[np.ndarray, " g"]
    measure: Callable[[Ranked], Measured]
    query_groups: Int[np.ndarray, " q"] | None = None
    gallery_groups: Int[np.ndarray, " g"] | None = None

    def rank(self, similarity: Real[np.ndarray | jax.Array, "b g"], rows: slice) -> Ranked:
        """The ranking of some consecutive queries, by their similarity with every photo."""
        return metrics.rank(
            similarity,
            self.query_labels[rows],
            self.gallery_labels,
            query_groups=None if self.query_groups is None else self.query_groups[rows],
            gallery_groups=self.gallery_groups,
            top=KEPT,
            first_query=rows.start,
        )


class Options(TypedDict, total=False):
    """What every protocol can be told.

    Attributes:
      rankings: which of the retriever's rankings; all by default.
      shortlists: numbers of photos K. For each, every ranking of kind "score" is measured a second
        time as "RANKING@K": only the K photos that are nearest by the first ranking of kind
        "embedding" are scored, which costs K of the gallery's photos instead of all. With K no
        smaller than the gallery, it is the ranking itself.
      sharding: how a batch is spread over a mesh; None, the default: the default device.
      tile: see `scoring.similarity_blocks`.
      storage: where features are kept, see `storage.Storage`.
      folder: keeps the scores of each ranking of kind "score" as they are made, so that a run
        that is killed continues; None, the default: nowhere.
      progress: show what is being done, and how long it will take.
      name: of what is evaluated, for the tables.
      notes: plain values that go into the results: split, seed, excluded classes, ...
      class_names: name of each class, by label.
    """

    rankings: Sequence[str] | None
    shortlists: Sequence[int]
    sharding: NamedSharding | None
    tile: tuple[int, int] | None
    storage: Storage
    folder: str | PathLike | None
    progress: bool
    name: str | None
    notes: Mapping[str, Any]
    class_names: Sequence[str] | None


class Encoded(NamedTuple):
    """Queries that are already encoded: features with the query as leading axis, and labels [Q]."""

    features: Features
    labels: Int[np.ndarray, " q"]


class Words(NamedTuple):
    """What a protocol calls itself, its scopes, and what sketches without a value lack."""

    name: str
    scope: str = "convention"
    missing: str = "a photo of their class"


def evaluate(
    retriever: Encoder,
    sketches: Iterable[Batch] | Encoded,
    photos: Iterable[Batch],
    words: Words,
    tasks_of: Callable[[np.ndarray, np.ndarray], Sequence[Task]],
    *,
    rankings: Sequence[str] | None = None,
    shortlists: Sequence[int] = (),
    sharding: NamedSharding | None = None,
    tile: tuple[int, int] | None = None,
    storage: Storage = Storage(),  # noqa: B008  (frozen)
    folder: str | PathLike | None = None,
    progress: bool = False,
    name: str | None = None,
    notes: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> Evaluation:
    """Encodes, ranks by every ranking, measures every task; pictures are of the last one."""
    # Nothing misspelt shall cost an hour of encoding.
    rankings = _checked_rankings(retriever, rankings, shortlists)
    watch = _Stopwatch()

    def encoded(modality: Modality, batches: Iterable[Batch]) -> tuple[Features, np.ndarray]:
        with watch(f"encode/{modality}"):
            return encode(
                retriever,
                batches,
                modality,
                sharding=sharding,
                progress=_say(progress, "sketches" if modality == "sketch" else "photos"),
                storage=storage,
            )

    if not isinstance(sketches, Encoded):
        sketches = Encoded(*encoded("sketch", sketches))
    sketch_features, sketch_labels = sketches
    photo_features, photo_labels = encoded("photo", photos)
    tasks = tasks_of(sketch_labels, photo_labels)

    by_query, top, top_similarity = {}, {}, {}
    chances: Mapping[str, float] = {}
    for title, blocks in _ranked_blocks(
        retriever, sketch_features, photo_features, rankings, shortlists,
        sharding=sharding, tile=tile, folder=folder, key=storage.key, progress=progress,
    ):  # fmt: skip
        found, chances, first = _measure(watch.each(f"rank/{title}", blocks), tasks, watch)
        by_query[title], top[title], top_similarity[title] = found, *first
    return Evaluation(
        name=name or words.name,
        by_query=by_query,
        chances=chances,
        seconds=watch.seconds,
        sketch_labels=sketch_labels,
        photo_labels=photo_labels,
        top=top,
        top_similarity=top_similarity,
        scope=words.scope,
        missing=words.missing,
        notes=notes or {},
        class_names=class_names,
    )


def _checked_rankings(
    retriever: Encoder, rankings: Sequence[str] | None, shortlists: Sequence[int]
) -> tuple[str, ...]:
    """The rankings to measure.

    Raises:
      ValueError: no or an unknown ranking, or shortlists that are none or that nothing can make.
    """
    rankings = tuple(retriever.rankings if rankings is None else rankings)
    kinds = {scoring.ranking_kind(retriever, ranking) for ranking in rankings}
    if not rankings:
        raise ValueError(f"No ranking is asked for. There are {', '.join(retriever.rankings)}.")
    if any(k < 1 for k in shortlists):
        raise ValueError(f"shortlists={tuple(shortlists)} must be numbers of photos, 1 or more.")
    if shortlists and not ("score" in kinds and "embedding" in retriever.rankings.values()):
        raise ValueError(
            f"shortlists={tuple(shortlists)} are made by a ranking of kind 'embedding' for one of "
            f"kind 'score', but {type(retriever).__name__} ranks by {dict(retriever.rankings)}, "
            f"and {', '.join(rankings)} are asked for."
        )
    return rankings


def _ranked_blocks(
    retriever: Encoder,
    sketches: Features,
    photos: Features,
    rankings: Sequence[str],
    shortlists: Sequence[int],
    *,
    sharding: NamedSharding | None,
    tile: tuple[int, int] | None,
    folder: str | PathLike | None,
    key: str,
    progress: bool,
) -> Iterator[tuple[str, Iterator[Block]]]:
    """Every ranking that is measured, by name, and its similarities by blocks of sketches."""
    features = retriever, sketches, photos
    for ranking in rankings:
        yield (
            ranking,
            scoring.similarity_blocks(
                *features,
                ranking,
                sharding=sharding,
                tile=tile,
                progress=_say(progress, ranking),
                folder=None if folder is None else Path(folder) / ranking,
                key=key,
            ),
        )
        if scoring.ranking_kind(retriever, ranking) == "embedding":
            continue
        for k in shortlists:
            name = f"{ranking}@{k}"
            say = _say(progress, name)
            yield (
                name,
                two_stage_blocks(*features, k, second=ranking, sharding=sharding, progress=say),
            )


def _measure(
    blocks: Iterable[Block], tasks: Sequence[Task], watch: "_Stopwatch"
) -> tuple[Measured, dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """Metrics and chances of all tasks by scope, and the first photos of the last one.

    Of each block, ranks of relevant photos live no longer than it takes to measure them.
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
        """The items; the time to make each of them counts."""
        iterator = iter(items)
        end = object()
        while True:
            with self(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item


def _say(progress: bool, what: str) -> str | None:
    return what if progress else None
