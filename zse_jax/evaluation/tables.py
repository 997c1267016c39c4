"""The first table after an evaluation: what was ranked, and one row for each ranking.

A row has the metrics and the convention of the paper that reports the setting (`published`), and
the paper's values beside it if they compare: on a complete test set of the same size.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text

from data_pipelines.suggestions import counted
from zse_jax.evaluation import published
from zse_jax.retrieval.expansion import EXPANDED
from zse_jax.retrieval.results import R_PRECISION, Evaluation

COMPARE = "compare with the paper's"
ARROW, DASH = "\N{RIGHTWARDS ARROW}", "\N{EN DASH}"


class Ranked(NamedTuple):
    """What an evaluation ranks.

    Attributes:
      classes: whose sketches are queries, such as "unseen classes of sketchy_split2".
      sketches, photos: their numbers, and those without strides.
      test: whether these are the classes that the setting tests on.
      subset: whether it is the part that is ranked while training.
      gallery: which other photos are in the gallery; "": none.
      not_zero_shot: what of it trained; "": nothing.
    """

    classes: str
    sketches: tuple[int, int]
    photos: tuple[int, int]
    test: bool = True
    subset: bool = False
    gallery: str = ""
    not_zero_shot: str = ""

    @property
    def complete(self) -> bool:
        """Whether no image of these classes is left out."""
        return all(used == all_ for used, all_ in (self.sketches, self.photos))

    def __str__(self) -> str:
        if self.test and self.complete:
            kind = "Test set, complete"
        elif self.test and not self.subset:
            kind = "Part of the test set"
        elif self.complete:
            kind = "Validation set, complete"
        else:
            kind = "Validation subset"
        numbers = (
            ("" if used == all_ else f"{used:,} of ") + counted(all_, *nouns)
            for nouns, (used, all_) in (
                (("sketch", "sketches"), self.sketches),
                (("photo", "photos"), self.photos),
            )
        )
        gallery = f", {self.gallery}" if self.gallery else ""
        leak = " (NOT ZERO-SHOT)" if self.not_zero_shot else ""
        return f"{kind}: {' x '.join(numbers)} of {self.classes}{leak}{gallery}"


def first_table(
    config: ConfigDict, system: str, ranked: Ranked, results: Evaluation, subject: str
) -> Table:
    """The first table of an evaluation, with 95 % intervals.

    Args:
      config: of the evaluation.
      system: the system that was evaluated, as in `config.model.system`.
      ranked: what was ranked.
      results: of the evaluation.
      subject: what was evaluated, for the title.
    """
    found = published.reported(config, system)
    found = _without_r_precision(found, results.labels)
    table = _table(found, ranked, subject, results.labels)
    bounds = results.intervals(over=results.over)
    for ranking, scopes in results.values.items():
        cells = []
        for name in found.metrics:
            low, high = bounds[ranking][found.scope][name]
            interval = f"{100 * low:.1f}{DASH}{100 * high:.1f}"
            value = f"{100 * scopes[found.scope][name]:.1f}"
            cells.append(Text.assemble(value, "\n", (interval, "dim")))
        table.add_row(ranking, found.scope, *cells, *_published(found, ranked, ranking))
    table.caption = "; ".join([*_notes(found, ranked), results.caption(intervals=True)])
    return table


def progress_table(
    config: ConfigDict,
    system: str,
    ranked: Ranked,
    before: Mapping[str, float],
    after: Mapping[str, float],
    step: int,
    start: str = "initial weights",
    labels: Mapping[str, str] | None = None,
) -> Table:
    """The same table of two evaluations, before and after training: "ViT-B_16.npz -> step N".

    Args:
      config: of the run.
      system: as in `config.model.system`.
      ranked: what both evaluations ranked.
      before: ranking/scope/metric -> value in 0..1, of the initial weights; empty if they were not
        measured.
      after: those of `step`.
      step: number of training steps.
      start: what the initial weights are.
      labels: the names of the metrics to show, see `results.metric_labels`.
    """
    found = _without_r_precision(published.reported(config, system), labels or {})
    arrow = f"{start} {ARROW} " if before else ""
    table = _table(found, ranked, f"{arrow}step {step}", labels or {})
    for ranking in dict.fromkeys(key.partition("/")[0] for key in after):
        cells = []
        for name in found.metrics:
            key = f"{ranking}/{found.scope}/{name}"
            both = [values.get(key) for values in (before, after) if values]
            cells.append(ARROW.join(DASH if x is None else f"{100 * x:.1f}" for x in both))
        table.add_row(ranking, found.scope, *cells, *_published(found, ranked, ranking))
    started = () if before else (f"started from {start}",)
    table.caption = "; ".join(
        [*_notes(found, ranked), "percent", *started, *_better_start(found, before, after, start)]
    )
    return table


def _without_r_precision(
    found: published.Reported, labels: Mapping[str, str]
) -> published.Reported:
    """Without a paper, the table leaves out P@k where every class has fewer than k photos."""
    if found.paper is not None:
        return found
    names = (name for name in found.metrics if not labels.get(name, "").endswith(R_PRECISION))
    return found._replace(metrics=tuple(names))


def _better_start(
    found: published.Reported, before: Mapping[str, float], after: Mapping[str, float], start: str
) -> list[str]:
    """Names the rankings in which the start is better than the selected step."""
    metric = f"{found.scope}/{found.metrics[0]}"
    better = [
        ranking
        for ranking in dict.fromkeys(key.partition("/")[0] for key in after)
        if before.get(f"{ranking}/{metric}", 0) > after.get(f"{ranking}/{metric}", 1)
    ]
    if not better:
        return []
    return [
        f"the start ({start}) ranks better by {' and '.join(better)} and is not among the steps "
        "that can be selected; a run with config.train.steps=0 keeps it"
    ]


def _table(
    found: published.Reported, ranked: Ranked, subject: str, labels: Mapping[str, str]
) -> Table:
    table = Table(title=f"{ranked}\n{subject}")
    table.add_column("ranking")
    table.add_column("ranked among" if found.scope in ("class", "all") else "convention")
    for name in found.metrics:
        table.add_column(labels.get(name, name), justify="right")
    if found.paper is not None:
        table.add_column(f"{COMPARE}: {' / '.join(found.metrics)}")
    return table


def _published(found: published.Reported, ranked: Ranked, ranking: str) -> list[str]:
    """The cell with the published values of a row; empty without a paper."""
    if found.paper is None:
        return []
    if why_not := _incomparable(found, ranked):
        return [f"{DASH} ({why_not})"]
    if "@" in ranking or ranking.endswith(EXPANDED):
        return [f"{DASH} (another way to rank)"]
    if not found.values:
        return [f"{DASH} (no value at hand)"]
    if found.own:
        values = found.values.get(ranking)
        return [DASH if values is None else published.as_text(values)]
    name = found.paper.name.partition(" (")[0]
    return [
        "\n".join(
            f"{published.as_text(values)} ({name}, {theirs})"
            for theirs, values in found.values.items()
        )
    ]


def _incomparable(found: published.Reported, ranked: Ranked) -> str:
    """Why published values do not compare; "" if they do."""
    if not ranked.test:
        return "only for the test set"
    if not ranked.complete:
        return "only for a complete test set"
    if ranked.not_zero_shot:
        return "not zero-shot"
    if not found.same_size(ranked.sketches[0], ranked.photos[0]):
        return "another test set"
    return ""


def _notes(found: published.Reported, ranked: Ranked) -> list[str]:
    """What the caption says of the convention."""
    if found.paper is None:
        return ["no paper reports this setting"]
    whose = "" if found.own else ", because no result of the system's own paper is known"
    notes = [f"as reported by {found.paper.name}, {found.paper.source}{whose}"]
    if found.size and not found.same_size(ranked.sketches[1], ranked.photos[1]):
        notes.append(f"its test set has {found.size[0]:,} sketches x {found.size[1]:,} photos")
    return notes
