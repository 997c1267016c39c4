"""Encodes a data set: every image once, on one device or a mesh.

A sketch or photo takes part in thousands of pairs, but the result of a retriever's `encode` depends
on the image alone. Batches are padded to one shape, so that there is one compilation, and masked,
so that no image is dropped and no padding returned. While the device works on a batch, the host
fetches and stores the previous one (see `storage`) and reads the next.
"""

import collections
import functools
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped, UInt8
from tqdm import tqdm

from zse_jax.retrieval.feature_cache import OnDisk
from zse_jax.retrieval.storage import (
    Devices,
    InMemory,
    Place,
    Storage,
    free_host_memory,
    item_bytes,
)
from zse_jax.retrievers.base import Encoder, Features, Modality, evaluation_view

Batch = Mapping[str, np.ndarray | jax.Array]
"""image: uint8 [B, H, W, 3]; label: int [B]; mask: bool [B], False where the batch is padded."""

# Pixels that `in_chunks` encodes at a time: 5 images of 224 x 224.
_CHUNK_PIXELS = 2**18
# Batches on the device at once: one being computed, one being fetched.
_IN_FLIGHT = 2


def encode(
    retriever: Encoder,
    batches: Iterable[Batch],
    modality: Modality,
    *,
    sharding: NamedSharding | None = None,
    progress: str | None = None,
    storage: Storage = Storage(),  # noqa: B008  (frozen)
) -> tuple[Features, Int[np.ndarray, " n"]]:
    """The retriever's features of all images, and the images' labels.

    The retriever is in evaluation mode: dropout is off. Parameters on the mesh keep their sharding;
    others are replicated to the mesh for the call.

    Args:
      retriever: the system.
      batches: padded and masked batches of one shape. With several processes, each passes its
        share of every global batch, and all pass the same number of batches.
      modality: of the images.
      sharding: how a batch is spread over a mesh (its leading axis). None: the default device.
      progress: description of the progress bar; None: no bar.
      storage: where the features are kept, and in which precision. With a folder, batches that an
        interrupted call finished are not encoded again, and not read if the iterator of `batches`
        can be positioned (its `get_state()` has a "next_index").

    Returns:
      Features of the N real images on the leading axis, in the order of the batches and in the
      precision of the retriever or of the storage: numpy arrays, read-only memory-mapped ones, or
      (kept on the device) `jax.Array`s, replicated over a mesh. And the labels, int32 [N]. Every
      process gets all of them; within a global batch, images are ordered by process.

    Raises:
      ValueError: no images, a batch without one of its three entries, a batch size that does not
        divide over the mesh, features whose leading axis is not the image, or a storage folder
        that is damaged or contains features of another retriever or of other images.
      FloatingPointError: the features of an image are not finite. They are not recorded.
      OSError: the disk is too small.
    """
    graphdef, state = evaluation_state(retriever, sharding)
    run = functools.partial(_encode, graphdef, state, modality=modality, dtype=storage.dtype)
    devices = jax.local_devices()[:1] if sharding is None else sharding.device_set
    count = operator.length_hint(batches)
    kept = _folder(storage, retriever, modality, count) if storage.folder is not None else None
    finished = kept.finished if kept else 0
    dispatched = (
        (*run(image), label, mask)
        for image, label, mask in _placed(
            () if kept and kept.complete else _from(batches, finished), sharding
        )
    )
    new = functools.partial(_new, storage, count=count, devices=devices)
    with progress_bar(progress, count, unit="batch", initial=finished) as bar:
        if finished:
            bar.set_postfix_str(f"{finished} read from {storage.folder}")
        kept, structure = _keep(fetched(dispatched), kept, new, modality, bar)
    if kept is None or not kept.items:
        raise ValueError(
            f"There is no {modality} to encode: the batches are empty. Check that the split "
            f"has {modality} files on disk and that the stride keeps at least one."
        )
    if structure is None:  # Nothing was left to encode.
        size = retriever.image_size
        made, _ = jax.eval_shape(run, jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8))
        kept.check_structure(made)
        structure = jax.tree.structure(made)
    features, labels = kept.result(structure)
    size = len(labels) * item_bytes(features)
    return _moved(features, kept.place or storage.place(size, devices), sharding), labels


