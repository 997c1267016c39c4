"""How good a ranking is: mean average precision and precision at k, in the papers' conventions.

For one query, let the gallery be sorted by falling similarity, R of its photos be relevant (of the
query's class), rel(i) be 1 if the photo at rank i is relevant and 0 if not, and
P(i) = (rel(1) + ... + rel(i)) / i. With N = min(k, R) the conventions of average precision at k are

- `exact`: AP@k = sum over hits i <= k of P(i), divided by N. No interpolation.
- `voc`: P(i) is first replaced by its running maximum max(P(i), ..., P(k)), the interpolation of
  the PASCAL VOC challenge; divided by N. What ZSE (Lin et al., CVPR 2023) publishes.
- `hits`: the sum of `exact`, divided by the number of hits among the first k instead (0 if there
  are none). torchmetrics' `top_k`, and so what CLIP-AT's published evaluator computes.

`exact` never reads higher than the other two: name the convention wherever a number goes.
`mAP@k` is the mean of AP@k over queries, `all` standing for the whole gallery. `P@k`, in every
convention, is the share of relevant photos among the first N, as ZSE computes it.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped

Convention = Literal["exact", "voc", "hits"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

AVERAGE_PRECISION: Mapping[str, int | None] = {"mAP@all": None, "mAP@200": 200}
PRECISION: Mapping[str, int] = {"P@100": 100, "P@200": 200}
METRICS: tuple[str, ...] = (*AVERAGE_PRECISION, *PRECISION)

QueryMetrics = dict[Convention, dict[str, Float[np.ndarray, " q"]]]

# Similarities ranked at once: a block's temporaries take some 40 bytes for each, 80 MB in all.
_BLOCK = 2**21


def rank_metrics(
    similarity: Real[np.ndarray | jax.Array, "q g"],
    query_labels: Shaped[np.ndarray | jax.Array, " q"],
    gallery_labels: Shaped[np.ndarray | jax.Array, " g"],
    ap: Convention = "exact",
) -> dict[str, float]:
    """The four metrics of a ranking, each in 0..1, averaged over the queries.

    Args:
      similarity: of every query with every gallery photo; larger is nearer. Photos of equal
        similarity keep the gallery's order. Infinities rank first and last.
      query_labels: class of each query.
      gallery_labels: class of each photo.
      ap: the convention of average precision, see the module.

    Returns:
      {"mAP@all", "mAP@200", "P@100", "P@200"}: means over the queries whose class has a photo in
      the gallery; the others, for which no metric is defined, are left out with a warning.

    Raises:
      ValueError: NaN similarities, shapes that do not fit each other, nothing to rank, an unknown
        convention, or no query whose class has a photo in the gallery.
    """
    if missing := without_match(query_labels, gallery_labels):
        warnings.warn(
            f"{missing} of {len(query_labels)} queries are of a class that has no photo in the "
            "gallery; the metrics are means over the other queries.",
            stacklevel=2,
        )
    by_query = query_metrics(similarity, query_labels, gallery_labels, (ap,))
    return mean_over_queries(by_query)[ap]


def mean_over_queries(by_query: QueryMetrics) -> dict[Convention, dict[str, float]]:
    """Means over the queries whose class has a photo in the gallery (not NaN in `by_query`).

    Raises:
      ValueError: there is no such query.
    """
    first = next(iter(next(iter(by_query.values())).values()))
    if np.isnan(first).all():
        raise ValueError(
            f"None of the {len(first)} queries is of a class that has a photo in the gallery: "
            "there is nothing to measure. Check that sketches and photos carry labels of one "
            "split and that strides have not left out whole classes."
        )
    return {
        convention: {name: float(np.nanmean(values)) for name, values in metrics.items()}
        for convention, metrics in by_query.items()
    }


def query_metrics(
    similarity: Real[np.ndarray | jax.Array, "q g"],
    query_labels: Shaped[np.ndarray | jax.Array, " q"],
    gallery_labels: Shaped[np.ndarray | jax.Array, " g"],
    conventions: Sequence[Convention] = CONVENTIONS,
) -> QueryMetrics:
    """The metrics of every single query, in several conventions, from one sort of the gallery.

    Returns:
      For each convention, each of `METRICS` as an array over queries; NaN where the query's class
      has no photo in the gallery.

    Raises:
      ValueError: as `rank_metrics`, except that queries without a photo are no error.
    """
    similarity = np.asarray(similarity)
    query_labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    _check(similarity, query_labels, gallery_labels, conventions)
    result: QueryMetrics = {
        convention: {name: np.empty(len(query_labels)) for name in METRICS}
        for convention in conventions
    }
    rows = max(1, _BLOCK // len(gallery_labels))
    for start in range(0, len(query_labels), rows):
        block = slice(start, start + rows)
        order = ranking(similarity[block], first_query=start)
        relevant = gallery_labels[order] == query_labels[block, None]
        del order
        for convention, metrics in _block_metrics(relevant, conventions).items():
            for name, values in metrics.items():
                result[convention][name][block] = values
    return result


def ranking(similarity: Real[np.ndarray, "q g"], *, first_query: int = 0) -> Int[np.ndarray, "q g"]:
    """Gallery indices of every query by falling similarity; ties keep the gallery's order.

    Raises:
      ValueError: a similarity is NaN; the message counts queries from `first_query`.
    """
    if not np.issubdtype(similarity.dtype, np.floating):
        # Negating unsigned integers would wrap around; numpy cannot sort bfloat16 stably.
        similarity = similarity.astype(np.float64)
    if np.isnan(similarity).any():
        query, photo = np.argwhere(np.isnan(similarity))[0]
        raise ValueError(
            f"The similarity of query {first_query + query} with gallery photo {photo} is NaN "
            f"(shape {similarity.shape}). A ranking by NaN means nothing: look for NaN in "
            "the features or in the parameters of the network that computed it."
        )
    return np.argsort(-similarity, axis=1, kind="stable")


def without_match(
    query_labels: Shaped[np.ndarray | jax.Array, " q"],
    gallery_labels: Shaped[np.ndarray | jax.Array, " g"],
) -> int:
    """How many queries are of a class that has no photo in the gallery."""
    return int((~np.isin(np.asarray(query_labels), np.asarray(gallery_labels))).sum())


def chance_level(
    query_labels: Shaped[np.ndarray | jax.Array, " q"],
    gallery_labels: Shaped[np.ndarray | jax.Array, " g"],
) -> float:
    """Expected precision of a random ranking, in 0..1: the mean share of relevant photos.

    `exact` mAP@all of a random ranking lies a little above it, and approaches it as the gallery
    grows. NaN if no query's class has a photo in the gallery.
    """
    classes, counts = np.unique(np.asarray(gallery_labels), return_counts=True)
    share = dict(zip(classes.tolist(), counts / counts.sum(), strict=True))
    shares = [share[label] for label in np.asarray(query_labels).tolist() if label in share]
    return float(np.mean(shares)) if shares else float("nan")


def _block_metrics(
    relevant: Bool[np.ndarray, "q g"], conventions: Sequence[Convention]
) -> QueryMetrics:
    """Metrics of every row of `relevant`, which is in the order of the ranking."""
    rows, gallery = relevant.shape
    hits = np.cumsum(relevant, axis=1, dtype=np.int32)
    total = hits[:, -1].astype(np.float64)
    defined = np.where(total > 0, total, np.nan)
    # P(i) where there is a hit, 0 elsewhere: no convention reads precision between hits, and the
    # running maximum is not changed, because precision falls from each hit to the next.
    precision = np.where(relevant, hits / np.arange(1, gallery + 1), 0.0)

    result: QueryMetrics = {convention: {} for convention in conventions}
    for name, top in AVERAGE_PRECISION.items():
        k = min(top or gallery, gallery)
        head, possible = precision[:, :k], np.minimum(k, defined)
        exact = head.sum(axis=1)
        for convention in conventions:
            if convention == "exact":
                average = exact / possible
            elif convention == "voc":
                running = np.maximum.accumulate(head[:, ::-1], axis=1)[:, ::-1]
                average = np.sum(running, axis=1, where=relevant[:, :k]) / possible
            else:
                found = hits[:, k - 1]
                average = np.where(np.isnan(defined), np.nan, exact / np.maximum(found, 1))
            result[convention][name] = average
    for name, top in PRECISION.items():
        possible = np.minimum(top, defined)
        last = np.minimum(top, np.maximum(total, 1)).astype(int) - 1
        share = hits[np.arange(rows), last] / possible
        for convention in conventions:
            result[convention][name] = share
    return result


def _check(
    similarity: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    conventions: Sequence[str],
) -> None:
    """Raise a ValueError that says what does not fit."""
    shapes = f"{similarity.shape}, {query_labels.shape} and {gallery_labels.shape}"
    if similarity.shape != (*query_labels.shape, *gallery_labels.shape) or similarity.ndim != 2:
        raise ValueError(
            "similarity, query_labels and gallery_labels must have shapes [Q, G], [Q] and [G], but "
            f"have {shapes}: one row for every sketch, one column for every photo."
        )
    if not similarity.size:
        raise ValueError(
            f"Nothing to rank: similarity, query_labels and gallery_labels have shapes {shapes}. "
            "At least one query and one gallery photo are needed."
        )
    for convention in conventions:
        if convention not in CONVENTIONS:
            raise ValueError(
                f"Unknown convention of average precision: {convention!r}. The conventions are "
                f"{', '.join(CONVENTIONS)}."
            )
