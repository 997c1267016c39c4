"""The tables of a report and the queries that it shows: plain values of an evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from zse_jax.explain.style import class_name
from zse_jax.retrieval.results import Evaluation

DASH = "\N{EN DASH}"


class Headline(NamedTuple):
    """The main metric of a report; `str` returns "ranking/scope/metric"."""

    ranking: str
    scope: str
    metric: str

    def __str__(self) -> str:
        return "/".join(self)


def headline(evaluation: Evaluation, name: str = "") -> Headline:
    """The headline `name`; "": the first metric of the evaluation.

    Raises:
      ValueError: the evaluation did not measure it.
    """
    known = [*evaluation.flat()]
    if name and name not in known:
        raise ValueError(f"headline={name!r} was not measured: choose one of {', '.join(known)}.")
    return Headline(*(name or known[0]).split("/"))


def fine_grained(evaluation: Evaluation) -> bool:
    """Whether only the photo of the sketch's instance is right."""
    return evaluation.scope != "convention"


def percent(value: float) -> str:
    """A share in percent: "43.2" for 0.432."""
    return f"{100 * value:.1f}"


def interval(low: float, high: float) -> str:
    """Both ends in percent."""
    return f"{percent(low)}{DASH}{percent(high)}"


def tiles(evaluation: Evaluation, by: Headline) -> list[dict[str, str]]:
    """The numbers at the top of the page."""
    low, high = evaluation.intervals(over=evaluation.over)[by.ranking][by.scope][by.metric]
    value = evaluation.values[by.ranking][by.scope][by.metric]
    chance = evaluation.chances[by.scope]
    unbroken = "\N{WORD JOINER}\N{EN DASH}\N{WORD JOINER}"
    bounds = interval(low, high).replace("\N{EN DASH}", unbroken)
    return [
        {
            "value": percent(value),
            "text": f"{by.metric} in percent by {by.ranking} ({by.scope}), {bounds}",
        },
        {"value": percent(chance), "text": "chance: precision of a random ranking"},
        {"value": f"{evaluation.queries:,}", "text": "query sketches"},
        {"value": f"{evaluation.gallery:,}", "text": "photos in the gallery"},
        {"value": f"{evaluation.classes}", "text": "classes of sketches and photos"},
    ]


def metric_rows(evaluation: Evaluation, by: Headline) -> list[dict[str, Any]]:
    """Every ranking and scope with its values and intervals."""
    bounds = evaluation.intervals(over=evaluation.over)
    return [
        {
            "ranking": ranking,
            "scope": scope,
            "first": position == 0,
            "headline": (ranking, scope) == (by.ranking, by.scope),
            "cells": [
                {"value": percent(value), "interval": interval(*bounds[ranking][scope][name])}
                for name, value in named.items()
            ],
        }
        for ranking, scopes in evaluation.values.items()
        for position, (scope, named) in enumerate(scopes.items())
    ]


def class_values(
    evaluation: Evaluation, by: Headline
) -> tuple[list[str], Float[np.ndarray, " c"], Float[np.ndarray, "c 2"]]:
    """Name, mean and interval of each class that was measured."""
    values = evaluation.by_query[by.ranking][by.scope][by.metric]
    names, means, bounds = [], [], []
    for label in evaluation.query_classes.tolist():
        own = values[(evaluation.sketch_labels == label) & ~np.isnan(values)]
        names.append(class_name(label, evaluation.class_names))
        means.append(own.mean())
        bounds.append(evaluation.class_interval(label, by.ranking, by.scope, by.metric))
    return names, np.array(means), np.array(bounds).reshape(-1, 2)


def class_columns(evaluation: Evaluation, by: Headline) -> dict[str, tuple[str, str]]:
    """Columns of the table of classes: heading -> ranking and metric."""
    others = [ranking for ranking in evaluation.values if ranking != by.ranking]
    return {evaluation.labels[name]: (by.ranking, name) for name in evaluation.metrics} | {
        f"{by.metric}, {ranking}": (ranking, by.metric) for ranking in others
    }


def class_rows(evaluation: Evaluation, by: Headline) -> list[dict[str, Any]]:
    """The rows of the table of classes, worst first."""
    names, values, bounds = class_values(evaluation, by)
    means = dict(zip(names, values.tolist(), strict=True))
    intervals = {name: interval(*ends) for name, ends in zip(names, bounds.tolist(), strict=True)}
    taken: dict[str, str] = {}
    for first, second, share in evaluation.most_confused(by.ranking, evaluation.classes**2):
        taken.setdefault(first, f"{_named(second)} {percent(share)}")
    rows = []
    for found in evaluation.by_class():
        name, cells = _named(found.name), []
        for ranking, metric in class_columns(evaluation, by).values():
            value = found.values[ranking][by.scope][metric] if found.values else None
            own = (ranking, metric) == (by.ranking, by.metric)
            cells.append(
                {
                    "value": DASH if value is None else percent(value),
                    "sort": f"{-1 if value is None else value:.6f}",
                    "interval": intervals.get(name, "") if own else "",
                }
            )
        rows.append(
            {
                "name": name,
                "sketches": found.sketches,
                "photos": found.photos,
                "cells": cells,
                "taken_for": taken.get(found.name, ""),
                "order": means.get(name, -1.0),
            }
        )
    return sorted(rows, key=lambda row: row["order"])


