"""Similarity of every sketch with every photo, by blocks of sketches, from features encoded once.

A ranking of kind "score" (ZSE's relation network) runs a network on each of the Q x G pairs. Blocks
of sketches are the outer loop, tiles of photos the inner one: a tile of photos moves to the device
once per block, while the device still works on the one before. Every tile has one shape (the last
ones are filled up, and what comes of the filling is thrown away), so that there is one compilation
and the memory it takes does not depend on the gallery's size.

A ranking of kind "embedding" (ZSE's retrieval token) is a matrix product of one vector per image;
its blocks stay on the device.
"""

import difflib
import functools
import itertools
import logging
from collections.abc import Iterator
from os import PathLike
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

from zse_jax.retrieval import tiles
from zse_jax.retrieval.encoding import evaluation_state, fetched, fingerprint, progress_bar
from zse_jax.retrieval.score_cache import ScoreFile, digest
from zse_jax.retrieval.storage import item_bytes
from zse_jax.retrievers.base import Encoder, Features

Kind = Literal["embedding", "score"]

Block = tuple[slice, np.ndarray | jax.Array]
"""Consecutive sketches and their similarities, float32 [rows, G]."""

# Vectors are made of features of at most this many bytes for each device, and compared in blocks
# of at most this many bytes of similarities.
_VECTOR_BYTES, _BLOCK_BYTES = 2**28, 2**26


class _Task(NamedTuple):
    """What is scored, and where."""

    graphdef: nnx.GraphDef[Encoder]
    state: nnx.State
    sketches: Features
    photos: Features
    queries: int
    gallery: int
    ranking: str
    sharding: NamedSharding | None


