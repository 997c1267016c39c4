"""Two-stage ranking: a shortlist by embedding, ordered by the score of each pair.

The score of a pair costs a network, the similarity of two embeddings a dot product. The K photos
with the nearest embeddings are ranked by score; the others follow in the order of their embeddings.
With K a tenth of the gallery, this takes about a tenth of the time of exact ranking.
"""

import collections
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Float32, Int32

from zse_jax.retrieval import scoring, tiles
from zse_jax.retrieval.encoding import evaluation_state, fetched, progress_bar, whole
from zse_jax.retrieval.ranking import tie_order
from zse_jax.retrieval.storage import item_bytes
from zse_jax.retrievers.base import Encoder, Features

Block = tuple[slice, Float32[Array, "rows g"]]

# Features of the pairs that a device scores at once: what a CPU's caches hold, or enough to keep
# an accelerator busy; and the most pairs.
_CPU_BYTES, _DEVICE_BYTES, _MOST_PAIRS = 2**23, 2**28, 512

# float32 represents larger integers with gaps.
_LARGEST_GALLERY = 2**24


def two_stage_blocks(
    retriever: Encoder,
    sketches: Features,
    photos: Features,
    k: int,
    *,
    first: str | None = None,
    second: str | None = None,
    sharding: NamedSharding | None = None,
    pairs: int | None = None,
    approximate: bool = False,
    expansion: int = 0,
    progress: str | None = None,
) -> Iterator[Block]:
    """Minus the rank of every photo for every sketch, in blocks of sketches.

    Photos of equal score share the first of their ranks, and so do the others of equal embedding
    similarity. Which photos of equal similarity are still in the shortlist is random, but the same
    each time (`ranking.tie_order`). Memory is that of one block, whatever the number of sketches.

    Args:
      retriever: the system that encoded the features.
      sketches: features of Q sketches, as returned by `encoding.encode`, in any place.
      photos: features of G photos.
      k: number of photos in the shortlist; G or more is exact ranking by `second`.
      first: the ranking that makes the shortlist, of kind "embedding"; by default the
        retriever's first one.
      second: the ranking that orders it, of kind "score"; by default the retriever's first one.
      sharding: how pairs are spread over a mesh (their leading axis). None: the default device.
      pairs: number of pairs that a device scores at once. None: by the size of the features.
      approximate: make the shortlist with `jax.lax.approx_max_k`, faster on TPUs: it may miss a
        photo (recall 0.95 by default), which then follows right after the shortlist.
      expansion: number of photos that expand the query of the shortlist, see
        `zse_jax.retrieval.expansion`; 0: none.
      progress: description of the progress bar; None: no bar.

    Returns:
      An iterator of consecutive query rows, all of them once and in order, with their values
      from -1 (the best) to -G, float32 [rows, G], whole on a device of every process.

    Raises:
      ValueError: `k` or `pairs` is less than 1, a ranking is unknown or of the wrong kind, the
        retriever has none of a kind, the features are empty or differ in their number of items, the
        gallery is larger than 2**24, or `score_pairs` returns a wrong shape.
      FloatingPointError: a similarity is NaN.
    """
    first = _ranking(retriever, first, "embedding")
    second = _ranking(retriever, second, "score")
    queries = scoring.item_count(sketches, "sketch")
    gallery = scoring.item_count(photos, "photo")
    if k < 1:
        raise ValueError(f"k={k}: the shortlist must contain at least 1 of the {gallery} photos.")
    if gallery > _LARGEST_GALLERY:
        raise ValueError(
            f"A gallery of {gallery:,} photos has more ranks than float32 can represent "
            f"({_LARGEST_GALLERY:,}): rank it in parts."
        )
    if pairs is not None and pairs < 1:
        raise ValueError(f"pairs={pairs} must be a positive number.")
    blocks = functools.partial(
        scoring.similarity_blocks, retriever, sketches, photos, sharding=sharding
    )
    if k >= gallery:
        return ((rows, _exact(_here(block))) for rows, block in blocks(second, progress=progress))
    devices = 1 if sharding is None else sharding.num_devices
    pairs = min(pairs or _default_pairs(sketches, photos), -(-queries * k // devices))
    step = pairs * devices
    graphdef, state = evaluation_state(retriever, sharding, replicate=True)
    pending: collections.deque[tuple[slice, Array, Array, np.ndarray]] = collections.deque()
    ties = jnp.asarray(tie_order(gallery))

    def dispatched() -> Iterator[Float[Array, " pairs"]]:
        """Scores of all shortlisted pairs in order, `step` at a time; padded at a block's end."""
        for rows, block in blocks(first, expansion=expansion):
            similarity = _here(block)
            order, shortlist = _shortlist(similarity, ties, k=k, approximate=approximate)
            columns = np.asarray(shortlist)
            pending.append((rows, similarity, order, columns))
            for start in range(0, columns.size, step):
                row, place = np.divmod(tiles.rows_from(start, step, columns.size), k)
                sketch = tiles.on_device(sketches, rows.start + row, sharding)
                photo = tiles.on_device(photos, columns[row, place], sharding)
                yield scoring.score(graphdef, state, sketch, photo, sharding=sharding, pairs=True)

    def ranked() -> Iterator[Block]:
        """Orders the shortlists of each block while the device scores the next pairs."""
        results = fetched(dispatched())
        with progress_bar(progress, queries * k, unit="pair") as bar:
            for result in results:
                rows, similarity, order, columns = pending.popleft()
                scores = np.empty(columns.size, np.float32)
                starts = range(0, columns.size, step)
                for start, part in zip(starts, itertools.chain([result], results), strict=False):
                    scores[start : start + step] = part[: columns.size - start]
                    bar.update(min(step, columns.size - start))
                scores = scores.reshape(columns.shape)
                if np.isnan(scores).any():
                    row, place = np.argwhere(np.isnan(scores))[0]
                    raise scoring.nan_error(second, rows.start + row, columns[row, place])
                yield rows, _values(similarity, order, columns, scores)

    return ranked()


def _ranking(retriever: Encoder, name: str | None, kind: scoring.Kind) -> str:
    """The name of a ranking of this kind; by default the retriever's first one."""
    known = [name for name, of_kind in retriever.rankings.items() if of_kind == kind]
    if name is None and known:
        return known[0]
    if name is None or scoring.ranking_kind(retriever, name) != kind:
        raise ValueError(
            'Two-stage ranking needs a ranking of kind "embedding" and one of kind "score". Of '
            f"kind {kind!r}, {type(retriever).__name__} has {', '.join(known) or 'none'}"
            f"{'' if name is None else f', and {name!r} is of the other kind'}."
        )
    return name


@jax.jit
def _exact(similarity: Float[Array, "r g"]) -> Float32[Array, "r g"]:
    """Minus the ranks by a single ranking."""
    order = jnp.argsort(-similarity, axis=1)
    ranks = 1 + _first_equal(jnp.take_along_axis(similarity, order, axis=1))
    return -_scattered(order, ranks)


@functools.partial(jax.jit, static_argnames=("k", "approximate"))
def _shortlist(
    similarity: Float[Array, "r g"], ties: Int32[Array, " g"], *, k: int, approximate: bool
) -> tuple[Int32[Array, "r g"], Int32[Array, "r k"]]:
    """The gallery in shortlist order, and the first k of each row in the gallery's order."""
    order = ties[jnp.argsort(-similarity[:, ties], axis=1, stable=True)]
    found = jax.lax.approx_max_k(similarity, k)[1] if approximate else order[:, :k]
    return order, jnp.sort(found, axis=1)


@jax.jit
def _values(
    similarity: Float[Array, "r g"],
    order: Int32[Array, "r g"],
    shortlist: Int32[Array, "r k"],
    scores: Float32[Array, "r k"],
) -> Float32[Array, "r g"]:
    """Minus the ranks: shortlisted photos by score, then the others by similarity."""
    rows, k = jnp.arange(len(order))[:, None], shortlist.shape[1]
    listed = jnp.zeros(order.shape, bool).at[rows, shortlist].set(True)
    other = ~jnp.take_along_axis(listed, order, axis=1)
    before = jnp.cumsum(other, axis=1) - other
    first = _first_equal(jnp.take_along_axis(similarity, order, axis=1))
    after = k + 1 + jnp.take_along_axis(before, first, axis=1)
    best = jnp.argsort(-scores, axis=1)
    ranks = 1 + _first_equal(jnp.take_along_axis(scores, best, axis=1))
    best = jnp.take_along_axis(shortlist, best, axis=1)
    ranked = _scattered(order, after).at[rows, best].set(ranks.astype(jnp.float32))
    return -ranked


def _first_equal(values: Float[Array, "r n"]) -> Int32[Array, "r n"]:
    """For each of the sorted values, the index of the first one that is equal."""
    begins = jnp.pad(values[:, 1:] != values[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.cummax(jnp.where(begins, jnp.arange(values.shape[1]), 0), axis=1)


def _scattered(order: Int32[Array, "r g"], values: Int32[Array, "r g"]) -> Float32[Array, "r g"]:
    """The values at the columns `order`."""
    rows = jnp.arange(len(order))[:, None]
    return jnp.zeros(order.shape, jnp.float32).at[rows, order].set(values.astype(jnp.float32))


def _default_pairs(sketches: Features, photos: Features) -> int:
    most = _CPU_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    return int(np.clip(most // (item_bytes(sketches) + item_bytes(photos)), 1, _MOST_PAIRS))


def _here(block: np.ndarray | jax.Array) -> jax.Array:
    """A block on one device, so that each process computes it once."""
    if isinstance(block, jax.Array) and len(block.devices()) > 1:
        block = block.addressable_data(0) if block.is_fully_replicated else whole(block)
    return jnp.asarray(block)