def _named(name: str) -> str:
    return name.replace("_", " ")


def relevant(
    evaluation: Evaluation,
    sketch_instances: Int[np.ndarray, " q"] | None,
    photo_instances: Int[np.ndarray, " g"] | None,
) -> Int[np.ndarray, " q"]:
    """The number of right photos in the whole gallery for each sketch."""
    if sketch_instances is None or photo_instances is None:
        sketch_instances, photo_instances = evaluation.sketch_labels, evaluation.photo_labels
    known, counts = np.unique(photo_instances, return_counts=True)
    place = np.searchsorted(known, sketch_instances).clip(max=len(known) - 1)
    return np.where(known[place] == sketch_instances, counts[place], 0)


def chosen_queries(
    evaluation: Evaluation, by: Headline, right: Bool[np.ndarray, "q k"], each: int
) -> dict[str, list[int]]:
    """The best, the typical (nearest to the median) and the worst queries.

    Each group uses different classes as far as possible, and no query is in two groups. For
    fine-grained retrieval they are ordered by the rank of the matching photo, as Acc@k is 0 or 1.
    """
    values = evaluation.by_query[by.ranking][by.scope][by.metric]
    measured = np.flatnonzero(~np.isnan(values))
    first = np.where(right.any(axis=1), right.argmax(axis=1), right.shape[1])
    value = -first.astype(float) if fine_grained(evaluation) else values
    middle = np.median(value[measured])
    # Among equal values, an earlier first right photo is better.
    orders = {
        "best": np.lexsort((first, -value)),
        "worst": np.lexsort((-first, value)),
        "typical": np.argsort(np.abs(value - middle), kind="stable"),
    }
    known = set(measured.tolist())
    room = max(1, min(each, len(known) // 3))
    chosen: dict[str, list[int]] = {}
    for name, order in orders.items():
        free = [query for query in order.tolist() if query in known]
        chosen[name] = _of_different_classes(free, evaluation.sketch_labels, room)
        known -= set(chosen[name])
    return {name: chosen[name] for name in ("best", "typical", "worst") if chosen[name]}


def _of_different_classes(
    order: Sequence[int], labels: Int[np.ndarray, " q"], count: int
) -> list[int]:
    """The first `count` of the order, where every class comes once before any comes twice."""
    turn: dict[int, int] = {}
    keys = []
    for place, query in enumerate(order):
        label = int(labels[query])
        turn[label] = turn.get(label, -1) + 1
        keys.append((turn[label], place, query))
    return [query for _, _, query in sorted(sorted(keys)[:count], key=lambda key: key[1])]


def query_note(
    evaluation: Evaluation, by: Headline, query: int, right: Bool[np.ndarray, " k"]
) -> str:
    """A remark about the result of a query."""
    what = "matching photo" if fine_grained(evaluation) else "first right photo"
    rank = f"at rank {right.argmax() + 1}" if right.any() else f"not among the first {len(right)}"
    value = evaluation.by_query[by.ranking][by.scope][by.metric][query]
    if fine_grained(evaluation):
        return f"{what} {rank} of the whole gallery"
    name = by.metric.removeprefix("m")
    return f"{name} {percent(float(value))} \N{MIDDLE DOT} {what} {rank}"


def confusions(evaluation: Evaluation, ranking: str, count: int = 10) -> list[dict[str, Any]]:
    """The most confused classes, each with the sketch that shows the confusion earliest.

    The example is (sketch, photo, rank from 1), or None if no kept photo shows the confusion.
    """
    found = evaluation.most_confused(ranking, count)
    labels = {
        class_name: label
        for names in (evaluation.query_classes, evaluation.gallery_classes)
        for label, class_name in zip(names.tolist(), _names(evaluation, names), strict=True)
    }
    most = max((share for _, _, share in found), default=1.0)
    top = evaluation.top[ranking]
    rows = []
    for first, second, share in found:
        sketches = np.flatnonzero(evaluation.sketch_labels == labels[first])
        shown = top[sketches]
        hit = (evaluation.photo_labels[shown] == labels[second]) & (shown >= 0)
        ranks = np.where(hit.any(axis=1), hit.argmax(axis=1), hit.shape[1])
        place = int(ranks.argmin())
        example = None
        if ranks[place] < hit.shape[1]:
            rank = int(ranks[place])
            example = int(sketches[place]), int(shown[place, rank]), rank + 1
        rows.append(
            {
                "sketch_class": _named(first),
                "photo_class": _named(second),
                "share": percent(share),
                "width": round(100 * share / most),
                "example": example,
                "rank": "",
            }
        )
    return rows


def _names(evaluation: Evaluation, labels: Int[np.ndarray, " c"]) -> list[str]:
    if evaluation.class_names is None:
        return [str(label) for label in labels.tolist()]
    return [evaluation.class_names[label] for label in labels.tolist()]
