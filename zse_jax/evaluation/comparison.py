"""Compares runs: configs, metrics with paired intervals of the difference, and training curves.

Two runs that rank the same photos for the same sketches are compared sketch by sketch: the interval
of their difference is that of the mean difference, by the bootstrap of `retrieval.intervals`. It is
narrower than the intervals of the two values suggest, because a sketch that is hard for one run is
hard for the other. The first run is the one that the others are compared with.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, UInt64
from ml_collections import ConfigDict
from rich.table import Table

from data_pipelines import paths
from zse_jax.checkpoints import reading
from zse_jax.evaluation import data_selection, per_query, published
from zse_jax.retrieval.intervals import Over, bootstrap
from zse_jax.runtime import config_io
from zse_jax.runtime.metrics_file import METRICS_FILE, read_metrics

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
SELECTED = "selected"
"""Stands for the ranking that selects the best step of each run (`config.evaluation.select`)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      name: short, different from those of the other runs.
      folder: its workdir.
      step: its best step.
      config: of this step.
      records: the lines of its `metrics.jsonl`.
      results: the content of its `metrics.json`; empty if it has not ended.
      queries: the metrics of every sketch; None if it has not written them.
    """

    name: str
    folder: str
    step: int
    config: ConfigDict
    records: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    queries: per_query.PerQuery | None = None

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """The mean of each "ranking/scope/metric" over its own sketches, in 0..1."""
        if self.queries is None:
            return dict(self.results.get("test", {}))
        return {name: float(np.nanmean(x)) for name, x in self.queries.values.items()}

    @property
    def ranked(self) -> str:
        """What these values are of."""
        if self.queries is not None:
            return f"step {self.queries.step}. {self.queries.ranked}"
        if self.results:
            evaluation = self.results["setting"]["evaluation"]
            strides = evaluation["test_sketch_stride"], evaluation["test_photo_stride"]
            return (
                f"step {self.results['step']}. Test set of {published.setting(self.config)} at the "
                f"end of training, strides {strides}"
            )
        return f"step {self.step}. Not evaluated"

    def of_ranking(self, name: str) -> str:
        """The ranking that `name` stands for."""
        return self.config.evaluation.select.partition("/")[0] if name == SELECTED else name


class Difference(NamedTuple):
    """The mean difference to the first run, in -1..1, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Row(NamedTuple):
    """A metric of all runs.

    Attributes:
      ranking, scope, metric: its name.
      values: of each run, in 0..1; None where it was not measured.
      differences: of each run but the first to the first; None where they do not compare.
    """

    ranking: str
    scope: str
    metric: str
    values: tuple[float | None, ...]
    differences: tuple[Difference | None, ...]


class Comparison(NamedTuple):
    """The metrics of runs.

    Attributes:
      runs: the first is the one that the others are compared with.
      rows: every metric that a run has measured.
      sketches: number of sketches that all compared runs have ranked; 0: none compare.
      incomparable: names of the runs that do not compare with the first, and why.
      over: what the intervals are over, see `Evaluation.intervals`.
    """

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    sketches: int
    incomparable: Mapping[str, str]
    over: Over


def read_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """The runs in some workdirs.

    Raises:
      ValueError: fewer than two, or one of them twice; or as `per_query.read`.
      FileNotFoundError: a folder is not the workdir of a run.
    """
    places = [reading.absolute(folder) for folder in folders]
    if len(places) < 2:
        raise ValueError(
            f"There is nothing to compare{f' with {places[0]}' if places else ''}: give the "
            "workdirs of two or more runs, such as python -m zse_jax.compare runs/a runs/b."
        )
    for place in places:
        if places.count(place) > 1:
            raise ValueError(f"{place} is given {places.count(place)} times: give it once.")
    names = [place.name for place in places]
    if len({*names}) < len(names):
        names = [os.fspath(folder) for folder in folders]
    return [read_run(place, name) for place, name in zip(places, names, strict=True)]


