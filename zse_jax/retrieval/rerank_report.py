"""Cost and accuracy of two-stage ranking against exact ranking, to choose K."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.table import Table

from zse_jax.retrieval.expansion import EXPANDED
from zse_jax.retrieval.results import Evaluation

CLOSE = 0.005
"""Loss in the first metric up to which a shortlist counts as good as exact ranking."""


class Shortlist(NamedTuple):
    """One K of one ranking.

    Attributes:
      ranking: the ranking of kind "score" that orders the shortlist; with `EXPANDED` at its end if
        the shortlist is by expanded queries.
      k: number of photos in it; for exact ranking, the gallery's.
      share: k as a fraction of the gallery, in (0, 1].
      recall: mean share of a query's relevant photos that are in the shortlist.
      milliseconds: ranking time for each query. It excludes encoding, and includes compilation,
        unless the program was cached on disk.
      cost: ranking time relative to exact ranking in the same run; None if that was not measured.
      values: metric -> mean in 0..1, by the first convention.
    """

    ranking: str
    k: int
    share: float
    recall: float
    milliseconds: float
    cost: float | None
    values: dict[str, float]


def shortlists(evaluation: Evaluation) -> list[Shortlist]:
    """The two-stage rankings of an evaluation, each ranking's followed by the exact one.

    Two-stage rankings are those named RANKING@K, and RANKING@K+expansion, whose shortlists are by
    expanded queries; the exact ranking is the same for both, and is left out if it was not
    measured. Empty if no two-stage ranking was measured.
    """
    seconds, queries = evaluation.seconds, evaluation.queries
    found: dict[str, list[Shortlist]] = {}
    for title, scopes in evaluation.values.items():
        match = re.fullmatch(rf"(.+)@(\d+)({re.escape(EXPANDED)})?", title)
        if not match or title not in evaluation.recalls:
            continue
        ranking, k = match[1] + (match[3] or ""), min(int(match[2]), evaluation.gallery)
        own, exact = seconds[f"rank/{title}"], seconds.get(f"rank/{match[1]}")
        row = Shortlist(
            ranking,
            k,
            k / evaluation.gallery,
            evaluation.recalls[title],
            1000 * own / queries,
            None if exact is None else own / exact,
            _first_scope(scopes),
        )
        found.setdefault(ranking, []).append(row)
    for ranking, rows in found.items():
        rows.sort(key=lambda row: row.k)
        scored = ranking.removesuffix(EXPANDED)
        if scored in evaluation.values:
            values = _first_scope(evaluation.values[scored])
            each = 1000 * seconds[f"rank/{scored}"] / queries
            rows.append(Shortlist(ranking, evaluation.gallery, 1.0, 1.0, each, 1.0, values))
    return [row for rows in found.values() for row in rows]


def smallest(rows: list[Shortlist]) -> Shortlist:
    """The smallest K of one ranking whose first metric is within `CLOSE` of the last row's.

    That is exact ranking, or the largest K if that was not measured.
    """
    metric = next(iter(rows[-1].values))
    exact = rows[-1].values[metric]
    return next(row for row in rows if row.values[metric] >= exact - CLOSE)


def shortlists_dict(evaluation: Evaluation) -> dict[str, Any]:
    """{"shortlists": [...]}, ready for `json.dump`: the rows of `shortlists`."""
    return {"shortlists": [row._asdict() for row in shortlists(evaluation)]}


def shortlist_table(evaluation: Evaluation) -> Table | None:
    """Recall, metrics and cost by K, for `rich.print`; None if no K was measured."""
    rows = shortlists(evaluation)
    if not rows:
        return None
    metrics = evaluation.metrics
    rankings = dict.fromkeys(row.ranking for row in rows)
    notes = []
    for ranking in rankings:
        own = [row for row in rows if row.ranking == ranking]
        best, last = smallest(own), own[-1]
        which = f"K = {best.k}" if best.share < 1 else "only the whole gallery"
        against = f"exact {metrics[0]}" if last.cost == 1 else f"the {metrics[0]} of K = {last.k}"
        notes.append(f"{ranking}: {which} is within {100 * CLOSE:.1f} points of {against}")
    table = Table(
        title=f"{evaluation.name}\ntwo-stage ranking, {next(iter(evaluation.chances))}",
        caption="percent; " + "; ".join(notes),
    )
    table.add_column("ranking")
    for name in (
        "K",
        "of gallery",
        "recall",
        *(evaluation.labels.get(name, name) for name in metrics),
        "ms per sketch",
        "cost of ranking",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        exact = row.share == 1 and row.cost == 1
        table.add_row(
            row.ranking,
            f"{row.k:,}",
            "exact" if exact else f"{100 * row.share:.1f}",
            f"{100 * row.recall:.1f}",
            *(f"{100 * row.values[name]:.1f}" for name in metrics),
            f"{row.milliseconds:.1f}",
            "-" if row.cost is None else f"{100 * row.cost:.1f}",
            end_section=exact,
        )
    return table


def _first_scope(scopes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return dict(next(iter(scopes.values())))
