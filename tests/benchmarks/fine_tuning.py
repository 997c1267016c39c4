r"""Fine-tunes an EfficientCNN for many epochs, with all images in the memory of an accelerator.

A model to start from, with the weights of ImageNet and the teacher's knowledge, but not trained;
DIR is as in configs/sketchy_split2.py:

    python -m zse_jax.main --config=configs/efficient_sketchy_split2.py:lite0 --workdir=runs/start \
        --config.data.manual_dir=DIR --config.data.images_per_class=25 \
        --config.train.steps=0 --config.optimizer.warmup_steps=0 --config.evaluation.every=0 \
        --config.evaluation.classes=unseen --config.model.frozen_blocks=0 \
        --config.train.cache_frozen=false \
        --config.evaluation.test_sketch_stride=400 --config.evaluation.test_photo_stride=400
    python -c "import zse_jax; zse_jax.save_pretrained('runs/start', 'start', dtype='float16')"

Then the training images, the runs, and a model with the mean of their weights:

    python -m tests.benchmarks.fine_tuning pack --model=start --output=images.npz \
        --set data.manual_dir=DIR
    python -m tests.benchmarks.fine_tuning train --model=start --images=images.npz --output=tuned
    python -m tests.benchmarks.fine_tuning unpack --model=start \
        --weights tuned/bench-*.safetensors --output=model
    python -m zse_jax.evaluate --checkpoint=model --config.data.manual_dir=DIR \
        --config.evaluation.test_sketch_stride=1 --config.evaluation.test_photo_stride=1

`train` also runs where TensorFlow, TFDS, clu and grain are not installed. Crops, rotations, mirror
images and changes of colour are computed on the device, many steps in one call. The runs are those
of `PLAN`: a search, in which every fourth class is held out and measured (each of its sketches
ranks all photos of the classes held out), then runs with the best settings and no class held out.
The unseen classes of a split neither train nor are measured. Each run also measures images/s, and
the share of the device's rate of matrix products: 3 x FLOP of an image x images/s / rate. The
results are in tuned/runs.json.
"""

import argparse
import dataclasses
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import yaml
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file, save_file

from data_pipelines import paths
from tests.benchmarks.accelerator_measurements import CNN_FLOP
from zse_jax import retrievers
from zse_jax.checkpoints.arrays import array_name, compare, flat_arrays, split_model
from zse_jax.losses import unit
from zse_jax.models import convolutions, efficientnet_lite
from zse_jax.models.backbone import statistics_move
from zse_jax.retrieval.expansion import expand
from zse_jax.retrievers.base import evaluation_view
from zse_jax.runtime import config_io
from zse_jax.training import optimizers, profiling
from zse_jax.training.step import trainable

SIDE = 256
"""Pixels of the packed images."""

ENCODED = 200
"""Images that are encoded at once."""

PLURALS = {"sketch": "sketches", "photo": "photos"}
TERMS = ("contrastive", "classification", "knowledge")
CHANGES = ("crop", "turn", "colour", "decay", "pull", "head_rate")


class Run(NamedTuple):
    """A training; the defaults are those with which the search starts.

    Attributes:
      name: of its files.
      image_size: pixels; the backbone takes any size.
      epochs: an epoch is as many images as train.
      classes: of a batch, with a sketch and a photo of each.
      rate: peak learning rate of the backbone; the head's is `head_rate` times as high.
      decay: weight decay.
      pull: as `decay`, but towards the initial parameters (L2-SP; Li et al., ICML 2018).
      contrastive, classification, knowledge: weights of the losses.
      crop: smallest part of an image that is cropped, by area; 1: none.
      turn: largest rotation, in degrees.
      colour: largest relative change of brightness, contrast and saturation of photos.
      held_out: every n-th class does not train, and is measured; 0: all train.
      seed: of the samples and their changes.
      keep: write the weights.
    """

    name: str
    image_size: int = 224
    epochs: float = 10.0
    classes: int = 48
    rate: float = 1e-4
    head_rate: float = 10 / 3
    decay: float = 0.01
    pull: float = 0.0
    contrastive: float = 1.0
    classification: float = 1.0
    knowledge: float = 2.0
    crop: float = 0.5
    turn: float = 10.0
    colour: float = 0.3
    held_out: int = 4
    seed: int = 0
    keep: bool = False