def read_run(place: epath.Path, name: str) -> Run:
    """The run in a workdir.

    Raises:
      FileNotFoundError: it is not the workdir of a run.
      ValueError: as `per_query.read`.
    """
    if not (place / reading.FOLDER).is_dir():
        what = "is not the workdir of a run" if place.exists() else "does not exist"
        raise FileNotFoundError(
            f"{place} {what}: a run has {reading.FOLDER}/ and {METRICS_FILE}. Give the folder that "
            "was the --workdir of zse_jax.main."
        )
    lines = place / METRICS_FILE
    return Run(
        name,
        os.fspath(place),
        reading.step_of(place),
        reading.read_config(place),
        read_metrics(lines) if lines.exists() else (),
        paths.read_json(place / "metrics.json") or {},
        per_query.read(place / per_query.FILE),
    )


def config_differences(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    """The keys whose values differ, with the value of each run ("-" where it has none)."""
    first, *others = (run.config for run in runs)
    keys = {key for other in others for key in config_io.differences(first, other)}
    flat = [config_io.flat(config_io.to_plain(run.config)) for run in runs]
    return {key: tuple(values.get(key, "-") for values in flat) for key in sorted(keys)}


def compare(runs: Sequence[Run], over: Over = "sketches") -> Comparison:
    """The metrics of `runs` side by side, and the differences to the first.

    Runs are compared on the sketches that all of them have ranked. Those of another gallery or
    another protocol are shown with their own values, without a difference.
    """
    first, *others = runs
    reasons = {run.name: reason for run in others if (reason := _incomparable(first, run))}
    found = {
        run.name: run.queries for run in runs if run.name not in reasons and run.queries is not None
    }
    common = np.zeros(0, np.uint64)
    if len(found) > 1:
        common = functools.reduce(np.intersect1d, [each.sketches for each in found.values()])
    if not len(common):
        reasons |= {run.name: "it ranked other sketches" for run in others if run.name in found}
        found = {}
    aligned = {name: _of(each, common) for name, each in found.items()}
    rows: list[Row] = []
    pairs: dict[tuple[int, int], np.ndarray] = {}
    for ranking, scope, metric in _metrics(runs):
        keys = [f"{run.of_ranking(ranking)}/{scope}/{metric}" for run in runs]
        by_sketch = [
            aligned[run.name].values.get(key) if run.name in aligned else None
            for run, key in zip(runs, keys, strict=True)
        ]
        values = [
            run.values.get(key) if each is None else float(np.nanmean(each))
            for run, key, each in zip(runs, keys, by_sketch, strict=True)
        ]
        for place, each in enumerate(by_sketch[1:]):
            if each is not None and by_sketch[0] is not None:
                pairs[len(rows), place] = each.astype(np.float64) - by_sketch[0]
        rows.append(Row(ranking, scope, metric, tuple(values), (None,) * len(others)))
    if pairs:
        bounds = _intervals(np.stack([*pairs.values()]), aligned[first.name], over)
        for (row, place), difference, ends in zip(
            pairs, pairs.values(), bounds.tolist(), strict=True
        ):
            differences = list(rows[row].differences)
            differences[place] = Difference(float(np.nanmean(difference)), *ends)
            rows[row] = rows[row]._replace(differences=tuple(differences))
    return Comparison(tuple(runs), tuple(rows), len(common), reasons, over)


def _incomparable(first: Run, other: Run) -> str:
    """Why the sketches of two runs cannot be compared; "" if they can."""
    for run in (other, first):
        if run.queries is None:
            return (
                f"{run.folder} has no {per_query.FILE}, the metrics of every sketch. Write it with "
                f"python -m zse_jax.evaluate --checkpoint={run.folder} "
                f"--queries={run.folder}/{per_query.FILE}"
            )
    assert first.queries is not None and other.queries is not None
    if first.queries.task != other.queries.task:
        return "it ranked other photos, or by another protocol"
    return ""


def _of(queries: per_query.PerQuery, sketches: UInt64[np.ndarray, " n"]) -> per_query.PerQuery:
    """The part of `queries` about some of its sketches, in their order."""
    order = np.argsort(queries.sketches)
    places = order[np.searchsorted(queries.sketches, sketches, sorter=order)]
    return queries._replace(
        sketches=sketches,
        labels=queries.labels[places],
        photos=queries.photos[places],
        values={name: values[places] for name, values in queries.values.items()},
    )


def _intervals(
    differences: Float[np.ndarray, "m q"], queries: per_query.PerQuery, over: Over
) -> Float[np.ndarray, "m 2"]:
    """The 95 % interval of each mean difference; see `Evaluation.intervals`."""
    measured = ~np.isnan(differences).any(axis=0)
    labels, photos = queries.labels[measured], queries.photos[measured]
    strata, clusters = (labels, photos) if over == "sketches" else (np.zeros_like(labels), labels)
    return bootstrap(differences[:, measured], strata, clusters)


def _metrics(runs: Sequence[Run]) -> Iterator[tuple[str, str, str]]:
    """Ranking, scope and name of every metric of the runs.

    Precision is the same in all conventions, and comes once. If no ranking is common to all runs,
    the selected one of each run comes first.
    """
    named = [tuple(key.split("/")) for run in runs for key in run.values]
    rankings = [{key.partition("/")[0] for key in run.values} for run in runs if run.values]
    common = rankings and set.intersection(*rankings)
    for ranking in (*([] if common else [SELECTED]), *dict.fromkeys(name[0] for name in named)):
        for scope, metric in dict.fromkeys((scope, metric) for _, scope, metric in named):
            if metric.startswith("P@") and scope != "exact":
                continue
            if ranking == SELECTED or (ranking, scope, metric) in named:
                yield ranking, scope, metric


def first_rows(found: Comparison) -> list[Row]:
    """The rows of mAP@all, and of the metrics that the papers of the runs' settings report."""
    wanted = [("exact", "mAP@all")]
    for run in found.runs:
        paper = published.reported(run.config, run.config.model.system)
        wanted += [
            ("exact" if name.startswith("P@") else paper.scope, name) for name in paper.metrics
        ]
    return [row for row in found.rows if (row.scope, row.metric) in wanted]


def metric_table(found: Comparison, rows: Sequence[Row]) -> Table:
    """The metrics of the runs and the differences to the first, in percent, for `rich.print`."""
    table = Table(title="Metrics", caption=f"percent; {statement(found)}")
    table.add_column("ranking")
    table.add_column("metric")
    for heading in headings(found):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.ranking, metric_name(found, row), *cells(row))
    return table


