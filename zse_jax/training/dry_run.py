"""A dry run: what a run would need, from three measured steps, without writing to its workdir.

It loads the data (and prepares them on first use), builds the model from its initial weights and
trains three steps. Where frozen layers are cached, the steps read zeros in place of their output.
A teacher's knowledge is not computed.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from zse_jax.evaluation import data_selection
from zse_jax.evaluation.evaluator import Evaluator, check_select
from zse_jax.retrieval.encoding import encode
from zse_jax.retrieval.scoring import similarity
from zse_jax.retrievers.base import evaluation_view
from zse_jax.runtime import sharding
from zse_jax.runtime.console import duration
from zse_jax.training import advice, frozen_cache, initialization, loop, profiling
from zse_jax.training.step import complete, merge_model, placed, set_up

STEPS = 3
"""Steps that are measured, after one that is not."""

SCORED = (4, 32)
"""Sketches and photos whose pairs are scored to measure the time of a pair."""


def dry_run(config: ConfigDict) -> dict[str, int | float]:
    """Prints data counts, parameters, memory and time of a run of `config`.

    Returns:
      Bytes on each device ("parameters", "optimizer", "activations"), bytes in memory or on disk
      ("frozen"), and seconds ("step", "training", "cache", "evaluations", "total").

    Raises:
      ValueError, OSError: as `loop.train`, except for errors that concern the workdir.
    """
    config = complete(data_selection.resolved(config))
    mesh = sharding.make_mesh(**config.mesh)
    train = config.train
    sharding.check_batch_size(mesh, train.batch_size, "config.train.batch_size", train.accumulate)
    setup = set_up(config, mesh)
    check_select(config, setup.model.rankings)
    initialization.check(config)
    evaluation = config.evaluation
    strides = evaluation.sketch_stride, evaluation.photo_stride
    selects, tests = data_selection.evaluates(config)
    validation = Evaluator(config, mesh, *strides, selection=True) if selects else None
    strides = evaluation.test_sketch_stride, evaluation.test_photo_stride
    test = Evaluator(config, mesh, *strides) if tests else None
    items = data_selection.training_items(config)
    counts = ", ".join(f"{len(some):,} {some.modality} images" for some in items)
    print(f"data: {counts} of {len(items[0].class_names)} classes train"
          + (f"; a validation ranks {validation.size}" if validation else "")
          + (f"; the test ranks {test.size}" if test else ""))  # fmt: skip
    groups = profiling.parameter_groups(setup.model)
    fixed = groups.pop("frozen", 0)
    trained = ", ".join(f"{name} {count:,}" for name, count in groups.items())
    print(f"parameters: {trained} train" + (f"; {fixed:,} are frozen" if fixed else ""), flush=True)

    found: dict[str, int | float] = {
        "parameters": sharding.bytes_per_device(setup.abstract["model"]),
        "optimizer": sharding.bytes_per_device(setup.abstract["optimizer"]),
        "frozen": 0,
    }
    used: Any = items
    if train.cache_frozen:
        later = frozen_cache.later(items, setup.model, mirror=train.mirror, variants=train.variants)
        found["frozen"], used = later.size, later.items
        for some in later.items:
            one = later.output
            whole = np.broadcast_to(np.zeros((), one.dtype), (len(some), *one.shape[1:]))
            some.computed.values.extend([whole] * train.variants)
    state = setup.init()
    model = merge_model(setup.definition, state)
    initialization.fill(model, config)
    # Before the steps: without the teacher's knowledge, they make the parameters NaN.
    copies = train.variants * (1 + train.mirror) if train.cache_frozen else 0
    times = train.steps // evaluation.every + 1 if validation and evaluation.every else 0
    rates = _rates(evaluation_view(model), test or validation, config)
    found["cache"] = rates.image * copies * sum(map(len, items))
    found["evaluations"] = times * rates.of(validation) + rates.of(test)
    state = placed(state, model, setup)
    seconds: list[float] = []
    with contextlib.closing(loop.training_batches(config, setup.model, mesh, used)) as batches:
        batch = next(batches)
        step, cost = profiling.compile_step(setup.step, state, batch, mesh.size, train.accumulate)
        found["activations"] = cost.temporary_bytes
        print(_memory(found))
        if sentence := advice.memory("The steps", cost.temporary_bytes, advice.free_memory()):
            print(f"warning: {sentence}")
            return found
        for _ in range(STEPS + 1):
            began = time.monotonic()
            state, losses = step(state, batch)
            jax.block_until_ready(losses)
            batch = next(batches)
            seconds.append(time.monotonic() - began)
    found["step"] = float(np.median(seconds[1:]))
    found["training"] = found["step"] * train.steps
    found["total"] = found["training"] + found["cache"] + found["evaluations"]
    cache = f"; caching frozen layers {duration(found['cache'])} at most" if copies else ""
    print(
        f"time: about {duration(found['total'])}: {train.steps:,} steps of {found['step']:.3g} s "
        f"(median of {STEPS}) {duration(found['training'])}{cache}; {times} validations and "
        f"{'the' if test else 'no'} test {duration(found['evaluations'])}"
    )
    return found


def _memory(found: Mapping[str, int | float]) -> str:
    parts = {name: found[name] for name in ("parameters", "optimizer", "activations")}
    text = ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in parts.items())
    cached = f"; outputs of frozen layers {found['frozen'] / 1e9:.3f} GB" if found["frozen"] else ""
    return f"memory on each device: {text}; free {advice.free_memory() / 1e9:.2f} GB{cached}"


class Rates(NamedTuple):
    """Seconds for an image to be read and encoded, and for a pair to be scored."""

    image: float
    pair: float

    def of(self, evaluator: Evaluator | None) -> float:
        """Seconds of one evaluation, without the sorting; 0 for none."""
        if evaluator is None:
            return 0.0
        sketches, photos = len(evaluator.sketches), len(evaluator.photos)
        return self.image * (sketches + photos) + self.pair * sketches * photos


def _rates(model: Any, evaluator: Evaluator | None, config: ConfigDict) -> Rates:
    """Measured on a batch of photos; zeros without an evaluator."""
    if evaluator is None:
        return Rates(0.0, 0.0)
    names = config.evaluation.rankings or model.rankings
    scored = [name for name in names if model.rankings[name] == "score"]
    count = config.evaluation.batch_size
    some = evaluator.photos.select(range(min(len(evaluator.photos), count)))
    for _ in range(2):  # the first time compiles
        began = time.monotonic()
        batches = evaluator.batches(some, model.image_size)
        photos = encode(model, batches, "photo", sharding=evaluator.sharding)[0]
        encoded = time.monotonic()
        few, more = (jax.tree.map(lambda x, n=n: x[:n], photos) for n in SCORED)
        for name in scored:
            similarity(model, few, more, name, sharding=evaluator.sharding)
        done = time.monotonic()
    pairs = math.prod(min(n, len(some)) for n in SCORED)
    return Rates((encoded - began) / len(some), (done - encoded) / pairs)