Axis = Mapping[str, Sequence[float]]
"""Settings, and for each as many values; the first values are tried together, and so on."""


class Plan(NamedTuple):
    """The runs: a search over `axes` from `start`, then changes of the best run."""

    start: Run
    axes: Sequence[Axis]
    then: Sequence[Mapping[str, Any]]


PLAN = Plan(
    Run("start"),
    (
        {"knowledge": (0.5, 5.0)},
        {"rate": (5e-5, 2e-4)},
        {"pull": (20.0,)},
        {"crop": (1.0, 0.3), "turn": (0.0, 20.0), "colour": (0.0, 0.5)},
        {"contrastive": (0.3, 2.0)},
        {"epochs": (20.0,)},
        {"head_rate": (10.0,)},
        {"knowledge": (1.0, 10.0)},
        {"rate": (3e-5, 1e-4)},
        {"decay": (0.1,)},
    ),
    tuple(
        {"name": f"bench-{seed}", "held_out": 0, "seed": seed, "keep": True} for seed in (0, 1, 2)
    ),
)


def read_plan(file: Path) -> Plan:
    """A plan in JSON: {"start": {...}, "axes": [...], "then": [...]}.

    Raises:
      ValueError: a setting that `Run` does not have.
    """
    given = json.loads(file.read_text())
    settings = {key for part in (given["start"], *given["axes"], *given["then"]) for key in part}
    if unknown := sorted(settings - set(Run._fields)):
        raise ValueError(
            f"{file} has unknown settings: {', '.join(unknown)}. Known: {', '.join(Run._fields)}."
        )
    return Plan(Run(**given["start"]), given["axes"], given["then"])


class Images(NamedTuple):
    """The packed images on the device, their classes, and the names of classes and unseen ones."""

    sketches: UInt8[Array, "n s s 3"]
    photos: UInt8[Array, "m s s 3"]
    sketch_labels: Int[np.ndarray, "n"]
    photo_labels: Int[np.ndarray, "m"]
    class_names: tuple[str, ...]
    unseen: tuple[str, ...]


def pack(model: str, output: Path, split: str, quality: int, settings: Sequence[str]) -> None:
    """Writes the training images of a model's config.

    Args:
      model: its folder.
      output: an .npz file.
      split: whose unseen classes neither train nor are measured; "": none are left out.
      quality: of WebP, 0 to 100.
      settings: changes of the config, KEY=VALUE.
    """
    from data_pipelines import splits
    from data_pipelines.images import PREPARE, decode
    from zse_jax.evaluation import data_selection

    tested = splits.get(split).unseen if split else ()
    arrays: dict[str, np.ndarray] = {}
    for items in data_selection.training_items(config_of(model, settings)):
        encoded = []
        for row in items.rows:
            rgb = PREPARE[items.modality](decode(items.source[row]), SIDE)
            with io.BytesIO() as stream:
                picture = Image.fromarray(rgb)
                picture = picture.convert("L") if items.modality == "sketch" else picture
                picture.save(stream, "WEBP", quality=quality, method=6)
                encoded.append(np.frombuffer(stream.getvalue(), np.uint8))
        arrays[items.modality] = np.concatenate(encoded)
        arrays[f"{items.modality}_sizes"] = np.array([len(x) for x in encoded])
        arrays[f"{items.modality}_labels"] = items.labels
        arrays["class_names"] = np.array(items.class_names)
        arrays["unseen"] = np.array([x for x in items.class_names if x in tested], str)
    np.savez(output, **arrays)
    print(
        f"wrote {output}: {output.stat().st_size / 2**20:.1f} MiB, {len(arrays['class_names'])} "
        f"classes, {len(arrays['unseen'])} of them unseen"
    )


