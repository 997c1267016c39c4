"""Rankings: the gallery sorted for every query, and of that only what is worth keeping.

Everything that is measured or drawn of a ranking follows from `Ranked`: the first photos, and the
ranks of the relevant ones. It takes a few kilobytes for each query, whatever the gallery's size.

Both ways of computing it sort integers, so they agree to the bit. The similarity's bits are turned
into an unsigned integer that grows as the similarity falls (both zeros alike), and equal ones keep
the gallery's order. On the host that is a radix sort by 16 bits at a time, several queries at once;
on an accelerator one jit-compiled `jax.lax.sort`. jax arrays on a CPU go to the host's sort, which
took 0.2 ms for a row of 20,000 where XLA's took 3.8 ms.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32, Real, Shaped

# Similarities ranked at once: what a core's cache holds, by each of the host's threads; on an
# accelerator 0.5 GB, with what sorting them takes.
_HOST_BLOCK, _DEVICE_BLOCK = 2**17, 2**24
_THREADS = min(8, os.cpu_count() or 1)

_LAST = np.uint32(0xFFFFFFFF)  # Sorts behind -inf: photos that are no candidates.


class Ranked(NamedTuple):
    """What is kept of a ranking, for each query; on the host.

    Attributes:
      top: gallery indices of the first photos, -1 where a query has fewer candidates.
      top_similarity: theirs; NaN where `top` is -1.
      hit_ranks: ranks of the relevant photos, 1 for the first photo, ascending; filled up with 0
        to the most that any query has.
      candidates: how many photos were ranked.
    """

    top: Int32[np.ndarray, "q k"]
    top_similarity: Float32[np.ndarray, "q k"]
    hit_ranks: Int32[np.ndarray, "q r"]
    candidates: Int32[np.ndarray, " q"]


class _Labels(NamedTuple):
    """Labels of queries and photos, and groups of both, as dense integers."""

    query: Int32[np.ndarray, " q"]
    gallery: Int32[np.ndarray, " g"]
    groups: tuple[Int32[np.ndarray, " q"], Int32[np.ndarray, " g"]] | None


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
        keep the gallery's order; infinities rank first and last.
      query_labels, gallery_labels: a photo is relevant if its label is the query's.
      query_groups, gallery_groups: a photo is a candidate if its group is the query's; without
        them, every photo is. Photos that are no candidates are neither ranked nor relevant.
      top: how many of the first photos to keep; all of a smaller gallery.
      first_query: number of the first query, for the error messages of a block of a larger task.

    Raises:
      ValueError: NaN similarities, shapes that do not fit each other, or nothing to rank.
    """
    _check_shapes(similarity, query_labels, gallery_labels)
    groups = None
    if query_groups is not None or gallery_groups is not None:
        shapes = [np.shape(x) for x in (query_groups, gallery_groups) if x is not None]
        if shapes != [query_labels.shape, gallery_labels.shape]:
            raise ValueError(
                "Groups come for queries and gallery together, one for each label, but have shapes "
                f"{shapes} for labels of shapes {query_labels.shape} and {gallery_labels.shape}."
            )
        groups = _dense(query_groups, gallery_groups)
    labels = _Labels(*_dense(query_labels, gallery_labels), groups)
    top = min(top, len(labels.gallery))
    try:
        if isinstance(similarity, jax.Array) and not _is_for_host(similarity):
            return _rank_on_device(similarity, labels, top)
        return _rank_on_host(np.asarray(similarity), labels, top)
    except _NanError as error:
        query, photo = error.args
        raise ValueError(
            f"The similarity of query {first_query + query} with gallery photo {photo} is NaN "
            f"(shape {similarity.shape}). A ranking by NaN means nothing: look for NaN in "
            "the features or in the parameters of the network that computed it."
        ) from None


def concatenate(parts: Sequence[Ranked]) -> Ranked:
    """The rankings of consecutive blocks of queries among one gallery as one.

    Raises:
      ValueError: no part, or parts that keep different numbers of first photos.
    """
    if len({part.top.shape[1] for part in parts}) != 1:
        raise ValueError(
            "Parts of one ranking must keep the same number of first photos, but these keep "
            f"{', '.join(str(part.top.shape[1]) for part in parts) or 'nothing: there is none'}."
        )
    width = max(part.hit_ranks.shape[1] for part in parts)
    padded = [
        np.pad(part.hit_ranks, ((0, 0), (0, width - part.hit_ranks.shape[1]))) for part in parts
    ]
    tops, similarities, _, candidates = zip(*parts, strict=True)
    return Ranked(*map(np.concatenate, (tops, similarities, padded, candidates)))


