"""Encode a data set: every image once, on one device or a mesh, the features kept on the host.

A sketch or photo takes part in thousands of pairs, but what a retriever's `encode` computes of it
depends on the image alone. Batches are padded to one shape, so that there is one compilation, and
masked, so that no image is dropped and no padding returned. While the device works on a batch, the
host fetches the one before and reads the next.
"""

import collections
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, UInt8
from tqdm import tqdm

from zse_jax.retrievers.base import Features, Modality, Retriever

Batch = Mapping[str, np.ndarray | jax.Array]
"""image: uint8 [B, H, W, 3]; label: int [B]; mask: bool [B], False where the batch is padded."""

# Batches on the device at once: one being computed, one being fetched.
_IN_FLIGHT = 2


def encode(
    retriever: Retriever,
    batches: Iterable[Batch],
    modality: Modality,
    *,
    sharding: NamedSharding | None = None,
    progress: str | None = None,
) -> tuple[Features, Int[np.ndarray, " n"]]:
    """What the retriever keeps of each image, and the images' labels.

    Dropout and the like are off, whatever the retriever's own state. The parameters stay as they
    lie on the mesh; a retriever that lies elsewhere is replicated to it for the call.

    Args:
      retriever: the system.
      batches: padded and masked batches of one shape. With several processes, each gives its share
        of every global batch, and all give the same number of batches.
      modality: which of the two the images are.
      sharding: how a batch is spread over a mesh (its leading axis). None: the default device.
      progress: what to call this work in the progress bar; None for silence.

    Returns:
      Features as numpy arrays in the retriever's own precision, whose leading axis is the N real
      images in the order of the batches, and their labels, int32 [N]. Every process gets all of
      them, ordered within a global batch by process.

    Raises:
      ValueError: no image, a batch without one of its three entries, a batch size that does not
        divide over the mesh, or features whose leading axis is not the image.
      FloatingPointError: the features of an image are not finite.
    """
    graphdef, state = evaluation_state(retriever, sharding)
    dispatched = (
        (*_encode(graphdef, state, image, modality=modality), label, mask)
        for image, label, mask in _placed(batches, sharding)
    )
    chunks: list[Features] = []
    labels: list[np.ndarray] = []
    done = 0
    with progress_bar(progress, operator.length_hint(batches), unit="batch") as bar:
        for features, finite, label, mask in fetched(dispatched):
            if not finite[mask].all():
                item = done + int(np.flatnonzero(~finite[mask])[0])
                raise FloatingPointError(
                    f"The features of {modality} {item}, counting from 0, hold NaN or infinity, "
                    f"as do those of {(~finite[mask]).sum()} of the {mask.sum()} images of its "
                    "batch. Most likely the parameters do: the training diverged, or the "
                    "checkpoint is damaged. Use an earlier checkpoint, or train with a smaller "
                    "learning rate."
                )
            chunks.append(
                features if mask.all() else jax.tree.map(lambda x, m=mask: x[m], features)
            )
            labels.append(label[mask].astype(np.int32))
            done += int(mask.sum())
            bar.update()
    if not done:
        raise ValueError(
            f"There is no {modality} to encode: the batches hold no image. Check that the split "
            f"has {modality} files on disk and that the stride keeps at least one."
        )
    return _concatenated(chunks), np.concatenate(labels)


