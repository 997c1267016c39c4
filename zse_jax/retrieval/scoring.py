"""Similarity of every sketch with every photo, tile by tile, from features encoded once.

Features lie on the host; tiles of them move to the device, a few at a time. Every tile has one
shape: the last ones are filled up with copies of the last item, whose scores are thrown away, so
that there is one compilation. On a mesh, sketches go to every device and the photos of a tile are
spread over all of them.

A ranking of kind "embedding" (ZSE's retrieval token) is a matrix product of one vector per image;
one of kind "score" (ZSE's relation network) runs a network on each of the Q x G pairs.
"""

import difflib
import functools
import itertools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from zse_jax.retrieval.encoding import evaluation_state, fetched, progress_bar
from zse_jax.retrievers.base import Features, Retriever

Kind = Literal["embedding", "score"]

_EMBEDDING_TILE = (1024, 4096)

# The features that a device holds at once, counted as if every pair of a tile had a copy of both
# sides; a network's own intermediates are a few times as large.
_TILE_BYTES = 2**28
# Pairs are scored in tiles of 8 sketches with as many photos as that allows, within these bounds.
_SKETCHES, _FEWEST_PHOTOS, _MOST_PHOTOS = 8, 8, 32


def similarity(
    retriever: Retriever,
    sketches: Features,
    photos: Features,
    ranking: str,
    *,
    sharding: NamedSharding | None = None,
    tile: tuple[int, int] | None = None,
    progress: str | None = None,
) -> Float[np.ndarray, "q g"]:
    """How similar each sketch is to each photo, by one of the retriever's rankings.

    Args:
      retriever: the system that encoded the features.
      sketches: features of Q sketches, as `encoding.encode` gives them.
      photos: features of G photos.
      ranking: a name in `retriever.rankings`: "relation", "token", ...
      sharding: how photos are spread over a mesh (their leading axis). None: the default device.
      tile: sketches and photos whose pairs each device scores at once, for rankings of kind
        "score"; the memory scoring takes grows with it. None: by the size of the features.
      progress: what to call this work in the progress bar; None for silence.

    Returns:
      float32 [Q, G] on the host of every process; larger is more similar.

    Raises:
      ValueError: an unknown ranking, features without items or whose arrays differ in how many
        they have, a tile that is not two positive numbers, or a retriever's method that returns
        another shape than its interface says.
      FloatingPointError: a similarity is NaN.
    """
    kind = ranking_kind(retriever, ranking)
    sketches, photos = jax.device_get((sketches, photos))
    queries, gallery = item_count(sketches, "sketch"), item_count(photos, "photo")
    graphdef, state = evaluation_state(retriever, sharding, replicate=True)
    if tile is None:
        tile = _default_tile(sketches, photos)
    if min(tile) < 1:
        raise ValueError(f"tile={tile} must be two positive numbers: sketches and photos.")
    if kind == "embedding":
        sketches, photos = (
            _embeddings(graphdef, state, features, sharding=sharding)
            for features in (sketches, photos)
        )
        tile = _EMBEDDING_TILE
    devices = 1 if sharding is None else sharding.num_devices
    # No tile is larger than the task: two sketches against ten photos are twenty pairs.
    height, width = min(tile[0], queries), min(tile[1], -(-gallery // devices)) * devices

    def dispatched() -> Iterator[Float[Array, "q g"]]:
        replicated = sharding and NamedSharding(sharding.mesh, PartitionSpec())
        for column in range(0, gallery, width):
            photo_tile = _on_device(_rows(photos, column, width), sharding)
            for row in range(0, queries, height):
                sketch_tile = _on_device(_rows(sketches, row, height), replicated)
                yield _score(graphdef, state, sketch_tile, photo_tile, kind=kind, sharding=sharding)

    result = np.empty((queries, gallery), np.float32)
    corners = itertools.product(range(0, gallery, width), range(0, queries, height))
    with progress_bar(progress, queries * gallery, unit="pair") as bar:
        for (column, row), scores in zip(corners, fetched(dispatched()), strict=True):
            scores = scores[: queries - row, : gallery - column]
            if np.isnan(scores).any():
                sketch, photo = np.argwhere(np.isnan(scores))[0]
                raise FloatingPointError(
                    f"The {ranking} similarity of sketch {row + sketch} with photo "
                    f"{column + photo}, counting from 0, is NaN. Most likely features or "
                    "parameters hold NaN: the training diverged, or the checkpoint is damaged. Use "
                    "an earlier checkpoint."
                )
            result[row : row + height, column : column + width] = scores
            bar.update(scores.size)
    return result


def ranking_kind(retriever: Retriever, ranking: str) -> Kind:
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


@functools.partial(jax.jit, static_argnames=("graphdef", "kind", "sharding"))
def _score(
    graphdef: nnx.GraphDef[Retriever],
    state: nnx.State,
    sketches: Features,
    photos: Features,
    *,
    kind: Kind,
    sharding: NamedSharding | None,
) -> Float[Array, "q g"]:
    """Scores of a tile, float32; each device those of its own photos."""

    def score(state: nnx.State, sketches: Features, photos: Features) -> Float[Array, "q g"]:
        if kind == "embedding":
            return jnp.matmul(sketches, photos.T, precision="float32")
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
    everywhere = PartitionSpec()
    return jax.shard_map(
        score,
        mesh=sharding.mesh,
        in_specs=(everywhere, everywhere, sharding.spec),
        out_specs=PartitionSpec(None, *sharding.spec),
        check_vma=False,  # Nothing is exchanged: a retriever's scan need not say what varies.
    )(state, sketches, photos)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _embed(
    graphdef: nnx.GraphDef[Retriever], state: nnx.State, features: Features
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


def _embeddings(
    graphdef: nnx.GraphDef[Retriever],
    state: nnx.State,
    features: Features,
    *,
    sharding: NamedSharding | None,
) -> Float[np.ndarray, "n d"]:
    """The embedding of every item, computed in blocks that are bounded in memory."""
    items = item_count(features, "image")
    devices = 1 if sharding is None else sharding.num_devices
    rows = max(1, min(_TILE_BYTES // _item_bytes(features), 4096, -(-items // devices))) * devices
    blocks = fetched(
        _embed(graphdef, state, _on_device(_rows(features, start, rows), sharding))
        for start in range(0, items, rows)
    )
    return np.concatenate(list(blocks))[:items]


def _rows(features: Features, start: int, count: int) -> Features:
    """`count` items from `start` on; past the end, copies of the last one."""

    def rows(leaf: np.ndarray) -> np.ndarray:
        if start + count <= len(leaf):
            return leaf[start : start + count]
        return leaf[np.minimum(np.arange(start, start + count), len(leaf) - 1)]

    return jax.tree.map(rows, features)


def _on_device(features: Features, sharding: NamedSharding | None) -> Features:
    """Starts the transfer of a tile, which every process holds, to the device or the mesh."""
    if sharding is None:
        return jax.device_put(features)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), features
    )


def _default_tile(sketches: Features, photos: Features) -> tuple[int, int]:
    """Sketches and photos of a tile that is bounded in memory whatever the retriever keeps."""
    count = _TILE_BYTES // (_SKETCHES * _item_bytes((sketches, photos)))
    photos_in_tile = int(np.clip(count, _FEWEST_PHOTOS, _MOST_PHOTOS))
    return _SKETCHES, photos_in_tile - photos_in_tile % 8


def _item_bytes(features: Features) -> int:
    return sum(leaf[0].nbytes for leaf in jax.tree.leaves(features))
