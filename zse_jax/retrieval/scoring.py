"""Similarity of every sketch with every photo, by blocks of sketches, from features encoded once.

A ranking of kind "score" (ZSE's relation network) runs a network on each of the Q x G pairs. Blocks
of sketches are the outer loop, tiles of photos the inner one: a tile of photos moves to the device
once per block, while the device is still busy with the previous tile. All tiles have one shape (the
last ones are padded and the padding's scores dropped), so there is one compilation and memory does
not depend on the size of the gallery.

A ranking of kind "embedding" (ZSE's retrieval token) is a matrix product of one vector per image;
its blocks stay on the device.
"""

import difflib
import functools
import itertools
import logging
from collections.abc import Iterator
from os import PathLike
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

from zse_jax.retrieval import tiles
from zse_jax.retrieval.encoding import evaluation_state, fetched, fingerprint, progress_bar
from zse_jax.retrieval.expansion import expand
from zse_jax.retrieval.score_cache import ScoreFile, digest
from zse_jax.retrieval.storage import item_bytes
from zse_jax.retrievers.base import Encoder, Features, Modality

Kind = Literal["embedding", "score"]

Block = tuple[slice, np.ndarray | jax.Array]
"""Consecutive sketches and their similarities, float32 [rows, G]."""

# Embeddings are computed from at most this many bytes of features per device at once, and compared
# in blocks of at most this many bytes of similarities.
_VECTOR_BYTES, _BLOCK_BYTES = 2**28, 2**26


class _Task(NamedTuple):
    """The arguments of one scoring."""

    graphdef: nnx.GraphDef[Encoder]
    state: nnx.State
    sketches: Features
    photos: Features
    queries: int
    gallery: int
    ranking: str
    sharding: NamedSharding | None
    expansion: int


def similarity(
    retriever: Encoder, sketches: Features, photos: Features, ranking: str, **options: Any
) -> Float[np.ndarray, "q g"]:
    """The concatenated blocks of `similarity_blocks`, [Q, G] in the memory of every process."""
    blocks = similarity_blocks(retriever, sketches, photos, ranking, **options)
    result = np.empty((item_count(sketches, "sketch"), item_count(photos, "photo")), np.float32)
    for rows, block in blocks:
        [result[rows]] = fetched([block])
    return result


def similarity_blocks(
    retriever: Encoder,
    sketches: Features,
    photos: Features,
    ranking: str,
    *,
    sharding: NamedSharding | None = None,
    tile: tuple[int, int] | None = None,
    progress: str | None = None,
    folder: str | PathLike[str] | None = None,
    key: str = "",
    expansion: int = 0,
) -> Iterator[Block]:
    """Similarity of each sketch with each photo by one of the retriever's rankings.

    Args:
      retriever: the system that encoded the features.
      sketches: features of Q sketches, as returned by `encoding.encode`: numpy arrays, also
        memory-mapped ones, or arrays on the devices.
      photos: features of G photos.
      ranking: a name in `retriever.rankings`: "relation", "token", ...
      sharding: how a batch is spread over a mesh; see `tiles` for sketches and photos. None: the
        default device.
      tile: numbers of sketches and photos whose pairs each device scores at once, for rankings of
        kind "score"; memory grows with it. None: `tiles.default_tile`. A tile that does not fit the
        device is halved until it does, with a warning.
      progress: description of the progress bar; None: no bar.
      folder: keeps the scores of rankings of kind "score" as they are computed (4 bytes a pair).
        The next call with this folder resumes an interrupted one, with any tile.
      key: identifies anything else that the scores in the folder depend on; retriever, features
        and ranking are compared anyway.
      expansion: for rankings of kind "embedding": number of photos that expand each query, see
        `zse_jax.retrieval.expansion`; 0: none.

    Returns:
      An iterator over consecutive blocks of sketches: their rows, and their similarities, float32
      [rows, G]; larger is more similar. numpy arrays, the same on every process, or (kind
      "embedding") arrays on the device, replicated over a mesh.

    Raises:
      ValueError: an unknown ranking, features without items or with different numbers of items, a
        tile that is not two positive numbers, a folder that is damaged or of another task, or a
        method of the retriever that returns a wrong shape.
      FloatingPointError: a similarity is NaN.
      MemoryError: not even a single pair fits the device.
    """
    kind = ranking_kind(retriever, ranking)
    counts = item_count(sketches, "sketch"), item_count(photos, "photo")
    if tile is not None and min(tile) < 1:
        raise ValueError(f"tile={tile} must be two positive numbers: sketches and photos.")
    if expansion and kind == "score":
        raise ValueError(
            f"expansion={expansion}: the ranking {ranking!r} scores pairs and has no query to "
            "expand. Expand a ranking of kind 'embedding'."
        )
    graphdef, state = evaluation_state(retriever, sharding, replicate=True)
    task = _Task(graphdef, state, sketches, photos, *counts, ranking, sharding, expansion)
    if kind == "embedding":
        return _embedding_blocks(task, progress)
    file = None
    if folder is not None:
        about = {"ranking": ranking, "shape": [*counts], "retriever": fingerprint(retriever)}
        about |= {"sketches": digest(sketches), "photos": digest(photos), "key": key}
        file = ScoreFile(folder, about)
    if tile is None:
        tile = tiles.even(tiles.default_tile(sketches, photos, sharding), counts, sharding)
    return _score_blocks(task, tile, progress, file)