def unpacked(file: Path) -> Images:
    """The images of `pack`, decoded by all cores."""

    def decoded(data: UInt8[np.ndarray, "bytes"]) -> UInt8[np.ndarray, "s s 3"]:
        with io.BytesIO(data.tobytes()) as stream:
            return np.asarray(Image.open(stream).convert("RGB"))

    def whole(side: str) -> UInt8[Array, "n s s 3"]:
        parts = np.split(packed[side], packed[f"{side}_sizes"].cumsum()[:-1])
        return jax.device_put(np.stack(list(pool.map(decoded, parts))))

    with np.load(file) as packed, ThreadPoolExecutor() as pool:
        return Images(
            *(whole(side) for side in PLURALS),
            *(packed[f"{side}_labels"] for side in PLURALS),
            *(tuple(packed[key].tolist()) for key in ("class_names", "unseen")),
        )


def changed(
    images: UInt8[Array, "b s s 3"],
    key: Key[Array, ""],
    size: int,
    change: Mapping[str, Float[Array, ""]],
    photo: bool,
) -> UInt8[Array, "b t t 3"]:
    """Random crops, rotations and mirror images, resized to `size` pixels, and colours of photos.

    Args:
      images: square.
      key: of the random numbers.
      size: pixels.
      change: `crop`, `turn` and `colour`, see `Run`.
      photo: whether colours change.
    """
    count, side = images.shape[:2]
    keys = jax.random.split(key, 7)
    area = jax.random.uniform(keys[0], (count,), minval=change["crop"])
    ratio = jnp.exp(jax.random.uniform(keys[1], (count,), minval=-1, maxval=1) * 0.2)
    ratio = jnp.where(change["crop"] < 1, ratio, 1.0)
    spans = [jnp.minimum(1.0, jnp.sqrt(area) * r) for r in (ratio, 1 / ratio)]
    starts = [
        jax.random.uniform(k, (count,)) * (1 - span)
        for k, span in zip(keys[2:4], spans, strict=True)
    ]
    angle = jnp.deg2rad(jax.random.uniform(keys[4], (count,), minval=-1) * change["turn"])
    mirrored = jax.random.bernoulli(keys[5], 0.5, (count,))
    cells = (jnp.arange(size) + 0.5) / size
    y = starts[0][:, None, None] + spans[0][:, None, None] * cells[:, None]
    x = starts[1][:, None, None] + spans[1][:, None, None] * cells[None, :]
    y, x = jnp.broadcast_arrays(y - 0.5, x - 0.5)
    sin, cos = (f(angle)[:, None, None] for f in (jnp.sin, jnp.cos))
    y, x = cos * y - sin * x, sin * y + cos * x
    x = jnp.where(mirrored[:, None, None], -x, x)
    y, x = ((axis + 0.5) * side - 0.5 for axis in (y, x))

    def one(image: Array, y: Array, x: Array) -> Array:
        channels = (
            jax.scipy.ndimage.map_coordinates(image[..., c], [y, x], order=1, mode="nearest")
            for c in range(3)
        )
        return jnp.stack(list(channels), axis=-1)

    moved = jax.vmap(one)(images.astype(jnp.float32), y, x)
    if photo:
        noise = jax.random.uniform(keys[6], (3, count, 1, 1, 1), minval=-1) * change["colour"] + 1
        moved = moved * noise[0]
        mean = moved.mean(axis=(1, 2, 3), keepdims=True)
        moved = mean + (moved - mean) * noise[1]
        grey = moved.mean(axis=3, keepdims=True)
        moved = grey + (moved - grey) * noise[2]
    return jnp.clip(jnp.round(moved), 0, 255).astype(jnp.uint8)