class _NanError(Exception):
    """A similarity is NaN; the arguments are its row and column."""


def _is_for_host(similarity: jax.Array) -> bool:
    """Whether the host sorts these faster, or is the only one that knows the number type."""
    narrow = similarity.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    on_cpu = all(device.platform == "cpu" for device in similarity.devices())
    here = similarity.is_fully_addressable or similarity.is_fully_replicated
    return here and (on_cpu or not narrow)


def _dense(query: Any, gallery: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels of any kind as integers from 0 on, equal where the labels are."""
    query, gallery = np.asarray(query), np.asarray(gallery)
    known, codes = np.unique(np.concatenate([gallery, query]), return_inverse=True)
    del known
    codes = codes.astype(np.int32)
    return codes[len(gallery) :], codes[: len(gallery)]


def _descending(bits: Any) -> Any:
    """Unsigned integers that grow as the floating point numbers of these bits fall.

    Bits of negative numbers do so themselves, from the sign bit (-0.0) on; those of others are
    subtracted from it, here without a choice, which is several times as fast in numpy. float32
    never gives `_LAST`, which would be a NaN.
    """
    unsigned, width = bits.dtype.type, 8 * bits.dtype.itemsize
    positive = (bits >> unsigned(width - 1)) - unsigned(1)  # All bits set, or none.
    return (bits ^ positive) - positive + (positive & unsigned(1 << (width - 1)))


# On the host


def _rank_on_host(similarity: np.ndarray, labels: _Labels, top: int) -> Ranked:
    queries, gallery = similarity.shape
    _, per_label = np.unique(labels.gallery, return_counts=True)
    result = Ranked(
        top=np.full((queries, top), -1, np.int32),
        top_similarity=np.full((queries, top), np.nan, np.float32),
        hit_ranks=np.zeros((queries, per_label.max()), np.int32),
        candidates=np.full(queries, gallery, np.int32),
    )
    # Half of the bytes to gather, where there are no more labels than these hold.
    narrow = np.int16 if labels.gallery.max() < 2**15 else np.int32
    label_of = labels.gallery.astype(narrow)
    members = {}
    if labels.groups is not None:
        of_query, of_photo = labels.groups
        members = {
            group: np.flatnonzero(of_photo == group) for group in np.unique(of_query).tolist()
        }

    def rank_block(start: int) -> int:
        block = _sortable(similarity[start : start + rows])
        if np.isnan(block).any():
            query, photo = np.argwhere(np.isnan(block))[0]
            raise _NanError(start + query, photo)
        most = 0
        for query, scores in enumerate(block, start):
            key = _descending(scores.view(f"u{scores.dtype.itemsize}"))
            if labels.groups is not None:
                candidates = members[int(labels.groups[0][query])]
                order = candidates.take(_order(key.take(candidates)))
                result.candidates[query] = len(order)
            else:
                order = _order(key)
            first = order[:top]
            result.top[query, : len(first)] = first
            with np.errstate(over="ignore"):  # float64 beyond float32 is infinite.
                result.top_similarity[query, : len(first)] = scores.take(first)
            hits = np.flatnonzero(label_of.take(order) == labels.query[query])
            result.hit_ranks[query, : len(hits)] = hits + 1
            most = max(most, len(hits))
        return most

    rows = max(1, min(_HOST_BLOCK // gallery, -(-queries // _THREADS)))
    with ThreadPoolExecutor(_THREADS) as pool:
        most = max(pool.map(rank_block, range(0, queries, rows)))
    return result._replace(hit_ranks=result.hit_ranks[:, :most])


def _sortable(block: np.ndarray) -> Float[np.ndarray, "q g"]:
    """float32 or float64 numbers that order as these do; contiguous."""
    wide = block.dtype.itemsize > 4 or np.issubdtype(block.dtype, np.integer)
    return np.ascontiguousarray(block, np.float64 if wide else np.float32)


def _order(keys: Shaped[np.ndarray, " g"]) -> Shaped[np.ndarray, " g"]:
    """Indices that sort unsigned integers; equal ones keep their order.

    Numpy's stable sort of 16-bit integers is a radix sort, an order of magnitude faster than its
    comparison sorts; beginning with the lowest 16 bits, it sorts wider ones too.
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(16, 8 * keys.dtype.itemsize, 16):
        digit = (keys.take(order) >> keys.dtype.type(shift)).astype(np.uint16)
        order = order.take(np.argsort(digit, kind="stable"))
    return order


# On an accelerator


def _rank_on_device(similarity: jax.Array, labels: _Labels, top: int) -> Ranked:
    """As `_rank_on_host`, in blocks of one shape; on a mesh, each device sorts its rows of them."""
    queries, gallery = similarity.shape
    mesh = similarity.sharding.mesh if isinstance(similarity.sharding, NamedSharding) else None
    devices = 1 if mesh is None else mesh.size
    # A last block of fewer queries and a task of a few are no reason to compile for each of them.
    most_rows = max(1, _DEVICE_BLOCK // gallery)
    rows = -(-min(most_rows, 1 << (queries - 1).bit_length()) // devices) * devices
    most = int(np.bincount(labels.gallery).max())
    pieces = []
    for start in range(0, queries, rows):
        chosen = np.minimum(np.arange(start, start + rows), queries - 1)
        groups = labels.groups and (labels.groups[0][chosen], labels.groups[1])
        pieces.append(
            _rank_block(
                similarity,
                chosen,
                labels.query[chosen],
                labels.gallery,
                groups,
                top=top,
                most=most,
                mesh=mesh,
            )
        )
    *fields, nan = (
        np.concatenate(field)[:queries] for field in zip(*jax.device_get(pieces), strict=True)
    )
    if (nan >= 0).any():
        query = int(np.argmax(nan >= 0))
        raise _NanError(query, nan[query])
    result = Ranked(*fields)
    return result._replace(hit_ranks=result.hit_ranks[:, : (result.hit_ranks > 0).sum(1).max()])


@functools.partial(jax.jit, static_argnames=("top", "most", "mesh"))
def _rank_block(
    similarity: Real[Array, "all g"],
    chosen: Int32[Array, " q"],
    query: Int32[Array, " q"],
    gallery: Int32[Array, " g"],
    groups: tuple[Int32[Array, " q"], Int32[Array, " g"]] | None,
    *,
    top: int,
    most: int,
    mesh: Mesh | None,
) -> tuple[Array, ...]:
    """`Ranked` of some rows, and the first photo of NaN similarity of each, -1 where none is."""
    scores = similarity[chosen].astype(jnp.float32)
    if mesh is not None:
        by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        scores = jax.lax.with_sharding_constraint(scores, by_rows)
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    nan = jnp.where(is_nan.any(1), is_nan.argmax(1), -1)

    relevant = jnp.equal(gallery, query[:, None])
    keys = _descending(bits)
    candidates = jnp.full(len(scores), scores.shape[1])
    if groups is not None:
        candidate = jnp.equal(groups[1], groups[0][:, None])
        keys, relevant = jnp.where(candidate, keys, _LAST), relevant & candidate
        candidates = candidate.sum(1)
    # The sort carries along which photo it is and whether it is relevant.
    photo = jnp.arange(scores.shape[1], dtype=jnp.uint32)
    _, payload = jax.lax.sort((keys, 2 * photo + relevant), num_keys=1, is_stable=True)
    order, hit = (payload >> 1).astype(jnp.int32), (payload & 1).astype(bool)

    first, kept = order[:, :top], jnp.arange(top) < candidates[:, None]
    # Ranks of the hits to the front: a second sort, because devices are slow at scattering.
    ranks = jnp.arange(1, scores.shape[1] + 1, dtype=jnp.int32)
    hit_ranks = jnp.sort(jnp.where(hit, ranks, np.int32(2**31 - 1)), axis=1)[:, :most]
    results = (
        jnp.where(kept, first, -1),
        jnp.where(kept, jnp.take_along_axis(scores, first, axis=1), jnp.nan),
        jnp.where(hit_ranks <= scores.shape[1], hit_ranks, 0),
        candidates.astype(jnp.int32),
        nan.astype(jnp.int32),
    )
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        results = jax.lax.with_sharding_constraint(results, everywhere)
    return results


def _check_shapes(similarity: Any, query_labels: Any, gallery_labels: Any) -> None:
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
