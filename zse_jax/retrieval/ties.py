"""Expected metrics of rankings with ties, over all orders of the photos of equal similarity.

Photos of equal similarity have no order. Each metric is its expected value if all their orders are
equally likely, which neither rewards nor punishes a scorer for ties: a constant one is at chance.
All values are exact, except average precision in the convention `voc` for queries with more than
`ENUMERATED` arrangements of the relevant photos. The maximum in its definition has no closed form;
it is estimated from random arrangements, always the same for the same ties. The difference between
`exact` and its known expected value on these arrangements is subtracted (a control variate), which
leaves a standard error of less than 0.0005 for one query, and much less for the mean of many.

A group of ties is described by s, the number of photos before it, n and m, its numbers of photos
and of relevant photos, and h, the number of relevant photos before it.
"""

import functools
import itertools
import math
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

ENUMERATED = 1000
"""Arrangements of a query that are enumerated; more are sampled."""

_SAMPLES, _FEWEST, _MOST = 2**12, 8, 64
"""Sampled arrangements times relevant photos of a query; fewest and most arrangements."""


class Groups(NamedTuple):
    """The group of ties of each relevant photo of some queries; one of size 1 without a tie.

    Attributes:
      hit: whether there is a relevant photo; the others are padding.
      before, size: s and n.
      hits_before, hits: h and m.
    """

    hit: Bool[np.ndarray, "q r"]
    before: Int[np.ndarray, "q r"]
    size: Int[np.ndarray, "q r"]
    hits_before: Int[np.ndarray, "q r"]
    hits: Int[np.ndarray, "q r"]


def groups(first: Int32[np.ndarray, "q r"], last: Int32[np.ndarray, "q r"]) -> Groups:
    """The groups of relevant photos with these lowest and highest ranks, 0 for padding.

    If all photos of a group are relevant, each is a group of its own.
    """
    index = np.arange(first.shape[1])
    edge = np.ones((len(first), 1), bool)
    begins = np.hstack([edge, first[:, 1:] != first[:, :-1]])
    ends = np.hstack([begins[:, 1:], edge])
    start = np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    stop = np.where(ends, index + 1, len(index))[:, ::-1]
    stop = np.minimum.accumulate(stop, axis=1)[:, ::-1]
    hit = first > 0
    before, size, hits = first - 1, last - first + 1, stop - start
    single = size <= hits  # all are relevant: their order does not matter; and padding
    before = np.where(hit, before + np.where(single, index - start, 0), 0)
    return Groups(
        hit,
        before.astype(np.int64),
        np.where(single, 1, size).astype(np.int64),
        np.where(single, index, start),
        np.where(single, 1, hits),
    )


def precisions(found: Groups, top: int | None) -> Float[np.ndarray, "q r"]:
    """For each relevant photo, the expected precision at its rank; 0 beyond rank `top`.

    A photo at place j of its group is relevant with probability m / n, and then has (j - 1)
    (m - 1) / (n - 1) relevant ones before it in the group on average.
    """
    size, inside = found.size, found.size
    if top is not None:
        inside = np.clip(top - found.before, 0, size)
    total = _precision_sum(found.before, found.hits_before, size, found.hits, inside)
    return np.where(found.hit, total / size, 0.0)


def _precision_sum(before, hits_before, size, hits, inside):
    """The expected sum of precisions at the relevant photos of a group's head, times n / m."""
    slope = (hits - 1) / np.maximum(size - 1, 1)
    _, harmonic = _tables(int((before + inside).max(initial=0)))
    between = harmonic[before + inside] - harmonic[before]
    return slope * inside + (hits_before + 1 - slope * (before + 1)) * between


def within(found: Groups, top: Int[np.ndarray, " q"]) -> Float[np.ndarray, "q r"]:
    """For each relevant photo, the probability that it is among the first `top`."""
    inside = np.clip(top[:, None] - found.before, 0, found.size)
    return np.where(found.hit, inside / found.size, 0.0)


def any_within(found: Groups, top: int) -> Float[np.ndarray, " q"]:
    """The probability that a relevant photo is among the first `top`, by the first group."""
    before, size, hits = (x[:, 0] for x in (found.before, found.size, found.hits))
    inside = np.clip(top - before, 0, size)
    logs, _ = _tables(int(size.max(initial=0)))
    possible = size - hits >= inside
    rest = np.where(possible, size - hits - inside, 0)
    none = logs[size - hits] - logs[rest] + logs[size - inside] - logs[size]
    return np.where(found.hit[:, 0], 1 - np.where(possible, np.exp(none), 0.0), np.nan)


