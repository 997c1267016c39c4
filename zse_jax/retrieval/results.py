"""The result of an evaluation: means with their uncertainty, classes, confusions, and tables."""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32
from rich.table import Table
from rich.text import Text

from data_pipelines.suggestions import counted
from zse_jax.retrieval.intervals import OVER, Over, bootstrap

ByQuery = Mapping[str, Mapping[str, Mapping[str, Float[np.ndarray, " q"]]]]
"""ranking -> scope -> metric -> value of every query, NaN where it has none."""

Values = dict[str, dict[str, dict[str, float]]]
"""ranking -> scope -> metric -> value."""

NOTED = {
    "expansion": "with expansion, each sketch is expanded {}",
    "file_lists": "file lists: {}",
    "selected_as": "the checkpoint is the {}",
    "started_from": "training started from {}",
    "training_data_unknown": "the training data of {} are not recorded",
}
"""Notes that captions state in other words than their keys."""

STATED = ("data", "split", "strides")
"""Notes that captions leave out: the first line of a table names the data and the numbers."""

R_PRECISION = " (R-precision)"
"""Ends the label of P@k where every query has fewer than k relevant photos, see `metric_labels`."""

CONFUSION_DEPTH = 100
"""Number of first photos of a ranking that `Evaluation.confusion` counts, at most."""

FIRST_PHOTOS = f"the first {CONFUSION_DEPTH} photos, or as many as the class has"
"""What the shares of confusions refer to, for captions."""


class Interval(NamedTuple):
    """The bounds of a confidence interval."""

    low: float
    high: float


class ClassResult(NamedTuple):
    """One class of the queries.

    Attributes:
      name: of the class; its label if there are no names.
      sketches: number of its sketches.
      photos: number of its photos in the gallery.
      values: as `Evaluation.values`; empty if no sketch of the class has a value.
    """

    name: str
    sketches: int
    photos: int
    values: Values


