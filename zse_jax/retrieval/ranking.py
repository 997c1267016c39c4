"""Rankings: the gallery sorted for every query, reduced to the part worth keeping.

All metrics and pictures of a ranking follow from `Ranked`: the first photos, and the ranks of the
relevant ones. It takes a few kilobytes per query, whatever the size of the gallery.

Photos of equal similarity are tied. Their order must not depend on the order of the gallery, which
is by class. They are listed in a fixed random order, and `Ranked` has the ranks that each tied
photo could have, so that `metrics` computes expected values over all orders.

The host and an accelerator run the same function, with numpy in threads or with jax.numpy under
jit, and give the same result. jax arrays on a CPU are sorted by numpy: XLA's sort there takes
about 20 times as long.
"""

import functools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float32, Int, Int32, Real, Shaped

# Similarities sorted at once: by each thread of the host, a few megabytes with the working memory
# of the sort (fewer wait for Python, more for new pages of memory); on an accelerator, 0.5 GB.
_HOST_BLOCK, _DEVICE_BLOCK = 2**18, 2**24
_THREADS = min(8, os.cpu_count() or 1)


class Ranked(NamedTuple):
    """The part of a ranking that is kept for each query; on the host.

    Attributes:
      top: gallery indices of the first photos, -1 where a query has fewer candidates.
      top_similarity: their similarities; NaN where `top` is -1.
      hit_ranks: ranks of the relevant photos, 1 for the first photo, ascending; padded with 0 to
        the largest number of relevant photos of any query.
      first_ranks, last_ranks: the lowest and the highest rank that each relevant photo can have:
        those of all photos of the same similarity. Equal to `hit_ranks` in a query without a
        relevant and another photo of equal similarity.
      candidates: number of photos that were ranked.
    """

    top: Int32[np.ndarray, "q k"]
    top_similarity: Float32[np.ndarray, "q k"]
    hit_ranks: Int32[np.ndarray, "q r"]
    first_ranks: Int32[np.ndarray, "q r"]
    last_ranks: Int32[np.ndarray, "q r"]
    candidates: Int32[np.ndarray, " q"]


class _Labels(NamedTuple):
    """Labels of queries and photos, and their groups or None, as dense integers."""

    query: Int32[np.ndarray, " q"]
    gallery: Int32[np.ndarray, " g"]
    query_group: Int32[np.ndarray, " q"] | None = None
    gallery_group: Int32[np.ndarray, " g"] | None = None

    def of(self, rows: Int[np.ndarray, " b"]) -> "_Labels":
        """The labels of some queries and of the whole gallery."""
        group = None if self.query_group is None else self.query_group[rows]
        return self._replace(query=self.query[rows], query_group=group)


