"""Two-stage ranking: a shortlist by embedding, its order by the score of each pair.

The score of a pair costs a network, the similarity of two embeddings a dot product. The K photos
whose embeddings are nearest to a sketch's are ranked by score; the others follow in the order of
their embeddings. With K a tenth of the gallery, that is about a tenth of exact ranking's cost.
"""

import collections
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32
from tqdm import tqdm

from zse_jax.retrieval import scoring
from zse_jax.retrieval.encoding import evaluation_state, fetched, progress_bar, whole
from zse_jax.retrieval.storage import item_bytes, read
from zse_jax.retrievers.base import Encoder, Features

Block = tuple[slice, Float32[Array, "rows g"]]

# Each sketch has photos of its own, gathered for it: of one sketch, at most so many and so many
# bytes at once; of all sketches that a device is given at once, so many bytes.
_MOST_PHOTOS, _PHOTO_BYTES = 64, 2**26
_MOST_SKETCHES, _STEP_BYTES = 8, 2**27

# float32 counts no further without gaps.
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
    tile: tuple[int, int] | None = None,
    approximate: bool = False,
    progress: str | None = None,
) -> Iterator[Block]:
    """Minus the rank of every photo for every sketch, in blocks of sketches.

    Photos of equal score keep the gallery's order. Memory is that of one block, whatever the number
    of sketches.

    Args:
      retriever: the system that encoded the features.
      sketches: features of Q sketches, as `encoding.encode` gives them, wherever they lie.
      photos: features of G photos.
      k: photos that the shortlist holds; G or more is exact ranking by `second`.
      first: the ranking that makes the shortlist, of kind "embedding"; by default the
        retriever's first one.
      second: the ranking that orders it, of kind "score"; by default the retriever's first one.
      sharding: how sketches, each with its photos, are spread over a mesh. None: the default
        device.
      tile: sketches that a device is given at once, and photos of each that are scored at once;
        the memory scoring takes grows with it. None: by the size of the features.
      approximate: take the shortlist by `jax.lax.approx_max_k`, faster on TPUs: it may miss a
        photo (recall 0.95 by default), which then follows right after the shortlist.
      progress: what to call this work in the progress bar; None for silence.

    Returns:
      An iterator of consecutive query rows, all of them once and in order, with their values
      -1 (the best), -2, ... -G, float32 [rows, G], whole on a device of every process.

    Raises:
      ValueError: `k` is less than 1, a ranking is unknown or of the wrong kind, the retriever has
        none of a kind, the features are empty or differ in their number of items, the tile is not
        two positive numbers, the gallery is larger than 2**24, or `score` returns another shape
        than its interface says.
      FloatingPointError: a similarity is NaN.
    """
    first = _ranking(retriever, first, "embedding")
    second = _ranking(retriever, second, "score")
    queries = scoring.item_count(sketches, "sketch")
    gallery = scoring.item_count(photos, "photo")
    if k < 1:
        raise ValueError(f"k={k}: the shortlist must hold at least 1 of the {gallery} photos.")
    if gallery > _LARGEST_GALLERY:
        raise ValueError(
            f"A gallery of {gallery:,} photos has more ranks than float32 can tell apart "
            f"({_LARGEST_GALLERY:,}): rank it in parts."
        )
    if tile is not None and min(tile) < 1:
        raise ValueError(f"tile={tile} must be two positive numbers: sketches and photos.")
    blocks = functools.partial(
        scoring.similarity_blocks, retriever, sketches, photos, sharding=sharding
    )
    if k >= gallery:
        exact = blocks(second, tile=tile, progress=progress)
        return ((rows, _exact(_here(block))) for rows, block in exact)
    height, width = tile or _default_step(sketches, photos, k)
    devices = 1 if sharding is None else sharding.num_devices
    scorer = _Scorer(
        *evaluation_state(retriever, sharding, replicate=True),
        _Side.of(sketches, sharding),
        _Side.of(photos, sharding),
        step=(min(height, math.ceil(queries / devices)) * devices, min(width, k)),
        sharding=sharding,
    )
    shortlists = (
        (rows, *_shortlist(_here(block), k=k, approximate=approximate))
        for rows, block in blocks(first)
    )
    return _blocks(shortlists, scorer, progress_bar(progress, queries * k, unit="pair"), second)