def similarity(
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
) -> Float[np.ndarray, "q g"]:
    """The blocks of `similarity_blocks` put together, [Q, G] in the memory of every process."""
    result = np.empty((item_count(sketches, "sketch"), item_count(photos, "photo")), np.float32)
    for rows, block in similarity_blocks(
        retriever,
        sketches,
        photos,
        ranking,
        sharding=sharding,
        tile=tile,
        progress=progress,
        folder=folder,
        key=key,
    ):
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
) -> Iterator[Block]:
    """How similar each sketch is to each photo, by one of the retriever's rankings.

    Args:
      retriever: the system that encoded the features.
      sketches: features of Q sketches, as `encoding.encode` gives them: numpy arrays, also
        memory-mapped ones, or arrays on the devices.
      photos: features of G photos.
      ranking: a name in `retriever.rankings`: "relation", "token", ...
      sharding: how a batch is spread over a mesh; see `tiles` for sketches and photos. None: the
        default device.
      tile: sketches and photos whose pairs each device scores at once, for rankings of kind
        "score"; the memory scoring takes grows with it. None: `tiles.default_tile`. One that does
        not fit the device is halved until it does, with a warning.
      progress: what to call this work in the progress bar; None for silence.
      folder: keeps scores as they are made, for rankings of kind "score" (4 bytes a pair): what an
        interrupted call finished is not scored again, and the next call may choose other tiles.
      key: says what else the scores in the folder depend on, if anything; retriever, features and
        ranking are compared anyway.

    Returns:
      An iterator over all sketches, in order, in blocks: which they are, and their similarities,
      float32 [rows, G]; larger is more similar. numpy arrays, the same on every process, or (kind
      "embedding") arrays on the device, which on a mesh are whole on each of its devices.

    Raises:
      ValueError: an unknown ranking, features without items or whose arrays differ in how many
        they have, a tile that is not two positive numbers, a folder that is damaged or of another
        task, or a retriever's method that returns another shape than its interface says.
      FloatingPointError: a similarity is NaN.
      MemoryError: not even a single pair fits the device.
    """
    kind = ranking_kind(retriever, ranking)
    counts = item_count(sketches, "sketch"), item_count(photos, "photo")
    if tile is not None and min(tile) < 1:
        raise ValueError(f"tile={tile} must be two positive numbers: sketches and photos.")
    graphdef, state = evaluation_state(retriever, sharding, replicate=True)
    task = _Task(graphdef, state, sketches, photos, *counts, ranking, sharding)
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
    """Which method of the retriever computes the ranking of this name.

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
    """How many items the features are of; `what` names them in the error.

    Raises:
      ValueError: no array, no item, or arrays that differ in how many items they have.
    """
    shapes = {
        f"features{jax.tree_util.keystr(path)}": np.shape(leaf)
        for path, leaf in jax.tree.leaves_with_path(features)
    }
    counts = {shape[0] if shape else None for shape in shapes.values()}
    if len(counts) != 1 or not (count := counts.pop()):
        raise ValueError(
            f"The {what} features must be arrays with one leading axis, the item, of one length "
            "and at least 1; their shapes are "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items()) or 'none'}."
        )
    return count


def _score_blocks(
    task: _Task, tile: tuple[int, int], progress: str | None, file: ScoreFile | None
) -> Iterator[Block]:
    """Blocks of a ranking of kind "score"; NaN stands for what is still to be computed."""
    spread = tiles.layout(task.sharding)
    total = task.queries * task.gallery
    # No tile is larger than the task: two sketches against ten photos are twenty pairs.
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
    """Computes what is NaN in a block, tile by tile; whether the tiles fitted the device."""
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
        sketches = [tiles.on_device(task.sketches, i, height, spread.sketches) for i in starts]
        for column in columns:
            photos = tiles.on_device(task.photos, column, width, spread.photos)
            for sketch in sketches:
                yield _score(task.graphdef, task.state, sketch, photos, sharding=task.sharding)

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
            "some of it, or choose a larger device or features of lower precision."
        )
    sketches, photos = tile
    tile = (sketches, (photos + 1) // 2) if photos >= sketches else ((sketches + 1) // 2, photos)
    logging.warning("Going on with tiles of %d sketches x %d photos.", *tile)
    return tile


def _check(nan: Bool[np.ndarray, "q g"], row: int, column: int, ranking: str) -> None:
    if nan.any():
        sketch, photo = np.argwhere(nan)[0]
        raise FloatingPointError(
            f"The {ranking} similarity of sketch {row + sketch} with photo {column + photo}, "
            "counting from 0, is NaN. Most likely features or parameters hold NaN: the training "
            "diverged, or the checkpoint is damaged. Use an earlier checkpoint."
        )


@functools.partial(jax.jit, static_argnames=("graphdef", "sharding"))
def _score(
    graphdef: nnx.GraphDef[Encoder],
    state: nnx.State,
    sketches: Features,
    photos: Features,
    *,
    sharding: NamedSharding | None,
) -> Float[Array, "q g"]:
    """Scores of a tile, float32; each device those of its own sketches and photos."""

    def score(state: nnx.State, sketches: Features, photos: Features) -> Float[Array, "q g"]:
        retriever = nnx.merge(graphdef, state)
        scores = retriever.score(sketches, photos)
        expected = len(jax.tree.leaves(sketches)[0]), len(jax.tree.leaves(photos)[0])
        if scores.shape != expected:
            raise ValueError(
                f"{type(retriever).__name__}.score returned shape {scores.shape} for {expected[0]} "
                f"sketches and {expected[1]} photos; it must be {expected}."
            )
        return scores.astype(jnp.float32)

    if sharding is None:
        return score(state, sketches, photos)
    spread = tiles.layout(sharding)
    assert spread.sketches and spread.photos
    rows, columns = spread.sketches.spec, spread.photos.spec
    return jax.shard_map(
        score,
        mesh=sharding.mesh,
        in_specs=(PartitionSpec(), rows, columns),
        out_specs=PartitionSpec(*rows, *columns),
        check_vma=False,  # Nothing is exchanged: a retriever's scan need not say what varies.
    )(state, sketches, photos)


def _embedding_blocks(task: _Task, progress: str | None) -> Iterator[Block]:
    """Blocks of a ranking of kind "embedding"; the vectors of all photos stay on the device."""
    devices = 1 if task.sharding is None else task.sharding.num_devices
    height = min(
        _vectors_at_once(task.sketches, task.queries, devices),
        -(-max(1, _BLOCK_BYTES // (4 * task.gallery)) // devices) * devices,
    )
    width = _vectors_at_once(task.photos, task.gallery, devices)

    def vectors(features: Features, start: int, count: int) -> Float[Array, "b d"]:
        rows = tiles.on_device(features, start, count, task.sharding)
        return _embed(task.graphdef, task.state, rows)

    with progress_bar(progress, task.queries * task.gallery, unit="pair") as bar:
        # Each is awaited, or the features of all photos would be on their way at once.
        photos = jnp.concatenate(
            [
                jax.block_until_ready(vectors(task.photos, start, width))
                for start in range(0, task.gallery, width)
            ]
        )
        for start in range(0, task.queries, height):
            rows = slice(start, min(start + height, task.queries))
            sketches = vectors(task.sketches, start, height)
            block, broken = _compare(sketches, photos, task.gallery, task.sharding)
            if broken:
                _check(np.isnan(np.asarray(block)), start, 0, task.ranking)
            bar.update((rows.stop - start) * task.gallery)
            yield rows, block if len(block) == rows.stop - start else block[: rows.stop - start]


def _vectors_at_once(features: Features, items: int, devices: int) -> int:
    """Of how many items the features move to the devices at once, to be made into vectors."""
    fit = _VECTOR_BYTES // max(1, item_bytes(features))
    return max(1, min(fit, 4096, -(-items // devices))) * devices


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _embed(
    graphdef: nnx.GraphDef[Encoder], state: nnx.State, features: Features
) -> Float[Array, "b d"]:
    retriever = nnx.merge(graphdef, state)
    embedding = retriever.embedding(features)
    items = len(jax.tree.leaves(features)[0])
    if embedding.ndim != 2 or len(embedding) != items:
        raise ValueError(
            f"{type(retriever).__name__}.embedding returned shape {embedding.shape} for {items} "
            f"items; it must be ({items}, width)."
        )
    return embedding.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("gallery", "sharding"))
def _compare(
    sketches: Float[Array, "q d"],
    photos: Float[Array, "n d"],
    gallery: int,
    sharding: NamedSharding | None,
) -> tuple[Float[Array, "q g"], Bool[Array, ""]]:
    """Products with the first `gallery` photos, and whether one is NaN."""
    result = jnp.matmul(sketches, photos.T, precision="float32")[:, :gallery]
    if sharding is not None:
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        result = jax.lax.with_sharding_constraint(result, everywhere)
    return result, jnp.isnan(result).any()