def evaluation_state(
    retriever: Retriever, sharding: NamedSharding | None, *, replicate: bool = False
) -> tuple[nnx.GraphDef[Retriever], nnx.State]:
    """The retriever in evaluation mode, split for `jax.jit`, on the mesh of `sharding`.

    Parameters that lie on the mesh stay as they are; with `replicate`, those that are split over it
    are gathered once, for programs that read all of them again and again.

    `graphdef` is hashable and equal for retrievers of one structure: as a static argument it makes
    jit compile once for all evaluations of a training run.
    """
    view = nnx.view(
        retriever, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    graphdef, state = nnx.split(view)
    if sharding is None:
        return graphdef, state
    replicated = NamedSharding(sharding.mesh, PartitionSpec())

    def placed(leaf: jax.Array) -> jax.Array:
        on_mesh = leaf.sharding.device_set == sharding.device_set
        if on_mesh and (leaf.is_fully_replicated or not replicate):
            return leaf
        return jax.device_put(leaf, replicated) if on_mesh else _replicate(leaf, replicated)

    return graphdef, jax.tree.map(placed, state)


def progress_bar(description: str | None, total: int, *, unit: str) -> tqdm:
    """A progress bar with rate and ETA: live in a terminal, a line now and then in a log file.

    `total` is 0 where it is not known. Silent without a description, and on all but the first of
    several processes.
    """
    silent = description is None or jax.process_index() != 0
    bar = tqdm(
        total=total or None,
        desc=description,
        unit=f" {unit}",
        unit_scale=total >= 10_000,
        disable=silent,
    )
    if not silent and not bar.fp.isatty():
        bar.mininterval = 15.0
    return bar


def fetched(results: Iterable[Any]) -> Iterator[Any]:
    """Each result of a dispatched computation on the host, while the device works on the next."""
    pending: collections.deque[Any] = collections.deque()
    for result in results:
        for leaf in jax.tree.leaves(result):
            if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
                leaf.copy_to_host_async()
        pending.append(result)
        if len(pending) >= _IN_FLIGHT:
            yield _to_host(pending.popleft())
    while pending:
        yield _to_host(pending.popleft())


@functools.partial(jax.jit, static_argnames=("graphdef", "modality"))
def _encode(
    graphdef: nnx.GraphDef[Retriever],
    state: nnx.State,
    images: UInt8[Array, "b h w 3"],
    *,
    modality: Modality,
) -> tuple[Features, Bool[Array, " b"]]:
    """Features of a batch, and whether each image's are finite."""
    retriever = nnx.merge(graphdef, state)
    features = retriever.encode(images, modality)
    finite = jnp.ones(len(images), bool)
    for path, leaf in jax.tree.leaves_with_path(features):
        if leaf.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"{type(retriever).__name__}.encode gave features{jax.tree_util.keystr(path)} of "
                f"shape {leaf.shape} for {len(images)} images; the leading axis must be the image."
            )
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
    return features, finite


def _placed(
    batches: Iterable[Batch], sharding: NamedSharding | None
) -> Iterator[list[np.ndarray | jax.Array]]:
    """Image, label and mask of each batch, on the mesh where one is given."""
    for number, batch in enumerate(batches):
        if missing := {"image", "label", "mask"} - set(batch):
            raise ValueError(
                f"Evaluation batch {number} has no {', '.join(sorted(missing))}; it holds "
                f"{', '.join(sorted(batch))}."
            )
        entries = [batch["image"], batch["label"], batch["mask"]]
        if sharding is None:
            yield entries
            continue
        for entry in entries:
            size = len(entry) * (1 if isinstance(entry, jax.Array) else jax.process_count())
            if size % sharding.num_devices:
                raise ValueError(
                    f"An evaluation batch of {size} images does not divide over the "
                    f"{sharding.num_devices} devices of the mesh {dict(sharding.mesh.shape)}: "
                    "choose an evaluation batch size that is a multiple of their number."
                )
        yield [
            entry
            if isinstance(entry, jax.Array)
            else jax.make_array_from_process_local_data(sharding, np.asarray(entry))
            for entry in entries
        ]


def _replicate(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """A leaf that lies outside the mesh, on every device of it."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # With several processes, device_put takes neither keys nor arrays bound to a device.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _replicate(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)


def _to_host(tree: Any) -> Any:
    """The tree as numpy arrays, gathered from every process where it is spread over several."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if all(leaf.is_fully_addressable for leaf in leaves):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _concatenated(chunks: list[Features]) -> Features:
    """One pytree of whole arrays.

    Empties `chunks`, and frees each piece once it is copied: the system commits an empty array's
    pages as they are written, so features that fill half of the memory never lie in it twice.
    """
    treedef = jax.tree.structure(chunks[0])
    columns = [collections.deque(c) for c in zip(*map(jax.tree.leaves, chunks), strict=True)]
    chunks.clear()
    whole = []
    for pieces in columns:
        joined = np.empty((sum(map(len, pieces)), *pieces[0].shape[1:]), pieces[0].dtype)
        row = 0
        while pieces:
            piece = pieces.popleft()
            joined[row : row + len(piece)] = piece
            row += len(piece)
        whole.append(joined)
    return jax.tree.unflatten(treedef, whole)