def _ranking(retriever: Encoder, name: str | None, kind: scoring.Kind) -> str:
    """The ranking of this name, or the retriever's first one, if it is of this kind."""
    known = [name for name, of_kind in retriever.rankings.items() if of_kind == kind]
    if name is None and known:
        return known[0]
    if name is None or scoring.ranking_kind(retriever, name) != kind:
        raise ValueError(
            'Two-stage ranking takes a ranking of kind "embedding", then one of kind "score". '
            f"Of kind {kind!r}, {type(retriever).__name__} has {', '.join(known) or 'none'}"
            f"{'' if name is None else f', and {name!r} is of the other kind'}."
        )
    return name


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """The features of one modality: on every device that scores, or in host memory or on disk."""

    features: Features
    on_device: bool
    sharding: NamedSharding | None

    @classmethod
    def of(cls, features: Features, sharding: NamedSharding | None) -> "_Side":
        def usable(leaf: np.ndarray | jax.Array) -> bool:
            if not isinstance(leaf, jax.Array):
                return False
            if sharding is None:
                return len(leaf.devices()) == 1
            return leaf.is_fully_replicated and leaf.devices() == sharding.device_set

        if all(map(usable, jax.tree.leaves(features))):
            return cls(features, True, sharding)
        return cls(jax.tree.map(whole, features), False, sharding)

    def take(self, index: Int[np.ndarray, "s *t"]) -> tuple[Features | None, Features]:
        """What to gather rows from on the device, or None, and the rows: by number, or gathered."""
        if self.on_device:
            return self.features, self._placed(index.shape, lambda part: index[part])
        return None, jax.tree.map(
            lambda leaf: self._placed(
                (*index.shape, *leaf.shape[1:]), lambda part: read(leaf, index[part])
            ),
            self.features,
        )

    def _placed(self, shape: tuple[int, ...], rows: Callable[[slice], np.ndarray]) -> jax.Array:
        """Starts the transfer; a process reads no more than its devices need."""
        if self.sharding is None:
            return jax.device_put(rows(slice(None)))
        return jax.make_array_from_callback(
            shape, self.sharding, lambda index: rows((index or (slice(None),))[0])
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Scorer:
    """Scores sketches with photos of their own, in steps of one shape, so of one compilation.

    Attributes:
      step: sketches, over all devices, and photos of each that are scored at once. The last ones
        are filled up with copies, whose scores are thrown away.
    """

    graphdef: nnx.GraphDef[Encoder]
    state: nnx.State
    sketches: _Side
    photos: _Side
    step: tuple[int, int]
    sharding: NamedSharding | None

    def dispatch(self, first: int, columns: Int[np.ndarray, "r k"]) -> Iterator[Array]:
        """Starts one step after the other for the sketches from number `first` on."""
        for rows, places in self._steps(columns):
            rows = _padded(rows, self.step[0])
            pairs = columns[np.ix_(rows, _padded(places, self.step[1]))]
            sketches, photos = self.sketches.take(first + rows), self.photos.take(pairs)
            yield _score(self.graphdef, self.state, sketches, photos, sharding=self.sharding)

    def collect(
        self, results: Iterator[np.ndarray], columns: Int[np.ndarray, "r k"], bar: tqdm
    ) -> Float32[np.ndarray, "r k"]:
        """The scores of a block, from the results of its steps."""
        scores = np.empty(columns.shape, np.float32)
        for rows, places in self._steps(columns):
            scores[np.ix_(rows, places)] = next(results)[: len(rows), : len(places)]
            bar.update(len(rows) * len(places))
        return scores

    def _steps(self, columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows, places = map(np.arange, columns.shape)
        for row, place in itertools.product(rows[:: self.step[0]], places[:: self.step[1]]):
            yield rows[row : row + self.step[0]], places[place : place + self.step[1]]


def _blocks(
    shortlists: Iterator[tuple[slice, Array, Array]], scorer: _Scorer, bar: tqdm, ranking: str
) -> Iterator[Block]:
    """Orders each block's shortlists by score, while the next steps are under way."""
    pending: collections.deque[tuple[slice, Array, np.ndarray]] = collections.deque()

    def dispatched() -> Iterator[Array]:
        for rows, order, shortlist in shortlists:
            columns = np.asarray(shortlist)
            pending.append((rows, order, columns))
            yield from scorer.dispatch(rows.start, columns)

    results = fetched(dispatched())
    with bar:
        for step in results:
            rows, order, columns = pending[0]
            scores = scorer.collect(itertools.chain([step], results), columns, bar)
            pending.popleft()
            if np.isnan(scores).any():
                sketch, place = np.argwhere(np.isnan(scores))[0]
                raise FloatingPointError(
                    f"The {ranking} similarity of sketch {rows.start + sketch} with photo "
                    f"{columns[sketch, place]}, counting from 0, is NaN. Most likely features or "
                    "parameters hold NaN: the training diverged, or the checkpoint is damaged. Use "
                    "an earlier checkpoint."
                )
            yield rows, _values(order, columns, scores)


@jax.jit
def _exact(similarity: Float[Array, "r g"]) -> Float32[Array, "r g"]:
    """Minus the ranks of one ranking alone."""
    order = jnp.argsort(-similarity, axis=1, stable=True)
    ranks = jnp.arange(1, order.shape[1] + 1, dtype=jnp.float32)
    return (
        -jnp.zeros(order.shape, jnp.float32).at[jnp.arange(len(order))[:, None], order].set(ranks)
    )


@functools.partial(jax.jit, static_argnames=("k", "approximate"))
def _shortlist(
    similarity: Float[Array, "r g"], *, k: int, approximate: bool
) -> tuple[Int32[Array, "r g"], Int32[Array, "r k"]]:
    """The gallery in shortlist order, and the first k of each row in the gallery's order."""
    order = jnp.argsort(-similarity, axis=1, stable=True)
    found = jax.lax.approx_max_k(similarity, k)[1] if approximate else order[:, :k]
    return order, jnp.sort(found, axis=1)


@jax.jit
def _values(
    order: Int32[Array, "r g"], shortlist: Int32[Array, "r k"], scores: Float32[Array, "r k"]
) -> Float32[Array, "r g"]:
    """Minus the ranks: shortlisted photos by score, the others after them in their order."""
    rows, k = jnp.arange(len(order))[:, None], shortlist.shape[1]
    listed = jnp.zeros(order.shape, bool).at[rows, shortlist].set(True)
    after = k + jnp.cumsum(~jnp.take_along_axis(listed, order, axis=1), axis=1)
    best = jnp.take_along_axis(shortlist, jnp.argsort(-scores, axis=1, stable=True), axis=1)
    ranks = jnp.zeros(order.shape, jnp.float32).at[rows, order].set(after.astype(jnp.float32))
    return -ranks.at[rows, best].set(jnp.arange(1, k + 1, dtype=jnp.float32))


@functools.partial(jax.jit, static_argnames=("graphdef", "sharding"))
def _score(
    graphdef: nnx.GraphDef[Encoder],
    state: nnx.State,
    sketches: tuple[Features | None, Features],
    photos: tuple[Features | None, Features],
    *,
    sharding: NamedSharding | None,
) -> Float32[Array, "s t"]:
    """Scores of s sketches with t photos of their own, each device those of its own sketches.

    Sketches and photos are as `_Side.take` gives them.
    """

    def score(state: nnx.State, wholes: Features, taken: Features) -> Float32[Array, "s t"]:
        retriever = nnx.merge(graphdef, state)

        def of_one_sketch(taken: Features) -> Float32[Array, " t"]:
            sketch, own_photos = (
                rows if everything is None else jax.tree.map(operator.itemgetter(rows), everything)
                for everything, rows in zip(wholes, taken, strict=True)
            )
            scores = retriever.score(jax.tree.map(lambda x: x[None], sketch), own_photos)
            expected = 1, len(jax.tree.leaves(own_photos)[0])
            if scores.shape != expected:
                raise ValueError(
                    f"{type(retriever).__name__}.score returned shape {scores.shape} for 1 sketch "
                    f"and {expected[1]} photos; it must be {expected}."
                )
            return scores[0].astype(jnp.float32)

        return jax.lax.map(of_one_sketch, taken)

    wholes, taken = zip(sketches, photos, strict=True)
    if sharding is None:
        return score(state, wholes, taken)
    everywhere = PartitionSpec()
    return jax.shard_map(
        score,
        mesh=sharding.mesh,
        in_specs=(everywhere, everywhere, sharding.spec),
        out_specs=sharding.spec,
        check_vma=False,  # Nothing is exchanged: a retriever's scan need not say what varies.
    )(state, wholes, taken)


def _default_step(sketches: Features, photos: Features, k: int) -> tuple[int, int]:
    """Sketches of a device, and photos of each, that are bounded in memory."""
    size = item_bytes(photos)
    most = int(np.clip(_PHOTO_BYTES // size, 1, _MOST_PHOTOS))
    photos_at_once = math.ceil(k / math.ceil(k / most))  # No step is mostly filled up.
    size = item_bytes(sketches) + photos_at_once * size
    return int(np.clip(_STEP_BYTES // size, 1, _MOST_SKETCHES)), photos_at_once


def _padded(index: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " m"]:
    """`index`, filled up to `size` with copies of its last entry."""
    return np.pad(index, (0, size - len(index)), mode="edge")


def _here(block: np.ndarray | jax.Array) -> jax.Array:
    """A block on one device, so that each process works on it by itself, and once."""
    if isinstance(block, jax.Array) and len(block.devices()) > 1:
        block = block.addressable_data(0) if block.is_fully_replicated else whole(block)
    return jnp.asarray(block)