class Confusion(NamedTuple):
    """The share of another class among the first photos of the sketches of one class."""

    sketch_class: str
    photo_class: str
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The measurements of a protocol.

    A query without a relevant photo in the gallery (of its class; fine-grained: its own photo) has
    no value: it is counted, and excluded from every mean.

    Attributes:
      name: title of the tables.
      by_query: ranking -> scope -> metric -> float64 [queries]. The scope completes a metric's
        name: the convention of average precision, or in fine-grained retrieval the ranked photos,
        "class" or "all".
      chances: scope -> expected precision (Acc@1) of a random ranking, in 0..1.
      seconds: wall time by stage: "encode/sketch", "encode/photo", "rank/RANKING", "metrics".
      sketch_labels, photo_labels: classes, in the order of the images.
      top: ranking -> indices of the first photos of the whole gallery for each sketch.
      top_similarity: ranking -> their similarities; of a two-stage ranking, minus the rank.
      scope: name of the scopes in tables.
      missing: what a sketch without a value lacks, for captions.
      notes: further facts about the protocol, as plain values: split, seed, excluded classes, ...
      class_names: name of each class, by label; without them, tables show labels.
      clusters: the photo that each sketch shows: sketches of one photo are not independent, and
        intervals resample them together. None: each sketch shows another photo.
      over: what the intervals of `table` are over, see `intervals`.
      recalls: two-stage ranking -> share of a query's relevant photos in its shortlist, mean.
    """

    name: str
    by_query: ByQuery
    chances: Mapping[str, float]
    seconds: Mapping[str, float]
    sketch_labels: Int[np.ndarray, " q"] = dataclasses.field(repr=False)
    photo_labels: Int[np.ndarray, " g"] = dataclasses.field(repr=False)
    top: Mapping[str, Int32[np.ndarray, "q k"]] = dataclasses.field(repr=False)
    top_similarity: Mapping[str, Float32[np.ndarray, "q k"]] = dataclasses.field(repr=False)
    scope: str = "convention"
    missing: str = "a photo of their class"
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str] | None = dataclasses.field(default=None, repr=False)
    clusters: Int[np.ndarray, " q"] | None = dataclasses.field(default=None, repr=False)
    over: Over = "sketches"
    recalls: Mapping[str, float] = dataclasses.field(default_factory=dict)
    _intervals: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def queries(self) -> int:
        """Number of sketches, including those without a value."""
        return len(self.sketch_labels)

    @property
    def gallery(self) -> int:
        """Number of photos."""
        return len(self.photo_labels)

    @property
    def classes(self) -> int:
        """Number of classes of sketches and photos."""
        return len(np.union1d(self.sketch_labels, self.photo_labels))

    @property
    def queries_without_match(self) -> int:
        """Number of sketches without a value."""
        return int((~self._measured).sum())

    @property
    def chance(self) -> float:
        """Expected precision (Acc@1) of a random ranking of the whole gallery, in 0..1."""
        return min(self.chances.values())

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(next(iter(next(iter(self.by_query.values())).values())))

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that tables of one ranking show: those whose depth the photos have.

        With fewer than k photos in every class, P@k is the R-precision for every such k, and in a
        gallery of up to k photos, mAP@k is mAP@all.
        """
        _, counts = np.unique(
            self.photo_labels[np.isin(self.photo_labels, self.sketch_labels)], return_counts=True
        )
        depth = {"P": int(np.max(counts, initial=0)), "mAP": self.gallery - 1}
        parts = {name: name.partition("@")[::2] for name in self.metrics}
        return tuple(
            name
            for name, (kind, k) in parts.items()
            if kind not in depth or k == "all" or int(k) <= depth[kind]
        )

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """The names of the metrics for tables: see `metric_labels`."""
        return metric_labels(self.metrics, self.sketch_labels[self._measured], self.photo_labels)

    @functools.cached_property
    def query_classes(self) -> Int[np.ndarray, " c"]:
        """Labels of the classes with at least one sketch that has a value: rows of `confusion`."""
        return np.unique(self.sketch_labels[self._measured])

    @functools.cached_property
    def gallery_classes(self) -> Int[np.ndarray, " c"]:
        """Labels of the photos' classes: columns of `confusion`."""
        return np.unique(self.photo_labels)

    @functools.cached_property
    def values(self) -> Values:
        """Means over the sketches with a value, in 0..1: ranking -> scope -> metric."""
        return self._each(functools.partial(_mean, chosen=self._measured))

    def flat(self) -> dict[str, float]:
        """The values for a metric writer: {"relation/exact/mAP@all": 0.52, ...}."""
        return {
            f"{ranking}/{scope}/{name}": value
            for ranking, scopes in self.values.items()
            for scope, named in scopes.items()
            for name, value in named.items()
        }

    def intervals(
        self,
        confidence: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
        over: Over = "sketches",
    ) -> dict[str, dict[str, dict[str, Interval]]]:
        """Confidence intervals of the means, by `bootstrap`.

        With `over="sketches"`, they show the uncertainty for other sketches of the same classes:
        sketches are resampled within their class, those of one photo together. With
        `over="classes"`, they show the uncertainty for other unseen classes: whole classes are
        resampled. The gallery is fixed in both.

        Returns:
          ranking -> scope -> metric -> Interval, as `values`. With a single query, its value.

        Raises:
          ValueError: a confidence outside (0, 1), no resamples, or an unknown `over`.
        """
        if not 0 < confidence < 1 or resamples < 1:
            raise ValueError(
                f"confidence={confidence} must be between 0 and 1, and resamples={resamples} at "
                "least 1."
            )
        if over not in OVER:
            raise ValueError(f"Intervals over {over!r}: choose one of {', '.join(OVER)}.")
        key = confidence, resamples, seed, over
        if key not in self._intervals:
            rows: list[np.ndarray] = []
            self._each(rows.append)
            # Precision is equal in all conventions: resample equal rows once.
            unique, place = np.unique(
                np.stack(rows)[:, self._measured], axis=0, return_inverse=True
            )
            labels = self.sketch_labels[self._measured]
            strata, clusters = labels, self._photos[self._measured]
            if over == "classes":
                strata, clusters = np.zeros_like(labels), labels
            bounds = bootstrap(
                unique, strata, clusters, confidence=confidence, resamples=resamples, seed=seed
            )[place]
            intervals = iter(bounds.tolist())
            self._intervals[key] = self._each(lambda _: Interval(*next(intervals)))
        return self._intervals[key]

    def class_interval(self, label: int, ranking: str, scope: str, metric: str) -> Interval:
        """The 95 % interval of the mean over the sketches of one class, for other sketches."""
        chosen = (self.sketch_labels == label) & self._measured
        values = self.by_query[ranking][scope][metric][chosen]
        (bounds,) = bootstrap(values[None], self.sketch_labels[chosen], self._photos[chosen])
        return Interval(*bounds.tolist())

    def by_class(self) -> list[ClassResult]:
        """Results of each class of the sketches, in the order of the labels."""
        results = []
        labels = np.unique(self.sketch_labels)
        for label, name in zip(labels.tolist(), self._names(labels), strict=True):
            sketches = self.sketch_labels == label
            chosen = sketches & self._measured
            values = self._each(functools.partial(_mean, chosen=chosen)) if chosen.any() else {}
            photos = int((self.photo_labels == label).sum())
            results.append(ClassResult(name, int(sketches.sum()), photos, values))
        return results

    def confusion(self, ranking: str) -> Float[np.ndarray, "c d"]:
        """Shares of the classes among the first photos of the sketches of each class.

        For each sketch with a value, the first min(100, R) photos of the whole gallery count, where
        R is the number of photos of its class: the share of its own class is P@100.

        Returns:
          Rows as `query_classes`, columns as `gallery_classes`: mean shares; a row's sum is 1.
        """
        query = np.searchsorted(self.query_classes, self.sketch_labels[self._measured])
        gallery, counts = np.unique(self.photo_labels, return_counts=True)
        column = np.searchsorted(gallery, self.photo_labels)
        own = np.searchsorted(gallery, self.query_classes)[query]
        depth = np.minimum(CONFUSION_DEPTH, counts[own])[:, None]
        found = self.top[ranking][self._measured, :CONFUSION_DEPTH]
        counted = np.arange(found.shape[1]) < depth
        shape = len(self.query_classes), len(gallery)
        cell = np.ravel_multi_index(
            (np.broadcast_to(query[:, None], found.shape), column[found]), shape
        )
        weight = np.broadcast_to(1 / depth, found.shape)
        total = np.bincount(cell[counted], weight[counted], np.prod(shape)).reshape(shape)
        return total / np.bincount(query)[:, None]

    def most_confused(self, ranking: str, n: int = 10) -> list[Confusion]:
        """The n largest shares of other classes in `confusion`, in descending order."""
        share = self.confusion(ranking)
        other = (self.query_classes[:, None] != self.gallery_classes) & (share > 0)
        rows, columns = np.nonzero(other)
        order = np.argsort(-share[rows, columns], kind="stable")[:n]
        rows, columns = rows[order], columns[order]
        names = self._names(self.query_classes[rows]), self._names(self.gallery_classes[columns])
        return [*map(Confusion, *names, share[rows, columns].tolist())]

    def details(self) -> dict[str, Any]:
        """The 95 % intervals of all values, and the results of each class, for `json.dump`."""
        return _plain(
            {
                "intervals_95": self.intervals(),
                "intervals_95_over_classes": self.intervals(over="classes"),
                "by_class": {x.name: x._asdict() for x in self.by_class()},
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything except arrays over images, ready for `json.dump`; with 95 % intervals."""
        names = {"query_classes": self.query_classes, "gallery_classes": self.gallery_classes}
        return _plain(
            {
                "name": self.name,
                "notes": self.notes,
                "queries": self.queries,
                "gallery": self.gallery,
                "classes": self.classes,
                "queries_without_match": self.queries_without_match,
                "chance": self.chance,
                "chances": self.chances,
                "metrics": self.labels,
                "values": self.values,
                **self.details(),
                "confusion": {key: self._names(value) for key, value in names.items()}
                | {"share": {ranking: self.confusion(ranking) for ranking in self.top}},
                "seconds": self.seconds,
            }
        )

    def table(self, title: str | None = None, *, intervals: bool = False) -> Table:
        """The values in percent, for `rich.print`; optionally with their 95 % intervals."""
        table = Table(title=title or self.name, caption=self.caption(intervals))
        for name in ("ranking", self.scope, *self.metrics):
            number = name in self.metrics
            table.add_column(self.labels.get(name, name), justify="right" if number else "left")
        for ranking, scopes in self.values.items():
            for position, (scope, named) in enumerate(scopes.items()):
                cells: list[str | Text] = [_percent(value) for value in named.values()]
                if intervals:
                    bounds = self.intervals(over=self.over)[ranking][scope].values()
                    cells = [
                        Text.assemble(
                            cell, "\n", (f"{_percent(low)}\N{EN DASH}{_percent(high)}", "dim")
                        )
                        for cell, (low, high) in zip(cells, bounds, strict=True)
                    ]
                table.add_row(
                    ranking if position == 0 else "",
                    scope,
                    *cells,
                    end_section=position == len(scopes) - 1,
                )
        return table

    def class_table(self, ranking: str | None = None, scope: str | None = None) -> Table:
        """The classes by one ranking (by default the first), worst first, in percent.

        The last column is the class that their sketches are most often taken for, and its share of
        the first photos.
        """
        ranking = ranking or next(iter(self.values))
        scope = scope or next(iter(self.values[ranking]))
        taken: dict[str, str] = {}
        for sketch_class, photo_class, share in self.most_confused(ranking, self.classes**2):
            taken.setdefault(sketch_class, f"{photo_class} {_percent(share)}")
        caption = f"percent; taken for: share of that class in {FIRST_PHOTOS}"
        table = Table(title=f"{self.name}\nclasses by {ranking}, {scope}", caption=caption)
        for name in ("class", "sketches", "photos", *self.shown, "taken for"):
            text = name in ("class", "taken for")
            table.add_column(self.labels.get(name, name), justify="left" if text else "right")
        first = self.metrics[0]

        def order(result: ClassResult) -> float:
            return result.values[ranking][scope][first] if result.values else -1.0

        for result in sorted(self.by_class(), key=order):
            named = result.values[ranking][scope] if result.values else {}
            cells = [_percent(named[name]) if named else "-" for name in self.shown]
            counts = f"{result.sketches:,}", f"{result.photos:,}"
            table.add_row(result.name, *counts, *cells, taken.get(result.name, ""))
        return table

    def confusion_table(self, ranking: str | None = None, n: int = 10) -> Table:
        """The pairs of classes that one ranking (by default the first) confuses most."""
        ranking = ranking or next(iter(self.values))
        table = Table(
            title=f"{self.name}\nconfusions by {ranking}",
            caption=f"percent of {FIRST_PHOTOS}",
        )
        table.add_column("sketches of")
        table.add_column("find photos of")
        table.add_column("share", justify="right")
        for sketch_class, photo_class, share in self.most_confused(ranking, n):
            table.add_row(sketch_class, photo_class, _percent(share))
        return table

    @property
    def uncertainty(self) -> str:
        """What the intervals of `table` show, in one line."""
        if self.over == "classes":
            return "95 % bootstrap intervals for other unseen classes (classes resampled)"
        together = ", those of a photo together" if self.clusters is not None else ""
        return (
            "95 % bootstrap intervals for other sketches of these classes (sketches resampled "
            f"within classes{together})"
        )

    @property
    def _photos(self) -> Int[np.ndarray, " q"]:
        """The photo that each sketch shows, as a number."""
        return np.arange(self.queries) if self.clusters is None else np.asarray(self.clusters)

    @functools.cached_property
    def _measured(self) -> np.ndarray:
        """Which sketches have values; the same in every ranking, scope and metric."""
        return ~np.isnan(
            self.by_query[next(iter(self.by_query))][next(iter(self.chances))][self.metrics[0]]
        )

    def _each(self, function: Callable[[np.ndarray], Any]) -> dict[str, dict[str, dict[str, Any]]]:
        """Applies `function` to the values of the queries of each ranking, scope and metric."""
        return {
            ranking: {
                scope: {name: function(values) for name, values in named.items()}
                for scope, named in scopes.items()
            }
            for ranking, scopes in self.by_query.items()
        }

    def _names(self, labels: Int[np.ndarray, " c"]) -> list[str]:
        return [
            str(x) if self.class_names is None else self.class_names[x] for x in labels.tolist()
        ]

    def caption(self, intervals: bool = False) -> str:
        """What a table of the values has to say, in one line: sizes, chance, notes."""
        chances = {scope: _percent(value) for scope, value in self.chances.items()}
        chance = ", ".join(
            set(chances.values())
            if len(set(chances.values())) == 1
            else (f"{value} ({scope})" for scope, value in chances.items())
        )
        parts = [
            "percent" + (f", {self.uncertainty}" if intervals else ""),
            f"{counted(self.queries, 'sketch', 'sketches')} x "
            f"{counted(self.gallery, 'photo', 'photos')} of "
            f"{counted(self.classes, 'class', 'classes')}, chance {chance}",
        ]
        if self.queries_without_match:
            left_out = counted(self.queries_without_match, "sketch", "sketches")
            parts.append(f"{left_out} without {self.missing} excluded")
        for key, value in self.notes.items():
            if key in STATED or (key == "file_lists" and self.notes.get("split") == "own"):
                continue  # nobody publishes lists of a user's own images
            sentence = NOTED.get(key, f"{key.replace('_', ' ')} {{}}")
            parts.append(sentence.format(as_text(value)))
        return "; ".join(parts)


def metric_labels(
    names: Iterable[str], query_labels: Int[np.ndarray, " q"], photo_labels: Int[np.ndarray, " g"]
) -> dict[str, str]:
    """The names of metrics, with what P@k is where a query has R < k relevant photos.

    P@k counts the relevant photos among the first min(k, R), see `metrics`: for R < k it is the
    R-precision. "P@100 (R-precision)" if this is so for all queries, else "P@min(100, R)".
    """
    classes, counts = np.unique(photo_labels, return_counts=True)
    relevant = counts[np.isin(classes, query_labels)]
    labels = {}
    for name in names:
        kind, _, k = name.partition("@")
        few = relevant < int(k) if kind == "P" else np.zeros(1, bool)
        whole = f"{name}{R_PRECISION}" if few.all() else f"P@min({k}, R)"
        labels[name] = whole if few.any() else name
    return labels


def _mean(values: Float[np.ndarray, " q"], chosen: Bool[np.ndarray, " q"]) -> float:
    return float(values[chosen].mean())


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def as_text(value: Any) -> str:
    """The value of a note as text, for captions and reports."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {as_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(as_text, value)) or "none"
    return str(value)


def _plain(value: Any) -> Any:
    """The value as JSON types: mappings with string keys, lists, numbers."""
    return json.loads(json.dumps(value, default=operator.methodcaller("tolist")))