def ranking_kind(retriever: Encoder, ranking: str) -> Kind:
    """The kind of the retriever's ranking of this name.

    Raises:
      ValueError: the retriever has no such ranking; the message names the nearest.
    """
    if ranking not in retriever.rankings:
        nearest = difflib.get_close_matches(ranking, retriever.rankings, n=1)
        hint = f": did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(
            f"{type(retriever).__name__} has no ranking {ranking!r}{hint} It ranks by "
            f"{', '.join(retriever.rankings)}."
        )
    return retriever.rankings[ranking]


def item_count(features: Features, what: str) -> int:
    """The number of items of the features; `what` names them in the error.

    Raises:
      ValueError: no arrays, no items, or arrays with different numbers of items.
    """
    shapes = {
        f"features{jax.tree_util.keystr(path)}": np.shape(leaf)
        for path, leaf in jax.tree.leaves_with_path(features)
    }
    counts = {shape[0] if shape else None for shape in shapes.values()}
    if len(counts) != 1 or not (count := counts.pop()):
        raise ValueError(
            f"The {what} features must be arrays with the same number of items, at least 1, on "
            "their leading axis; their shapes are "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items()) or 'none'}."
        )
    return count


def _score_blocks(
    task: _Task, tile: tuple[int, int], progress: str | None, file: ScoreFile | None
) -> Iterator[Block]:
    """Blocks of a ranking of kind "score"; NaN marks pairs that are not scored yet."""
    spread = tiles.layout(task.sharding)
    total = task.queries * task.gallery
    # No tile is larger than the task.
    tile = (
        min(tile[0], -(-task.queries // spread.rows)),
        min(tile[1], -(-task.gallery // spread.columns)),
    )
    height = tile[0] * spread.rows
    with progress_bar(progress, total, unit="pair", initial=file.finished if file else 0) as bar:
        for start in range(0, task.queries, height):
            rows = slice(start, min(start + height, task.queries))
            if file:
                block = file.block(rows)
            else:
                block = np.full((rows.stop - start, task.gallery), np.nan, np.float32)
            while not _filled(block, rows, task, tile, spread, bar):
                tile = _smaller(tile)
            yield rows, np.array(block) if file else block


def _filled(
    block: Float[np.ndarray, "q g"],
    rows: slice,
    task: _Task,
    tile: tuple[int, int],
    spread: tiles.Layout,
    bar: tqdm,
) -> bool:
    """Scores the pairs that are NaN in a block, tile by tile; returns whether the tiles fitted."""
    height, width = tile[0] * spread.rows, tile[1] * spread.columns
    starts = range(rows.start, rows.stop, height)
    columns = [
        column
        for column in range(0, task.gallery, width)
        if np.isnan(block[:, column : column + width]).any()
    ]

    def dispatched() -> Iterator[Float[Array, "q g"]]:
        if not columns:
            return
        sketches = [
            tiles.on_device(
                task.sketches, tiles.rows_from(i, height, task.queries), spread.sketches
            )
            for i in starts
        ]
        for column in columns:
            index = tiles.rows_from(column, width, task.gallery)
            photos = tiles.on_device(task.photos, index, spread.photos)
            for sketch in sketches:
                yield score(task.graphdef, task.state, sketch, photos, sharding=task.sharding)

    try:
        for (column, row), scores in zip(
            itertools.product(columns, starts), fetched(dispatched()), strict=True
        ):
            scores = scores[: rows.stop - row, : task.gallery - column]
            _check(np.isnan(scores), row, column, task.ranking)
            part = block[row - rows.start :][: len(scores), column : column + width]
            bar.update(int(np.isnan(part).sum()))
            part[:] = scores
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or jax.process_count() > 1:
            raise
        logging.warning(
            "A tile of %d sketches x %d photos does not fit the device: %s",
            *tile,
            str(error).splitlines()[0],
        )
        return False
    return True


def _smaller(tile: tuple[int, int]) -> tuple[int, int]:
    """A tile with its longer side halved."""
    if tile == (1, 1):
        raise MemoryError(
            "Not even one sketch and one photo can be scored in the memory of the device: free "
            "memory, or use a larger device or features of lower precision."
        )
    sketches, photos = tile
    tile = (sketches, (photos + 1) // 2) if photos >= sketches else ((sketches + 1) // 2, photos)
    logging.warning("Continuing with tiles of %d sketches x %d photos.", *tile)
    return tile


def nan_error(
    ranking: str, sketch: int | np.integer, photo: int | np.integer
) -> FloatingPointError:
    """The error to raise where the similarity of a pair is NaN."""
    return FloatingPointError(
        f"The {ranking} similarity of sketch {sketch} with photo {photo}, counting from 0, is NaN. "
        "Most likely the features or parameters contain NaN: the training diverged, or the "
        "checkpoint is damaged. Use an earlier checkpoint."
    )


def _check(nan: Bool[np.ndarray, "q g"], row: int, column: int, ranking: str) -> None:
    if nan.any():
        sketch, photo = np.argwhere(nan)[0]
        raise nan_error(ranking, row + sketch, column + photo)


@functools.partial(jax.jit, static_argnames=("graphdef", "sharding", "pairs"))
def score(
    graphdef: nnx.GraphDef[Encoder],
    state: nnx.State,
    sketches: Features,
    photos: Features,
    *,
    sharding: NamedSharding | None,
    pairs: bool = False,
) -> Float[Array, "q g"] | Float[Array, "b"]:
    """Scores of every sketch with every photo, or with `pairs` of sketch i with photo i; float32.

    On a mesh each device scores its own sketches and photos, which are sharded as `tiles.layout`
    has it, or with `pairs` both by `sharding`.
    """

    def local(state: nnx.State, sketches: Features, photos: Features) -> Array:
        retriever = nnx.merge(graphdef, state)
        method = retriever.score_pairs if pairs else retriever.score
        scores = method(sketches, photos)
        counts = len(jax.tree.leaves(sketches)[0]), len(jax.tree.leaves(photos)[0])
        expected = counts[:1] if pairs else counts
        if scores.shape != expected:
            raise ValueError(
                f"{type(retriever).__name__}.{method.__name__} returned shape {scores.shape} for "
                f"{counts[0]} sketches and {counts[1]} photos; it must be {expected}."
            )
        return scores.astype(jnp.float32)

    if sharding is None:
        return local(state, sketches, photos)
    spread = tiles.layout(sharding)
    assert spread.sketches and spread.photos
    rows, columns = (sharding.spec,) * 2 if pairs else (spread.sketches.spec, spread.photos.spec)
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(PartitionSpec(), rows, columns),
        out_specs=rows if pairs else PartitionSpec(*rows, *columns),
        check_vma=False,  # Devices exchange nothing.
    )(state, sketches, photos)


def _embedding_blocks(task: _Task, progress: str | None) -> Iterator[Block]:
    """Blocks of a ranking of kind "embedding"; all photos' embeddings stay on the device."""
    devices = 1 if task.sharding is None else task.sharding.num_devices
    height = min(
        _vectors_at_once(task.sketches, task.queries, devices),
        -(-max(1, _BLOCK_BYTES // (4 * task.gallery)) // devices) * devices,
    )
    width = _vectors_at_once(task.photos, task.gallery, devices)

    def vectors(
        features: Features, start: int, count: int, items: int, modality: Modality
    ) -> Float[Array, "b d"]:
        index = tiles.rows_from(start, count, items)
        some = tiles.on_device(features, index, task.sharding)
        return _embed(task.graphdef, task.state, some, modality=modality)

    with progress_bar(progress, task.queries * task.gallery, unit="pair") as bar:
        # Wait for each: otherwise the features of all photos would be transferred at once.
        photos = jnp.concatenate(
            [
                jax.block_until_ready(vectors(task.photos, start, width, task.gallery, "photo"))
                for start in range(0, task.gallery, width)
            ]
        )
        for start in range(0, task.queries, height):
            rows = slice(start, min(start + height, task.queries))
            sketches = vectors(task.sketches, start, height, task.queries, "sketch")
            if task.expansion:
                sketches = _expand(sketches, photos, gallery=task.gallery, k=task.expansion)
            block, broken = _compare(sketches, photos, task.gallery, task.sharding)
            if broken:
                _check(np.isnan(np.asarray(block)), start, 0, task.ranking)
            bar.update((rows.stop - start) * task.gallery)
            yield rows, block if len(block) == rows.stop - start else block[: rows.stop - start]


def _vectors_at_once(features: Features, items: int, devices: int) -> int:
    """Number of items whose features move to the devices at once, to compute embeddings."""
    fit = _VECTOR_BYTES // max(1, item_bytes(features))
    return max(1, min(fit, 4096, -(-items // devices))) * devices


@functools.partial(jax.jit, static_argnames=("graphdef", "modality"))
def _embed(
    graphdef: nnx.GraphDef[Encoder], state: nnx.State, features: Features, *, modality: Modality
) -> Float[Array, "b d"]:
    retriever = nnx.merge(graphdef, state)
    embedding = retriever.embed(features, modality)
    items = len(jax.tree.leaves(features)[0])
    if embedding.ndim != 2 or len(embedding) != items:
        raise ValueError(
            f"{type(retriever).__name__}.embedding returned shape {embedding.shape} for {items} "
            f"items; it must be ({items}, width)."
        )
    return embedding.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("gallery", "k"))
def _expand(
    sketches: Float[Array, "q d"], photos: Float[Array, "n d"], *, gallery: int, k: int
) -> Float[Array, "q d"]:
    """Queries expanded by the first `gallery` photos; the others are padding."""
    return expand(sketches, photos[:gallery], k)


@functools.partial(jax.jit, static_argnames=("gallery", "sharding"))
def _compare(
    sketches: Float[Array, "q d"],
    photos: Float[Array, "n d"],
    gallery: int,
    sharding: NamedSharding | None,
) -> tuple[Float[Array, "q g"], Bool[Array, ""]]:
    """Dot products with the first `gallery` photos, and whether any is NaN."""
    result = jnp.matmul(sketches, photos.T, precision="float32")[:, :gallery]
    if sharding is not None:
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        result = jax.lax.with_sharding_constraint(result, everywhere)
    return result, jnp.isnan(result).any()