def config_of(model: str, settings: Sequence[str] = ()) -> ConfigDict:
    """The config in the folder of a model, with some values changed: KEY=VALUE."""
    config = config_io.from_plain(json.loads((Path(model) / "config.json").read_text())["config"])
    for setting in settings:
        key, _, value = setting.partition("=")
        config.update_from_flattened_dict({key: yaml.safe_load(value)})
    return config


def image_flop(model: ConfigDict) -> float:
    """FLOP of an image in the forward pass; 0 for a network of a size that is not in `CNN_FLOP`."""
    usual = (tuple(model.depths), model.width) == ((3, 4, 6, 3), 64)  # used by ResNets only
    return CNN_FLOP.get(model.backbone, 0.0) * (model.image_size / 224) ** 2 if usual else 0.0


def _zeros(leaf: jax.ShapeDtypeStruct) -> Any:
    """In place of dropout keys, which are not used."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return np.zeros(leaf.shape, leaf.dtype)


class Network:
    """A compiled training for a network, an image size and a number of classes in the batch.

    Learning rates and the strength of changes are arguments of the compiled program, so that runs
    that differ only in these share it.

    Attributes:
      images: of all classes.
      chunk: steps in one call.
      flop: of an image, see `image_flop`.
      start, rest: the initial parameters; and dropout keys, and all that does not train.
      begin: the parameters and the optimizer's moments before the first step.
      steps, encoded: compiled `_steps` and `_encode`.
    """

    def __init__(self, folder: str, run: Run, images: Images, chunk: int):
        """Reads the model in `folder`.

        Raises:
          ValueError: it is not centred, or its batch statistics move in training.
        """
        config = config_of(folder)
        self.images, self.chunk = images, chunk
        self.size, self.classes = run.image_size, run.classes
        config.model.image_size = run.image_size
        config.model.frozen_blocks = 0
        self.flop = image_flop(config.model)
        model = nnx.eval_shape(
            lambda: retrievers.create(
                config.model.to_dict(), dtype="bfloat16", rngs=nnx.Rngs(params=0, dropout=1)
            )
        )
        if model.means is None or statistics_move(model.backbone):
            raise ValueError(
                f"The model in {folder} must have config.model.centred=True and "
                "config.model.frozen_statistics=True."
            )
        arrays = load_file(Path(folder) / "model.safetensors")
        wrt, self.groups = trainable(model)
        optimizer = config.optimizer.copy_and_resolve_references()
        optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps = 1.0, "constant", 0
        optimizer.weight_decay = 0.0  # applied in `_updated`
        optimizer.learning_rates = {}
        self.optimizer = optimizers.create(optimizer, 0)
        self.graphdef, *shapes = nnx.split(model, wrt, nnx.RngState, ...)
        self.evaluated = nnx.graphdef(evaluation_view(model))
        start, rest = (
            jax.tree_util.tree_map_with_path(
                lambda path, leaf: np.asarray(arrays[array_name(path)], leaf.dtype), shapes[i]
            )
            for i in (0, 2)
        )
        random = jax.tree.map(_zeros, shapes[1])
        self.start, self.rest = jax.device_put((start, (random, rest)))
        self.is_compiled = False
        self.steps: Any = jax.jit(self._steps, donate_argnums=0)
        self.encoded: Any = jax.jit(self._encode)
        # A copy, because `steps` takes over the memory of its first argument.
        self.begin = jax.jit(
            lambda start: (jax.tree.map(jnp.copy, start), self.optimizer.init(start))
        )

    def compile(self, carry: Any, tables: Any, rates: Any, change: Any) -> None:
        """Compiles both programs at the same time; later calls do nothing."""
        if self.is_compiled:
            return
        began = time.monotonic()
        images = self.images[:2]
        part = jax.ShapeDtypeStruct((ENCODED, *images[1].shape[1:]), jnp.uint8)
        lowered = (
            self.steps.lower(carry, self.start, self.rest, images, tables, rates, change),
            self.encoded.lower(self.start, self.rest, part),
        )
        traced = time.monotonic()
        with ThreadPoolExecutor() as pool:
            self.steps, self.encoded = pool.map(lambda program: program.compile(), lowered)
        self.is_compiled = True
        taken = traced - began, time.monotonic() - traced
        print("traced in {:.0f} s, compiled in {:.0f} s".format(*taken), flush=True)

    def _batch(self, keys: Any, images: Any, tables: Any, change: Any) -> dict[str, Array]:
        """Random classes, with a random sketch and a random photo of each."""
        labels = tables[2]
        # The first of a random order of the classes; others follow them in the tables.
        order = jnp.where(labels < 0, 2.0, jax.random.uniform(keys[0], labels.shape))
        chosen = jnp.argsort(order)[: self.classes]
        batch = {}
        for side, table, array, pick, move in zip(
            PLURALS, tables[:2], images, keys[1:3], keys[3:5], strict=True
        ):
            rows = table[chosen]
            column = jax.random.randint(pick, (len(chosen), 1), 0, rows.shape[1])
            taken = array[jnp.take_along_axis(rows, column, axis=1)[:, 0]]
            batch[PLURALS[side]] = changed(taken, move, self.size, change, side == "photo")[:, None]
            batch[f"{side}_labels"] = labels[chosen][:, None]
        return batch

    def _loss(self, parameters: Any, rest: Any, batch: Any, weights: Any) -> Array:
        _, terms = nnx.merge(self.graphdef, parameters, *rest).loss(batch)
        return sum(weights[name] * terms[name] for name in TERMS)

    def _updated(self, parameters: Any, updates: Any, start: Any, rate: Array, change: Any) -> Any:
        """AdamW's step, with the decay and the pull towards `start` of `Run`."""

        def scaled(path: tuple, update: Array, value: Array, first: Array) -> Array:
            head = self.groups[array_name(path)] == "head"
            pulled = change["decay"] * value
            pulled += 0.0 if head else change["pull"] * (value - first)
            return rate * (change["head_rate"] if head else 1.0) * (update - pulled)

        updates = jax.tree_util.tree_map_with_path(scaled, updates, parameters, start)
        return optax.apply_updates(parameters, updates)

    def _steps(
        self, carry: Any, start: Any, rest: Any, images: Any, tables: Any, rates: Any, change: Any
    ) -> tuple[Any, Float[Array, "chunk"]]:
        """`chunk` steps.

        Args:
          carry: parameters, moments of the optimizer, key.
          start: the initial parameters.
          rest: see `Network`.
          images: sketches and photos.
          tables: positions of the sketches [c, k] and photos [c, l] of each class, and the classes
            [c]; -1: none, in the last rows.
          rates: learning rate of each step.
          change: strength of changes and weights of losses by name.

        Returns:
          The carry after them, and the loss of each step.
        """

        def step(carry: Any, rate: Array) -> tuple[Any, Array]:
            parameters, moments, key = carry
            key, *keys = jax.random.split(key, 6)
            batch = self._batch(keys, images, tables, change)
            loss, grads = jax.value_and_grad(self._loss)(parameters, rest, batch, change)
            updates, moments = self.optimizer.update(grads, moments, parameters)
            return (self._updated(parameters, updates, start, rate, change), moments, key), loss

        return jax.lax.scan(step, carry, rates)

    def _encode(
        self, parameters: Any, rest: Any, images: UInt8[Array, "b s s 3"]
    ) -> Float[Array, "b d"]:
        model = nnx.merge(self.evaluated, parameters, *rest)
        shape = (len(images), self.size, self.size, 3)
        resized = jax.image.resize(images.astype(jnp.float32), shape, "cubic", antialias=True)
        resized = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
        return model.embedding(model.encode(resized, "photo"))

    def embeddings(
        self, parameters: Any, images: UInt8[Array, "n s s 3"]
    ) -> Float[np.ndarray, "n d"]:
        """Embeddings, before the means are subtracted."""
        parts = []
        for i in range(0, len(images), ENCODED):
            part = images[i : i + ENCODED]
            full = jnp.pad(part, ((0, ENCODED - len(part)), (0, 0), (0, 0), (0, 0)))
            parts.append(self.encoded(parameters, self.rest, full)[: len(part)])
        return np.concatenate([np.asarray(x) for x in parts])