def rank(
    similarity: Real[np.ndarray | jax.Array, "q g"],
    query_labels: Shaped[np.ndarray | jax.Array, " q"],
    gallery_labels: Shaped[np.ndarray | jax.Array, " g"],
    *,
    query_groups: Shaped[np.ndarray | jax.Array, " q"] | None = None,
    gallery_groups: Shaped[np.ndarray | jax.Array, " g"] | None = None,
    top: int = 200,
    first_query: int = 0,
) -> Ranked:
    """Sorts the candidates of every query by falling similarity.

    Args:
      similarity: of every query with every photo; larger is nearer. Photos of equal similarity
        are in a fixed random order (`tie_order`); infinities rank first and last.
      query_labels, gallery_labels: a photo is relevant if its label is the query's.
      query_groups, gallery_groups: a photo is a candidate if its group is the query's; without
        groups, every photo is. Other photos are neither ranked nor relevant.
      top: number of first photos to keep; all photos of a smaller gallery.
      first_query: number of the first query, for error messages about a block of a larger task.

    Raises:
      ValueError: a similarity is NaN, shapes do not match, or there is nothing to rank.
    """
    _check_shapes(similarity, query_labels, gallery_labels)
    labels = _Labels(*_dense(query_labels, gallery_labels))
    if query_groups is not None or gallery_groups is not None:
        shapes = [np.shape(x) for x in (query_groups, gallery_groups) if x is not None]
        if shapes != [query_labels.shape, gallery_labels.shape]:
            raise ValueError(
                "Groups must be given for queries and gallery together, one for each label, but "
                f"have shapes {shapes} for labels of shapes {query_labels.shape} and "
                f"{gallery_labels.shape}."
            )
        labels = _Labels(*labels[:2], *_dense(query_groups, gallery_groups))
    queries, gallery = similarity.shape
    order = tie_order(gallery)
    if isinstance(similarity, jax.Array) and _sorts_on_device(similarity):
        mesh = similarity.sharding.mesh if isinstance(similarity.sharding, NamedSharding) else None
        devices = 1 if mesh is None else mesh.size
        # Few shapes, so few compilations: rows are a power of two up to a full block, and the last
        # block is padded.
        height = min(max(1, _DEVICE_BLOCK // gallery), 1 << (queries - 1).bit_length())
        height = -(-height // devices) * devices
        sort, threads = functools.partial(_sort_on_device, mesh=mesh), 1
    else:
        similarity = np.asarray(similarity)
        height = max(1, min(_HOST_BLOCK // gallery, -(-queries // _THREADS)))
        sort, threads = functools.partial(_sort, np), _THREADS

    def rank_block(start: int) -> Ranked:
        rows = np.minimum(np.arange(start, start + height), queries - 1)
        found = sort(similarity, rows, labels.of(rows), order, top=min(top, gallery))
        first, first_similarity, hit, tied, candidates, nan = (
            field[: queries - start] for field in jax.device_get(found)
        )
        if (nan >= 0).any():
            query = int(np.argmax(nan >= 0))
            raise ValueError(
                f"The similarity of query {first_query + start + query} with gallery photo "
                f"{nan[query]} is NaN (shape {similarity.shape}), so it cannot be ranked: look for "
                "NaN in the features or in the parameters of the network that computed it."
            )
        return Ranked(first, first_similarity, *_ranks(hit, tied), candidates)

    with ThreadPoolExecutor(threads) as pool:
        return concatenate(list(pool.map(rank_block, range(0, queries, height))))


def tie_order(gallery: int) -> Int32[np.ndarray, " g"]:
    """The order in which photos of equal similarity are listed: random, the same each time."""
    return np.random.default_rng(gallery).permutation(gallery).astype(np.int32)


def concatenate(parts: Sequence[Ranked]) -> Ranked:
    """The rankings of consecutive blocks of queries among one gallery as one.

    Raises:
      ValueError: no parts, or parts that keep different numbers of first photos.
    """
    if len({part.top.shape[1] for part in parts}) != 1:
        raise ValueError(
            "Parts of one ranking must keep the same number of first photos, but these keep "
            f"{', '.join(str(part.top.shape[1]) for part in parts) or 'none: there are no parts'}."
        )
    width = max(part.hit_ranks.shape[1] for part in parts)

    def joined(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        if name.endswith("_ranks"):
            arrays = [np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in arrays]
        return np.concatenate(arrays)

    return Ranked(*map(joined, Ranked._fields))


def _sorts_on_device(similarity: jax.Array) -> bool:
    """Whether the array is sorted where it lies: on an accelerator, in a type up to float32."""
    narrow = similarity.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    on_cpu = all(device.platform == "cpu" for device in similarity.devices())
    here = similarity.is_fully_addressable or similarity.is_fully_replicated
    return not here or (narrow and not on_cpu)


def _dense(query: Any, gallery: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels of any type as integers from 0, equal where the labels are; int16 if they fit."""
    query, gallery = np.asarray(query), np.asarray(gallery)
    values, codes = np.unique(np.concatenate([gallery, query]), return_inverse=True)
    codes = codes.astype(np.int16 if len(values) < 2**15 else np.int32)
    return codes[len(gallery) :], codes[: len(gallery)]


def _sort(
    xp: Any,
    similarity: Any,
    rows: Any,
    labels: _Labels,
    ties: Any,
    *,
    top: int,
    mesh: Any = None,
):
    """Sorts some rows.

    Args:
      xp: numpy or jax.numpy.
      similarity: [q, g], of that module.
      rows: [b], the rows to sort.
      labels: of these rows and of the gallery.
      ties: [g], the order of photos of equal similarity.
      top: number of first photos to return.
      mesh: the mesh over which rows are spread; None: one device.

    Returns:
      `Ranked.top`, `Ranked.top_similarity`; whether the photo at each rank is relevant, bool
      [b, g]; whether it has the similarity of the photo before it, bool [b, g - 1];
      `Ranked.candidates`; and the first photo of NaN similarity of each row, or -1.
    """
    scores = similarity[rows]
    wide = xp is np and (scores.dtype.itemsize > 4 or np.issubdtype(scores.dtype, np.integer))
    scores = scores.astype(np.float64 if wide else np.float32, copy=False)
    if mesh is not None:
        by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        scores = jax.lax.with_sharding_constraint(scores, by_rows)
    is_nan = xp.isnan(scores)
    nan = xp.where(is_nan.any(1), is_nan.argmax(1), -1)
    keys = _keys(scores)
    candidates = xp.full(len(keys), keys.shape[1])
    if labels.query_group is not None:
        candidate = xp.equal(labels.gallery_group, labels.query_group[:, None])
        keys = xp.where(candidate, keys, np.iinfo(keys.dtype).max)  # Behind -inf.
        candidates = candidate.sum(1)
    if xp is np:
        place, tied = _argsort(keys, ties)
    else:
        keys = xp.take(keys, ties, axis=1)
        place = xp.argsort(keys, axis=1, stable=True)
        keys = xp.take_along_axis(keys, place, axis=1)
        tied = xp.equal(keys[:, 1:], keys[:, :-1])
    ranked = xp.arange(keys.shape[1]) < candidates[:, None]
    hit = (xp.take(labels.gallery[ties], place) == labels.query[:, None]) & ranked
    first, kept = xp.take(ties, place[:, :top]), ranked[:, :top]
    with np.errstate(over="ignore"):  # float64 outside the range of float32 becomes infinite.
        first_similarity = xp.take_along_axis(scores, first, 1).astype(np.float32)
    return (
        xp.where(kept, first, -1).astype(np.int32),
        xp.where(kept, first_similarity, np.float32(np.nan)),
        hit,
        tied,
        candidates.astype(np.int32),
        nan.astype(np.int32),
    )


@functools.partial(jax.jit, static_argnames=("top", "mesh"))
def _sort_on_device(similarity, rows, labels, ties, *, top: int, mesh: Mesh | None):
    """`_sort` with each device of a mesh sorting its share of the rows."""
    results = _sort(jnp, similarity, rows, labels, ties, top=top, mesh=mesh)
    if mesh is None:
        return results
    return jax.lax.with_sharding_constraint(results, NamedSharding(mesh, PartitionSpec()))


def _keys(scores: Any) -> Any:
    """Integers that grow as the scores fall, equal for both zeros.

    Read as integers, the bits of positive floating-point numbers grow with the number; those of
    negative numbers, without the sign bit, grow as it falls. Integers keep host and device equal
    for subnormal numbers too, which XLA treats as zero in arithmetic.

    The result is `where(bits < 0, bits & max, -bits)`, which takes numpy 4 to 14 times as long.
    """
    bits = scores.view(np.int32 if scores.dtype == np.float32 else np.int64)
    positive = ~(bits >> (8 * bits.dtype.itemsize - 1))  # -1; 0 for negative numbers
    return (bits ^ (positive | np.iinfo(bits.dtype).min)) - positive


def _argsort(
    keys: Int[np.ndarray, "b g"], ties: Int[np.ndarray, " g"]
) -> tuple[Int[np.ndarray, "b g"], Bool[np.ndarray, "b g-1"]]:
    """Sorts each row, equal keys as in `ties`: the places in `ties`, and which keys repeat.

    32-bit keys are sorted as 64-bit integers, the key above the place: a tenth of the time of
    numpy's stable argsort.
    """
    if keys.dtype != np.int32:
        keys = keys[:, ties]
        place = np.argsort(keys, axis=1, kind="stable")
        keys = np.take_along_axis(keys, place, axis=1)
        return place, keys[:, 1:] == keys[:, :-1]
    place_of = np.empty(len(ties), np.int64)
    place_of[ties] = np.arange(len(ties))
    packed = (keys.astype(np.int64) << 32) | place_of
    packed.sort(axis=1)
    keys = packed.view(np.int32)[:, 1::2] if sys.byteorder == "little" else packed >> 32
    return packed & 0xFFFFFFFF, keys[:, 1:] == keys[:, :-1]


def _ranks(
    hit: Bool[np.ndarray, "b g"], tied: Bool[np.ndarray, "b g-1"]
) -> tuple[Int32[np.ndarray, "b r"], Int32[np.ndarray, "b r"], Int32[np.ndarray, "b r"]]:
    """`hit_ranks`, `first_ranks` and `last_ranks`: from 1, ascending, padded with 0."""
    counts = hit.sum(axis=1)
    there = np.arange(counts.max()) < counts[:, None]
    ranks, first, last = (np.zeros(there.shape, np.int32) for _ in range(3))
    ranks[there] = np.flatnonzero(hit) % hit.shape[1] + 1  # np.nonzero takes 9 times as long
    first[:], last[:] = ranks, ranks
    mixed = (tied & (hit[:, 1:] != hit[:, :-1])).any(axis=1)
    if mixed.any():
        begins = np.ones((int(mixed.sum()), hit.shape[1]), bool)
        begins[:, 1:] = ~tied[mixed]
        start = np.append(np.flatnonzero(begins), begins.size)  # of each group, in all rows
        row, place = np.nonzero(hit[mixed])
        group = np.searchsorted(start, row * hit.shape[1] + place, side="right")
        where = np.flatnonzero(mixed)[row], np.nonzero(there[mixed])[1]
        first[where] = start[group - 1] - row * hit.shape[1] + 1
        last[where] = start[group] - row * hit.shape[1]
    return ranks, first, last


def _check_shapes(similarity: Any, query_labels: Any, gallery_labels: Any) -> None:
    """Raises a ValueError that names the shapes that do not match."""
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