def headings(found: Comparison) -> list[str]:
    """The headings of `cells`."""
    first, *others = (run.name for run in found.runs)
    return [first, *others, *(f"{other} {MINUS} {first}" for other in others)]


def cells(row: Row) -> list[str]:
    """The values of a row in percent, then its differences with their intervals."""
    values = [DASH if value is None else f"{100 * value:.1f}" for value in row.values]
    differences = [
        DASH if x is None else f"{_signed(x.mean)} ({_signed(x.low)} to {_signed(x.high)})"
        for x in row.differences
    ]
    return [*values, *differences]


def metric_name(found: Comparison, row: Row) -> str:
    """The metric with its convention; precision has none, and says where it is the R-precision."""
    if not row.metric.startswith("P@"):
        return f"{row.metric} {row.scope}"
    labels = {run.queries.metrics.get(row.metric, row.metric) for run in found.runs if run.queries}
    return labels.pop() if len(labels) == 1 else row.metric


def statement(found: Comparison) -> str:
    """What the intervals show, or that there are none."""
    if not found.sketches:
        return "no run compares with the first"
    other = "sketches of these classes" if found.over == "sketches" else "unseen classes"
    return (
        f"differences over {found.sketches:,} sketches that all compared runs ranked, with 95 % "
        f"paired bootstrap intervals for other {other}; an interval without 0 is a difference that "
        f"is not due to the choice of the {found.over}"
    )


def remarks(found: Comparison) -> list[str]:
    """What each run ranked, and which runs do not compare."""
    first = found.runs[0].name
    return [
        *(f"{run.name}: {run.ranked}" for run in found.runs),
        *(
            f"{name} is not compared with {first}: {reason}."
            for name, reason in found.incomparable.items()
        ),
    ]