def ranked(
    sketches: Float[np.ndarray, "q d"],
    photos: Float[np.ndarray, "g d"],
    relevant: Bool[np.ndarray, "q g"],
) -> dict[str, float]:
    """mAP@all (exact) and P@10, in percent."""
    order = np.argsort(-(sketches @ photos.T), axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    average = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return {"mAP@all": float(100 * average.mean()), "P@10": float(100 * hits[:, :10].mean())}


def measured(
    network: Network,
    parameters: Any,
    held_out: Int[np.ndarray, "c"],
    seen: Int[np.ndarray, "k"],
) -> tuple[dict[str, dict[str, float]], Float[np.ndarray, "2 d"]]:
    """`ranked` of the classes `held_out`, with and without expansion, and the domain means.

    The means are those of the sketches and photos of the `seen` classes.
    """
    vectors = [network.embeddings(parameters, x) for x in network.images[:2]]
    labels = network.images[2:4]
    means = np.stack(
        [v[np.isin(x, seen)].mean(axis=0) for v, x in zip(vectors, labels, strict=True)]
    )
    if not len(held_out):
        return {}, means
    tested = [np.isin(x, held_out) for x in labels]
    sketches, photos = (
        np.asarray(unit(jnp.asarray(v[s] - m)))
        for v, s, m in zip(vectors, tested, means, strict=True)
    )
    relevant = labels[0][tested[0]][:, None] == labels[1][tested[1]]
    expanded = np.asarray(expand(jnp.asarray(sketches), jnp.asarray(photos), 20))
    return {
        "embedding": ranked(sketches, photos, relevant),
        "expanded": ranked(expanded, photos, relevant),
    }, means


def rates_of(run: Run, steps: int) -> Float[np.ndarray, "steps"]:
    """The learning rate of each step: a linear warm-up of at most 20 steps, then cosine decay."""
    warm = min(20, steps // 4)
    index = np.arange(steps)
    cosine = 0.5 + 0.5 * np.cos(np.pi * np.clip((index - warm) / max(1, steps - warm), 0, 1))
    return (run.rate * np.where(index < warm, index / max(1, warm), cosine)).astype(np.float32)


def tables_of(images: Images, seen: Int[np.ndarray, "k"]) -> list[Int[np.ndarray, "..."]]:
    """See `Network._steps`; each class has as many images as the smallest one.

    There is a row for every class of `images`, so that all runs share a program.
    """
    labels, others = images[2:4], len(images.class_names) - len(seen)
    least = min(np.sum(x == c) for x in labels for c in seen)
    tables = [
        np.pad(np.stack([np.flatnonzero(x == c)[:least] for c in seen]), ((0, others), (0, 0)))
        for x in labels
    ]
    return [*tables, np.pad(seen, (0, others), constant_values=-1)]


def train(run: Run, network: Network, output: Path) -> dict[str, Any]:
    """One run: losses, metrics, seconds, images/s, and with `keep` a file of the weights.

    Raises:
      ValueError: more classes in a batch than train.
    """
    images, chunk = network.images, network.chunk
    classes = [i for i, name in enumerate(images.class_names) if name not in images.unseen]
    names = np.array(classes, int)
    held_out = names[run.held_out // 2 :: run.held_out] if run.held_out else names[:0]
    seen = np.setdiff1d(names, held_out)
    if run.classes > len(seen):
        raise ValueError(f"classes={run.classes} of a batch, but only {len(seen)} classes train.")
    tables = tables_of(images, seen)
    count = sum(np.isin(x, seen).sum() for x in images[2:4])
    chunks = max(1, round(run.epochs * count / (2 * run.classes) / chunk))
    rates = rates_of(run, chunks * chunk)
    change = {name: np.float32(getattr(run, name)) for name in CHANGES + TERMS}
    carry = *network.begin(network.start), jax.random.key(run.seed)
    network.compile(carry, tables, rates[:chunk], change)
    losses, times = [], []
    for part in rates.reshape(chunks, chunk):
        began = time.perf_counter()
        carry, loss = network.steps(
            carry, network.start, network.rest, images[:2], tables, part, change
        )
        losses.append(float(loss.mean()))
        times.append(time.perf_counter() - began)
    metrics, means = measured(network, carry[0], held_out, seen)
    if run.keep:
        state = nnx.merge_state(carry[0], network.rest[1])
        arrays = {
            name: np.asarray(value, np.float16)
            for name, value in flat_arrays(state).items()
            if name != "knowledge"
        }
        save_file(arrays | {"means": means}, output / f"{run.name}.safetensors")
    return {
        "run": run._asdict(),
        "steps": len(rates),
        "loss": losses[:: max(1, len(losses) // 20)],
        "first_call_s": times[0],
        "seconds": sum(times[1:]),
        "images_per_s": 2 * run.classes * chunk / float(np.median(times[1:] or times)),
        **metrics,
    }


def unpack(model: str, weights: Sequence[Path], output: str, settings: Sequence[str]) -> None:
    """Writes a model with the mean of the weights, and of the domain means, of some runs.

    Args:
      model: folder of the start.
      weights: a file of each run.
      output: a new folder.
      settings: changes of the config, KEY=VALUE.

    Raises:
      ValueError: the run was of another start.
    """
    import zse_jax

    trained = zse_jax.load(model)
    state, parts = split_model(trained)[1]["model"], [load_file(file) for file in weights]
    arrays = jax.tree.map(lambda *found: np.mean(found, axis=0, dtype=np.float32), *parts)
    arrays["knowledge"] = np.asarray(flat_arrays(state)["knowledge"])
    compare(arrays, flat_arrays(jax.eval_shape(lambda x: x, state)), ", ".join(map(str, weights)))
    filled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(arrays[array_name(path)], leaf.dtype), state
    )
    nnx.update(trained, filled)
    print(zse_jax.save_pretrained(trained, output, config=config_of(model, settings)))


def searched(
    start: Run,
    axes: Sequence[Axis],
    quality: Callable[[Run], float],
    in_time: Callable[[], bool],
) -> Run:
    """The best run, changing one axis after the other.

    Args:
      start: the first run.
      axes: what is tried; each axis changes the best run so far.
      quality: of a run, more is better.
      in_time: whether another run may start.
    """
    best, reached = start, quality(start)
    for axis in axes:
        better = best
        for values in zip(*axis.values(), strict=True):
            new = best._replace(**dict(zip(axis, values, strict=True)))
            if new == best or not in_time():
                continue
            text = " ".join(f"{key} {value:g}" for key, value in zip(axis, values, strict=True))
            if (found := quality(new._replace(name=text))) > reached:
                better, reached = new, found
        best = better
    return best


@dataclasses.dataclass
class Session:
    """Runs that share compiled programs; prints and writes each result.

    Attributes:
      folder: of the model to start from.
      images: of all classes.
      output: folder for results and weights.
      chunk: steps in one call.
      rate: FLOP/s of matrix products.
      began: the time of `time.monotonic` from which minutes count.
      networks: by image size and number of classes in a batch.
      rows: the results.
    """

    folder: str
    images: Images
    output: Path
    chunk: int
    rate: float
    began: float
    networks: dict[tuple[int, int], Network] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def minutes(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.began) / 60

    def run(self, run: Run) -> dict[str, Any] | None:
        """The result of a run; None: it failed."""
        key = run.image_size, run.classes
        if key not in self.networks:
            self.networks[key] = Network(self.folder, run, self.images, self.chunk)
        network = self.networks[key]
        try:
            row = train(run, network, self.output)
        except Exception as error:  # the other runs are still worth their time
            print(f"{run.name} failed: {type(error).__name__}: {str(error)[:1500]}", flush=True)
            return None
        row["share"] = 3 * network.flop * row["images_per_s"] / self.rate if network.flop else None
        self.rows.append(row)
        paths.replace(self.output / "runs.json", json.dumps(self.rows, indent=1))
        share = "" if row["share"] is None else f" ({row['share']:.1%})"
        print(
            f"{60 * self.minutes:5.0f} s {run.name:24} {row['images_per_s']:6.0f} images/s{share} "
            f"{row['seconds']:4.0f} s loss {row['loss'][0]:.2f} {row['loss'][-1]:.2f}",
            *(
                f"| {ranking} mAP@all {row[ranking]['mAP@all']:.1f} P@10 {row[ranking]['P@10']:.1f}"
                for ranking in ("embedding", "expanded")
                if ranking in row
            ),
            flush=True,
        )
        return row

    def quality(self, run: Run) -> float:
        """mAP@all of the classes held out; 0 if the run failed."""
        row = self.run(run)
        return row["embedding"]["mAP@all"] if row else 0.0


def train_all(options: argparse.Namespace) -> None:
    """The command `train`."""
    began = time.monotonic()
    plan = read_plan(options.plan) if options.plan else PLAN
    options.output.mkdir(parents=True, exist_ok=True)
    images = unpacked(options.images)
    on_cpu = jax.default_backend() == "cpu"
    rate = profiling.matrix_rate("bfloat16", 256 if on_cpu else None)
    print(
        f"{time.monotonic() - began:5.0f} s {len(images.sketches)} + {len(images.photos)} images, "
        f"{jax.devices()[0].device_kind}, matrix products {rate / 1e12:.3g} TFLOP/s",
        flush=True,
    )
    if not on_cpu:  # traces faster than a choice of platforms
        for name in ("depthwise", "convolution"):
            setattr(efficientnet_lite, name, convolutions.native)
    session = Session(options.model, images, options.output, options.chunk, rate, began)
    best = searched(
        plan.start, plan.axes, session.quality, lambda: session.minutes <= options.search
    )
    print(f"chosen: {best._asdict()}", flush=True)
    for changes in plan.then:
        if session.minutes > options.minutes:
            print(f"{changes['name']}: no time left", flush=True)
            continue
        session.run(best._replace(**changes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing, training, unpacking = map(commands.add_parser, ("pack", "train", "unpack"))
    for command in (packing, training, unpacking):
        command.add_argument("--model", required=True, help="folder of the model to start from")
    for command in (packing, unpacking):
        help_ = "changes of the model's config"
        command.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help=help_)
    packing.add_argument("--output", type=Path, required=True, help="an .npz file")
    packing.add_argument("--split", default="sketchy_split2", help="whose unseen classes stay out")
    packing.add_argument("--quality", type=int, default=85, help="of WebP")
    training.add_argument("--images", type=Path, required=True, help="the file of `pack`")
    training.add_argument("--output", type=Path, required=True, help="a folder")
    training.add_argument("--plan", type=Path, help="JSON in place of the plan in this file")
    training.add_argument("--minutes", type=float, default=4, help="no run starts later")
    training.add_argument("--search", type=float, default=2, help="minutes of the search")
    training.add_argument("--chunk", type=int, default=20, help="steps in one call")
    unpacking.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        required=True,
        help="of `train`; their mean is used",
    )
    unpacking.add_argument("--output", required=True, help="a new folder")
    options = parser.parse_args(arguments)
    if options.command == "pack":
        pack(options.model, options.output, options.split, options.quality, options.set)
    elif options.command == "train":
        train_all(options)
    else:
        unpack(options.model, options.weights, options.output, options.set)


if __name__ == "__main__":
    main()