def fingerprint(retriever: Encoder) -> str:
    """A digest of a retriever's structure and parameter values, 32 hexadecimal digits.

    Equal for equal retrievers, whatever the sharding of their parameters. The state of random
    generators and the mode (training or evaluation) are ignored. So are attributes that are equal
    to a default of their class, which a version may add without a change of what older models
    compute. With several processes, all must call it.
    """
    digest = hashlib.blake2b(digest_size=16)
    found = list(nnx.iter_graph(evaluation_view(retriever)))
    nodes = {path: type(value) for path, value in found if isinstance(value, nnx.Module)}
    for path, value in found:
        if isinstance(value, nnx.RngState) or str(path[-1:]).startswith("('_pytree__"):
            continue
        static = value is None or isinstance(value, bool | int | float | str)
        if static and path and value == vars(nodes.get(path[:-1], object)).get(str(path[-1]), ()):
            continue
        digest.update(f"{path}: {_described(value)}\n".encode())
        for leaf in jax.tree.leaves(value) if isinstance(value, nnx.Variable) else [value]:
            if isinstance(leaf, jax.Array | np.ndarray):
                array = whole(leaf)
                digest.update(f"{array.dtype.name} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def evaluation_state(
    retriever: Encoder, sharding: NamedSharding | None, *, replicate: bool = False
) -> tuple[nnx.GraphDef[Encoder], nnx.State]:
    """The retriever in evaluation mode, split for `jax.jit`, on the mesh of `sharding`.

    Parameters on the mesh keep their sharding; with `replicate`, sharded ones are gathered once,
    for programs that read all of them repeatedly.

    `graphdef` is hashable and equal for retrievers of one structure: with it as a static argument,
    jit compiles once for all evaluations of a training run.
    """
    graphdef, state = nnx.split(evaluation_view(retriever))
    if sharding is None:
        return graphdef, state
    replicated = NamedSharding(sharding.mesh, PartitionSpec())

    def placed(leaf: jax.Array) -> jax.Array:
        on_mesh = leaf.sharding.device_set == sharding.device_set
        if on_mesh and (leaf.is_fully_replicated or not replicate):
            return leaf
        return jax.device_put(leaf, replicated) if on_mesh else _replicate(leaf, replicated)

    return graphdef, jax.tree.map(placed, state)


def progress_bar(description: str | None, total: int, *, unit: str, initial: int = 0) -> tqdm:
    """A progress bar with rate and ETA: live in a terminal, a line every 15 s in a log file.

    `total` is 0 if it is not known; `initial` of it are already finished. There is no bar without a
    description, and only the first of several processes shows one.
    """
    silent = description is None or jax.process_index() != 0
    bar = tqdm(
        total=total or None,
        initial=initial,
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


def _folder(storage: Storage, retriever: Encoder, modality: Modality, batches: int) -> OnDisk:
    """The features of these images by this retriever in the storage's folder."""
    about = {
        "checkpoint": fingerprint(retriever),
        "data": storage.key,
        "modality": modality,
        "precision": storage.dtype,
    }
    return OnDisk(Path(storage.folder or "") / modality, about, batches)


def _new(
    storage: Storage, features: Features, batch_size: int, *, count: int, devices: Devices
) -> InMemory | OnDisk:
    """Storage for features without a folder, chosen by those of the first batch."""
    size = item_bytes(features) * batch_size * count or None
    place = storage.place(size, devices)
    # Features for the device are collected on the host, or on disk if the host is too small.
    on_disk = place == "disk" or (size or 0) > free_host_memory()
    return OnDisk(None, {}, count, place) if on_disk else InMemory(place)


def _keep(
    results: Iterable[tuple[Features, np.ndarray, np.ndarray, np.ndarray]],
    kept: InMemory | OnDisk | None,
    new: Callable[[Features, int], InMemory | OnDisk],
    modality: Modality,
    bar: tqdm,
) -> tuple[InMemory | OnDisk | None, Any]:
    """Stores the real images of each batch; returns the storage and the features' structure."""
    structure = None
    try:
        for features, finite, label, mask in results:
            kept = kept or new(features, len(mask))
            if not finite[mask].all():
                item = kept.items + int(np.flatnonzero(~finite[mask])[0])
                raise FloatingPointError(
                    f"The features of {modality} {item}, counting from 0, contain NaN or infinity "
                    f"(in its batch, {(~finite[mask]).sum()} of the {mask.sum()} images). Most "
                    "likely the parameters do too: the training diverged, or the checkpoint is "
                    "damaged. Use an earlier checkpoint, or train with a smaller learning rate."
                )
            structure = jax.tree.structure(features)
            if not mask.all():
                features = jax.tree.map(operator.itemgetter(mask), features)
            kept.append(features, label[mask], len(mask))
            bar.update()
    except BaseException:
        if kept:
            kept.close()
        raise
    return kept, structure


def _moved(features: Features, place: Place, sharding: NamedSharding | None) -> Features:
    """Moves features from host memory or disk to `place`."""
    if place == "disk":
        return features
    if place == "host":
        return jax.tree.map(lambda x: np.array(x) if isinstance(x, np.memmap) else x, features)
    if sharding is None:
        return jax.device_put(features)
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _replicate(leaf, everywhere), features)


