"""Metrics of a ranking: mean average precision, precision at k and accuracy, as in the papers.

For one query, sort the gallery by falling similarity. Let R be the number of relevant photos (of
the query's class), rel(i) = 1 if the photo at rank i is relevant and 0 otherwise, and
P(i) = (rel(1) + ... + rel(i)) / i. With N = min(k, R) the conventions of average precision at k are

- `exact`: AP@k = sum over hits i <= k of P(i), divided by N. No interpolation.
- `voc`: P(i) is first replaced by its running maximum max(P(i), ..., P(k)), the interpolation of
  the PASCAL VOC challenge; divided by N. ZSE (Lin et al., CVPR 2023) publishes this one.
- `hits`: the sum of `exact`, divided by the number of hits among the first k instead (0 if there
  are none). torchmetrics' `top_k`.

CLIP-AT (Sain et al., CVPR 2023) does not say which convention its mAP@200 has. Its released
evaluator calls torchmetrics without `top_k`, which is `exact` mAP@all, and its gallery is one
random photo of the class for each sketch. We compare it with `hits`, which torchmetrics computes at
200.

`exact` is never larger than the other two: always name the convention with a number. `mAP@k` is the
mean of AP@k over queries, where `all` is the whole gallery. `P@k`, in every convention, is the
share of relevant photos among the first N, as ZSE computes it. `Acc@k`, for fine-grained retrieval,
is 1 if one of the first k photos is relevant and 0 otherwise.

If the gallery has fewer than k photos, all of them count: N is R, Acc@k is 1. A query without a
relevant photo has no metric: NaN in arrays over queries, excluded from every mean. Precision
changes only at hits, where it is i / rank for the i-th hit, so the ranks of the hits suffice.

Photos of equal similarity have no order: every metric is the expected value over all their orders,
see `zse_jax.retrieval.ties`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Real, Shaped

from zse_jax.retrieval import ties
from zse_jax.retrieval.ranking import Ranked, rank

Convention = Literal["exact", "voc", "hits"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

AVERAGE_PRECISION: Mapping[str, int | None] = {"mAP@all": None, "mAP@200": 200}
PRECISION: Mapping[str, int] = {"P@100": 100, "P@200": 200}
METRICS: tuple[str, ...] = (*AVERAGE_PRECISION, *PRECISION)
FIRST_PHOTOS: Mapping[str, int] = {"P@10": 10}
"""What a person sees of a ranking: papers do not report it; evaluations measure it as well."""
ACCURACY: tuple[str, ...] = ("Acc@1", "Acc@5", "Acc@10")

QueryMetrics = dict[Convention, dict[str, Float[np.ndarray, " q"]]]

# Number of hits processed at once, about 50 bytes each.
_BLOCK = 2**17


def rank_metrics(
    similarity: Real[np.ndarray | jax.Array, "q g"],
    query_labels: Shaped[np.ndarray | jax.Array, " q"],
    gallery_labels: Shaped[np.ndarray | jax.Array, " g"],
    ap: Convention = "exact",
) -> dict[str, float]:
    """The four metrics of a ranking, each in 0..1, averaged over the queries.

    Args:
      similarity: of every query with every gallery photo; larger is nearer. For photos of equal
        similarity, values are expected ones over all their orders. Infinities rank first and last.
      query_labels: class of each query.
      gallery_labels: class of each photo.
      ap: the convention of average precision, see the module.

    Returns:
      {"mAP@all", "mAP@200", "P@100", "P@200"}: means over the queries whose class has a photo in
      the gallery; the others have no metric and are excluded with a warning.

    Raises:
      ValueError: NaN similarities, shapes that do not match, nothing to rank, an unknown
        convention, or no query whose class has a photo in the gallery.
    """
    by_query = query_metrics(similarity, query_labels, gallery_labels, (ap,))[ap]
    missing = int(np.isnan(by_query["mAP@all"]).sum())
    if missing == len(query_labels):
        raise ValueError(
            f"None of the {missing} queries is of a class that has a photo in the gallery: "
            "there is nothing to measure. Check that sketches and photos are labelled by one split."
        )
    if missing:
        warnings.warn(
            f"{missing} of {len(query_labels)} queries are of a class that has no photo in the "
            "gallery; the metrics are means over the other queries.",
            stacklevel=2,
        )
    return {name: float(np.nanmean(values)) for name, values in by_query.items()}


def query_metrics(
    similarity: Real[np.ndarray | jax.Array, "q g"],
    query_labels: Shaped[np.ndarray | jax.Array, " q"],
    gallery_labels: Shaped[np.ndarray | jax.Array, " g"],
    conventions: Sequence[Convention] = CONVENTIONS,
) -> QueryMetrics:
    """The metrics of every query, in several conventions, from one sort of the gallery.

    Returns:
      For each convention, each of `METRICS` as an array over queries; NaN where the query's class
      has no photo in the gallery.

    Raises:
      ValueError: as `rank_metrics`, except for queries without a photo.
    """
    check_conventions(conventions)
    return query_metrics_of(rank(similarity, query_labels, gallery_labels, top=0), conventions)


def query_metrics_of(
    ranked: Ranked, conventions: Sequence[Convention] = CONVENTIONS
) -> QueryMetrics:
    """The metrics of every query from a ranking, in float64; see `query_metrics`.

    Raises:
      ValueError: an unknown convention.
    """
    check_conventions(conventions)
    queries, most = ranked.hit_ranks.shape
    result: QueryMetrics = {
        convention: {name: np.full(queries, np.nan) for name in METRICS}
        for convention in conventions
    }
    rows = max(1, _BLOCK // max(1, most))
    for start in range(0, queries if most else 0, rows):
        block = np.arange(start, min(start + rows, queries))
        tied = block[_tied(ranked)[block]]
        for which, measured in (
            (block, _block_metrics(ranked.hit_ranks[block], conventions)),
            (tied, _tied_metrics(_groups(ranked, tied), conventions) if len(tied) else {}),
        ):
            for convention, metrics in measured.items():
                for name, values in metrics.items():
                    result[convention][name][which] = values
    return result


def accuracy_at(
    ranked: Ranked, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Float[np.ndarray, " q"]]:
    """{"Acc@1": ...}: 1 for queries with a relevant photo among the first k, 0 for others.

    The probability of that for tied photos; NaN where no photo is relevant.
    """
    first = ranked.hit_ranks.min(axis=1, initial=np.iinfo(np.int32).max, where=ranked.hit_ranks > 0)
    result = {f"Acc@{k}": np.where(ranked.hit_ranks.any(axis=1), first <= k, np.nan) for k in ks}
    if (tied := _tied(ranked)).any():
        found = _groups(ranked, np.flatnonzero(tied))
        for k in ks:
            result[f"Acc@{k}"][tied] = ties.any_within(found, k)
    return result


def chance(ranked: Ranked) -> Float[np.ndarray, " q"]:
    """For every query, the share of relevant photos among the candidates; NaN where it is 0.

    This is the expected precision and Acc@1 of a random ranking. Its `exact` mAP@all is slightly
    higher, and approaches it as the gallery grows.
    """
    relevant = (ranked.hit_ranks > 0).sum(axis=1)
    return np.where(relevant > 0, relevant / np.maximum(ranked.candidates, 1), np.nan)


def precision_at(ranked: Ranked, k: int) -> Float[np.ndarray, " q"]:
    """P@k of every query: the share of relevant photos among the first N = min(k, R).

    Its expected value for tied photos; NaN where no photo is relevant.
    """
    hits = ranked.hit_ranks
    total = (hits > 0).sum(axis=1)
    first = np.minimum(k, total)
    found = ((hits > 0) & (hits <= first[:, None])).sum(axis=1)
    result = np.where(total > 0, found / np.maximum(first, 1), np.nan)
    if (tied := _tied(ranked)).any():
        rows = np.flatnonzero(tied)
        inside = ties.within(_groups(ranked, rows), first[rows])
        result[tied] = _sum(inside) / first[rows]
    return result


def recall(ranked: Ranked, k: int) -> Float[np.ndarray, " q"]:
    """For every query, the share of its relevant photos among the first k; NaN without any."""
    relevant = (ranked.hit_ranks > 0).sum(axis=1)
    found = ((ranked.hit_ranks > 0) & (ranked.hit_ranks <= k)).sum(axis=1)
    return np.where(relevant > 0, found / np.maximum(relevant, 1), np.nan)


def check_conventions(conventions: Sequence[str]) -> None:
    """Raises ValueError for a name that is not a convention of average precision."""
    for convention in conventions:
        if convention not in CONVENTIONS:
            raise ValueError(
                f"Unknown convention of average precision: {convention!r}. The conventions are "
                f"{', '.join(CONVENTIONS)}."
            )


def _block_metrics(
    hit_ranks: Int32[np.ndarray, "q r"], conventions: Sequence[Convention]
) -> QueryMetrics:
    """Metrics of some queries, of which at least one has a relevant photo."""
    hit = hit_ranks > 0
    total = hit.sum(axis=1)
    defined = np.where(total > 0, total, np.nan)
    number = np.arange(1, hit_ranks.shape[1] + 1)
    precision = np.where(hit, number / np.maximum(hit_ranks, 1), 0.0)

    result: QueryMetrics = {convention: {} for convention in conventions}
    for name, top in AVERAGE_PRECISION.items():
        head, possible, found = precision, defined, total
        if top is not None:  # ranks ascend: at most the first `top` of them are up to `top`
            within = hit[:, :top] & (hit_ranks[:, :top] <= top)
            head, possible = np.where(within, precision[:, :top], 0.0), np.minimum(top, defined)
            found = within.sum(axis=1)
        exact = _sum(head)
        for convention in conventions:
            if convention == "exact":
                average = exact / possible
            elif convention == "voc":
                running = np.maximum.accumulate(head[:, ::-1], axis=1)[:, ::-1]
                average = _sum(running) / possible
            else:
                average = np.where(np.isnan(defined), np.nan, exact / np.maximum(found, 1))
            result[convention][name] = average
    for name, top in PRECISION.items():
        possible = np.minimum(top, defined)
        within = hit[:, :top] & (hit_ranks[:, :top] <= np.nan_to_num(possible)[:, None])
        share = within.sum(axis=1) / possible
        for convention in conventions:
            result[convention][name] = share
    return result


def _tied(ranked: Ranked) -> Bool[np.ndarray, " q"]:
    """Which queries have a relevant and another photo of equal similarity."""
    return (ranked.first_ranks != ranked.last_ranks).any(axis=1)


def _groups(ranked: Ranked, rows: Int[np.ndarray, " b"]) -> ties.Groups:
    return ties.groups(ranked.first_ranks[rows], ranked.last_ranks[rows])


def _tied_metrics(found: ties.Groups, conventions: Sequence[Convention]) -> QueryMetrics:
    """Expected metrics of queries with ties, as `_block_metrics`."""
    total = found.hit.sum(axis=1)
    result: QueryMetrics = {convention: {} for convention in conventions}
    tops = tuple(AVERAGE_PRECISION.values())
    interpolated = np.empty((len(total), len(tops)))
    if "voc" in conventions:
        for row in range(len(total)):
            interpolated[row] = ties.average_interpolated(found, row, tops)
    for place, (name, top) in enumerate(AVERAGE_PRECISION.items()):
        possible = total if top is None else np.minimum(top, total)
        exact = _sum(ties.precisions(found, top))
        for convention in conventions:
            if convention == "exact":
                average = exact / possible
            elif convention == "voc":
                average = np.clip(interpolated[:, place] / possible, exact / possible, 1.0)
            else:
                average = exact / total if top is None else ties.average_by_hits(found, top)
            result[convention][name] = average
    for name, top in PRECISION.items():
        possible = np.minimum(top, total)
        share = _sum(ties.within(found, possible)) / possible
        for convention in conventions:
            result[convention][name] = share
    return result


def _sum(rows: Float[np.ndarray, "q r"]) -> Float[np.ndarray, " q"]:
    """Sequential row sums: zeros after the last hit do not change a single bit."""
    return np.cumsum(rows, axis=1)[:, -1]