def config_table(runs: Sequence[Run]) -> Table | None:
    """The keys of the configs whose values differ; None if none does."""
    differing = config_differences(runs)
    if not differing:
        return None
    table = Table(title="Configs: the keys that differ")
    for name in ("key", *(run.name for run in runs)):
        table.add_column(name)
    for key, values in differing.items():
        table.add_row(key, *map(str, values))
    return table


def training_table(runs: Sequence[Run]) -> Table:
    """The length of each run, its last loss and its best validation, for `rich.print`."""
    table = Table(title="Training", caption="percent; validations in the setting of the last one")
    for name in ("run", "steps", "last loss", "selected by", "best validation", "at step"):
        table.add_column(name, justify="right" if name not in ("run", "selected by") else "left")
    for run in runs:
        losses = [
            (line["step"], line["train/loss"]) for line in run.records if "train/loss" in line
        ]
        key = f"validation/{run.config.evaluation.select}"
        measured = [line for line in run.records if key in line and line["step"]]
        setting = measured[-1].get("setting") if measured else None
        best = max(
            ((line[key], -line["step"]) for line in measured if line.get("setting") == setting),
            default=None,
        )
        table.add_row(
            run.name,
            f"{losses[-1][0]:,}" if losses else DASH,
            f"{losses[-1][1]:.4g}" if losses else DASH,
            run.config.evaluation.select,
            DASH if best is None else f"{100 * best[0]:.1f}",
            DASH if best is None else f"{-best[1]:,}",
        )
    return table


def page(found: Comparison) -> str:
    """The comparison as a self-contained HTML page."""
    from markupsafe import Markup

    from zse_jax.explain import pages, style

    charts = [
        {"svg": Markup(style.inline_svg(figure, caption)), "caption": caption}
        for figure, caption in _curves(found.runs)
    ]
    first = first_rows(found)
    return pages.render(
        "comparison.html",
        title=f"Runs {', '.join(run.name for run in found.runs)}",
        remarks=remarks(found),
        statement=statement(found),
        headings=headings(found),
        rows=[
            {
                "ranking": row.ranking,
                "metric": metric_name(found, row),
                "first": row in first,
                "cells": cells(row),
            }
            for row in found.rows
        ],
        names=[run.name for run in found.runs],
        differing=config_differences(found.runs),
        charts=charts,
        facts={
            run.name: f"{run.folder}, {run.config.model.system}, best step {run.step}"
            for run in found.runs
        },
    )


def _curves(runs: Sequence[Run]) -> Iterator[tuple[Any, str]]:
    """Figures of the losses and of the validation metric, with their captions.

    Validations in different settings do not compare, and have charts of their own.
    """
    from zse_jax.explain import figures

    select = runs[0].config.evaluation.select.partition("/")[2]
    losses: list[dict[str, Any]] = []
    validations: dict[str, list[dict[str, Any]]] = {}
    classes: dict[str, str] = {}
    for run in runs:
        name = run.name.replace("/", "-")
        for line in run.records:
            step = {"step": line["step"]}
            if "train/loss" in line:
                losses.append(step | {f"{name}/loss": line["train/loss"]})
            metrics = {
                f"{name} {key.split('/')[1]}/{select}": value
                for key, value in line.items()
                if key.startswith("validation/") and key.endswith(f"/{select}")
            }
            if metrics:
                setting = line.get("setting", "")
                classes.setdefault(setting, data_selection.selecting_classes(run.config))
                validations.setdefault(setting, []).append(step | metrics)
    if losses:
        caption = "The training loss. Losses of different systems or loss weights do not compare."
        yield figures.training_curves(losses, metric=select), caption
    for number, (setting, records) in enumerate(validations.items()):
        caption = f"{select} on the {classes[setting]} while training."
        if number:
            caption += " Another validation setting than in the chart before: they do not compare."
        figure = figures.training_curves(records, metric=select, classes=classes[setting])
        yield figure, caption


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", MINUS)