def average_by_hits(found: Groups, top: int) -> Float[np.ndarray, " q"]:
    """Expected average precision at `top` in the convention `hits`.

    The number of relevant photos among the first `top` depends on the order of one group: f of its
    c places before `top` are relevant, with hypergeometric probability.
    """
    cut = found.hit & (found.before < top) & (found.before + found.size > top)
    whole = np.where(found.hit & (found.before + found.size <= top), 1, 0)
    complete = np.cumsum(np.where(whole, precisions(found, None), 0.0), axis=1)[:, -1]
    average = complete / np.maximum(whole.sum(axis=1), 1)
    rows = np.flatnonzero(cut.any(axis=1))
    if not len(rows):
        return average
    column = cut[rows].argmax(axis=1)
    s, n, h, m = (x[rows, column][:, None] for x in found[1:])
    c = top - s
    f = np.arange(int(np.minimum(m, c).max()) + 1)
    logs, _ = _tables(int(n.max()))
    valid = (f <= m) & (f <= c) & (c - f <= n - m)
    g = np.where(valid, f, np.maximum(0, c - (n - m)))  # any valid number
    log = logs[m] - logs[g] - logs[m - g] + logs[n - m] - logs[c - g] - logs[n - m - c + g]
    chance = np.where(valid, np.exp(log - logs[n] + logs[c] + logs[n - c]), 0.0)
    inside = g / c * _precision_sum(s, h, c, g, c)
    value = chance * (complete[rows][:, None] + inside) / np.maximum(h + g, 1)
    average[rows] = np.cumsum(value, axis=1)[:, -1]
    return average


def average_interpolated(found: Groups, row: int, tops: tuple[int | None, ...]) -> list[float]:
    """Expected sums of interpolated precisions of one query in the convention `voc`, by `tops`."""
    count = int(found.hit[row].sum())
    s, n, h, m = (x[row, :count] for x in found[1:])
    mixed = np.flatnonzero((h == np.arange(count)) & (n > m)).tolist()
    ways = (
        math.prod(math.comb(int(n[i]), int(m[i])) for i in mixed) if len(mixed) < 10 else math.inf
    )
    if enumerated := ways <= ENUMERATED:
        choices = (
            itertools.combinations(range(s[i] + 1, s[i] + n[i] + 1), int(m[i])) for i in mixed
        )
        arranged = np.array([[*itertools.chain(*x)] for x in itertools.product(*choices)])
    else:
        arranged = _sampled(s, n, h, m)
    places = np.zeros(count, bool)
    for i in mixed:
        places[i : i + m[i]] = True
    orders = np.tile(s + 1, (len(arranged), 1))
    orders[:, places] = arranged if enumerated else arranged[:, places]
    precision = np.arange(1, count + 1) / orders
    sums = []
    for top in tops:
        head = precision if top is None else np.where(orders <= top, precision, 0.0)
        voc = np.maximum.accumulate(head[:, ::-1], axis=1).sum(axis=1).mean()
        if not enumerated:
            one = Groups(*(x[row : row + 1, :count] for x in found))
            voc += precisions(one, top).sum() - head.sum(axis=1).mean()
        sums.append(float(voc))
    return sums


def _sampled(s, n, h, m) -> Int[np.ndarray, "samples r"]:
    """Random ranks of the relevant photos, ascending; a function of the groups alone.

    Each photo gets a random place of its group; those that share a place draw again. By symmetry,
    all sets of places are equally likely.
    """
    rng = np.random.default_rng(zlib.crc32(np.stack([s, n, h, m]).tobytes()))
    samples = int(np.clip(_SAMPLES // len(s), _FEWEST, _MOST))
    ranks = rng.integers(s + 1, s + n + 1, size=(samples, len(s)))
    for _ in range(40):
        ranks.sort(axis=1)
        again = np.zeros(ranks.shape, bool)
        again[:, 1:] = ranks[:, 1:] == ranks[:, :-1]
        sample, place = np.nonzero(again)
        if not len(sample):
            return ranks
        ranks[sample, place] = rng.integers(s[place] + 1, s[place] + n[place] + 1)
    ranks.sort(axis=1)  # dense groups: the remaining repetitions are drawn without replacement
    again = ranks[:, 1:] == ranks[:, :-1]
    for sample, start in {(i, int(h[j])) for i, j in np.argwhere(again).tolist()}:
        places = rng.choice(n[start], m[start], replace=False) + s[start] + 1
        ranks[sample, start : start + m[start]] = np.sort(places)
    return ranks


@functools.lru_cache(maxsize=4)
def _rounded_tables(most: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.arange(1, most + 1)
    logs, harmonic = np.zeros(most + 1), np.zeros(most + 1)
    np.cumsum(np.log(numbers), out=logs[1:])
    np.cumsum(1 / numbers, out=harmonic[1:])
    return logs, harmonic


def _tables(most: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """log(i!) and the harmonic number of i, for 0 <= i <= `most` at least."""
    return _rounded_tables(1 << max(10, int(most).bit_length()))
