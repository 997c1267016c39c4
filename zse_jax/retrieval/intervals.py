"""Bootstrap intervals of a mean over queries: for other sketches, or for other classes."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

Over = Literal["sketches", "classes"]
OVER: tuple[Over, ...] = get_args(Over)


def bootstrap(
    rows: Float[np.ndarray, "m q"],
    strata: Int[np.ndarray, " q"],
    clusters: Int[np.ndarray, " q"],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "m 2"]:
    """Low and high percentile of the resampled mean of each row.

    Clusters are resampled within their stratum: of n clusters, n - 1 are drawn with replacement and
    weighted by n / (n - 1), so that the variance is unbiased for small n (Rao and Wu, Resampling
    inference with complex survey data, JASA 1988). Strata of a single cluster form one stratum
    together. Rows share the resamples.

    Args:
      rows: values of the queries.
      strata: for sketches, their classes, which are fixed; for classes, one value.
      clusters: queries that are drawn together: sketches of one photo, or of one class.
      confidence: of the interval.
      resamples: number of resampled means.
      seed: of the resamples.
    """
    _, first, cluster = np.unique(
        np.stack([strata, clusters]), axis=1, return_index=True, return_inverse=True
    )
    cluster = cluster.reshape(-1)
    stratum, sizes = np.unique(strata[first], return_inverse=True, return_counts=True)[1:]
    single = sizes[stratum] == 1
    groups = [np.flatnonzero((stratum == x) & ~single) for x in np.flatnonzero(sizes > 1)]
    if single.any():
        groups.append(np.flatnonzero(single))
    counts = np.bincount(cluster).astype(float)
    sums = np.stack([np.bincount(cluster, row, len(counts)) for row in rows])
    rng = np.random.default_rng(seed)
    total, count = np.zeros((len(rows), resamples)), np.zeros(resamples)
    for group in groups:
        n = len(group)
        weights = np.ones((n, resamples))
        if n > 1:
            drawn = rng.multinomial(n - 1, np.full(n, 1 / n), size=resamples)
            weights = drawn.T * (n / (n - 1))
        total += sums[:, group] @ weights
        count += counts[group] @ weights
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    return np.quantile(total / count, tails, axis=1).T