@functools.partial(jax.jit, static_argnames=("graphdef", "modality", "dtype"))
def _encode(
    graphdef: nnx.GraphDef[Encoder],
    state: nnx.State,
    images: UInt8[Array, "b h w 3"],
    *,
    modality: Modality,
    dtype: str | None,
) -> tuple[Features, Bool[Array, " b"]]:
    """Features of a batch, floats in `dtype`, and whether those of each image are finite."""
    retriever = nnx.merge(graphdef, state)
    features = in_chunks(lambda some: retriever.encode(some, modality), images)
    if dtype:
        features = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            features,
        )
    finite = jnp.ones(len(images), bool)
    for path, leaf in jax.tree.leaves_with_path(features):
        if leaf.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"{type(retriever).__name__}.encode returned features{jax.tree_util.keystr(path)} "
                f"of shape {leaf.shape} for {len(images)} images; the leading axis must be the "
                "image."
            )
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
    return features, finite


def in_chunks(encode: Callable[[Array], Features], images: Shaped[Array, "b h w c"]) -> Features:
    """`encode(images)`; on one CPU device, a few images at a time.

    The maps of a few images stay in the caches of a CPU, and their memory is used again for the
    next ones (figures: tests/benchmarks/RESULTS.md, EfficientNet-Lite). With several devices, the
    images are spread over them instead.

    Args:
      encode: features of any number of images, each independent of the others.
      images: a batch.
    """
    size = max(1, _CHUNK_PIXELS // (images.shape[1] * images.shape[2]))
    whole = len(images) // size * size
    if jax.default_backend() != "cpu" or jax.device_count() > 1 or whole <= size:
        return encode(images)
    features = jax.lax.map(encode, images[:whole].reshape(-1, size, *images.shape[1:]))
    features = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), features)
    if whole == len(images):
        return features
    return jax.tree.map(lambda *x: jnp.concatenate(x), features, encode(images[whole:]))


def _from(batches: Iterable[Batch], start: int) -> Iterator[Batch]:
    """The batches from number `start`; earlier ones are not read if the iterator can skip them."""
    iterator: Any = iter(batches)
    if not start:
        return iterator
    if "next_index" in getattr(iterator, "get_state", dict)():
        iterator.set_state({"next_index": start})
        return iterator
    return itertools.islice(iterator, start, None)


def _placed(
    batches: Iterable[Batch], sharding: NamedSharding | None
) -> Iterator[list[np.ndarray | jax.Array]]:
    """Image, label and mask of each batch, on the mesh if one is given."""
    for number, batch in enumerate(batches):
        if missing := {"image", "label", "mask"} - set(batch):
            raise ValueError(
                f"Evaluation batch {number} has no {', '.join(sorted(missing))}; its entries are "
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
                    "choose a multiple of the number of devices."
                )
        yield [
            entry
            if isinstance(entry, jax.Array)
            else jax.make_array_from_process_local_data(sharding, np.asarray(entry))
            for entry in entries
        ]


def _replicate(leaf: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A leaf from outside the mesh, replicated over the mesh."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # With several processes, device_put takes neither keys nor arrays bound to a device.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _replicate(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)


def _described(value: Any) -> str:
    """A static value of a module as text that is the same in every process."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, Mapping):
        return _described(sorted((str(name), _described(item)) for name, item in value.items()))
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def whole(leaf: jax.Array | np.ndarray) -> np.ndarray:
    """An array in host memory, gathered from other processes if they have parts of it."""
    if not isinstance(leaf, jax.Array):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _to_host(tree: Any) -> Any:
    """The tree as numpy arrays, gathered from every process if it is spread over several."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if all(leaf.is_fully_addressable for leaf in leaves):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
