"""The training loop: evaluate -> save -> next batch -> step.

With this order, the position in the data is saved before it advances, and every saved step has been
evaluated if an evaluation was due. So a run that is killed at any time resumes from its last
checkpoint with bit-identical results. `zse_jax.training.step` defines a step.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from data_pipelines import loading, paths
from zse_jax.checkpoints import initial_weights, writing
from zse_jax.checkpoints import workdir as workdir_
from zse_jax.evaluation import data_selection, domain_means, per_query, tables, training_record
from zse_jax.evaluation.evaluator import Evaluator, check_select, title
from zse_jax.retrieval.encoding import encode
from zse_jax.retrieval.rerank_report import shortlist_table
from zse_jax.retrievers.base import Retriever, evaluation_view
from zse_jax.runtime import config_io, consistency, distributed, preemption, sharding
from zse_jax.runtime import watchdog as watchdog_
from zse_jax.runtime.console import show
from zse_jax.runtime.metrics_file import METRICS_FILE, read_metrics, write_json
from zse_jax.training import (
    advice,
    divergence,
    frozen_cache,
    initialization,
    optimizers,
    profiling,
)
from zse_jax.training.metric_logging import Reporter
from zse_jax.training.step import Batch, Setup, State, complete, merge_model, placed, set_up

logger = logging.getLogger(__name__)

RESULTS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"

AHEAD = 2
"""Steps that wait on the device or are computed: enough to keep it busy. A notice to stop is obeyed
when they are done."""


def training_batches(
    config: ConfigDict, model: Retriever, mesh: Mesh, items: Sequence[loading.Items] | None = None
) -> Any:
    """The endless, resumable iterator of training batches on the mesh.

    `items` are the sketches and photos; None: those of the config.
    """
    dataset = loading.train_batches(
        *(items or data_selection.training_items(config)),
        kind=config.train.sampler or model.batch_kind,
        image_size=model.image_size,
        batch_size=config.train.batch_size // jax.process_count(),
        seed=config.seed,
        workers=config.data.workers,
        augment=config.train.augment,
        mirror=config.train.mirror,
        variants=config.train.variants,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    return iter(loading.to_device(dataset, sharding.batch_sharding(mesh)))


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains, or resumes training, until `config.train.steps`.

    Args:
      config: from a file in `configs/`.
      workdir: gets checkpoints, config.yaml, metrics.jsonl, TensorBoard files, and metrics.json at
        the end.

    Returns:
      The content of metrics.json: the metrics of the best checkpoint.

    Raises:
      TrainedError: the initial weights were trained on what the run evaluates as unseen.
      ValueError: values in the config that do not fit each other, the machine, or the run in
        `workdir`.
      OSError: `workdir` is not writable, in use by another run, or its disk nearly full; the data
        set is missing; or a save failed.
      FloatingPointError: the loss is not finite, or far above its median.
      SystemExit: with `distributed.AGAIN`, after a preemption; everything is saved.
    """
    config = complete(data_selection.resolved(config))
    consistency.agree(facts(config, workdir))
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch_size(
        mesh, config.train.batch_size, "config.train.batch_size", config.train.accumulate
    )
    workdir = workdir_.writable(workdir)
    trace = profiling.Trace(config.profile, config.train.steps, workdir)
    setup = set_up(config, mesh)
    check_select(config, setup.model.rankings)
    workdir_.check_space(workdir, setup.abstract, config.checkpoint.keep_last)
    with (
        workdir_.alone(workdir),
        writing.Checkpoints(
            workdir,
            select=config.evaluation.select,
            setting=config_io.validation_setting(config),
            keep_last=config.checkpoint.keep_last,
        ) as checkpoints,
    ):
        changed: dict[str, tuple[Any, Any]] = {}

        def check(saved: ConfigDict) -> None:
            changed.update(config_io.check_resumable(saved, config, str(workdir)))

        checkpoints.check_latest(check)  # before the data, whose preparation may take long
        check_length(checkpoints.latest or 0, config, str(workdir))
        if checkpoints.latest is None:
            initialization.check(config)
        evaluation = config.evaluation
        strides = evaluation.sketch_stride, evaluation.photo_stride
        selects, tests = data_selection.evaluates(config)
        validation = Evaluator(config, mesh, *strides, selection=True) if selects else None
        strides = evaluation.test_sketch_stride, evaluation.test_photo_stride
        test = Evaluator(config, mesh, *strides) if tests else None
        record = training_record.of_run(config, checkpoints.record)
        for evaluator in filter(None, (validation, test)):
            evaluator.notes |= initial_weights.notes(config)
            evaluator.compare(record)
        leak = test.notes.get("not_zero_shot") if test else None
        checkpoints.trained = record | {"not_zero_shot": leak}
        items: Sequence[loading.Items] = data_selection.training_items(config)
        later = None
        if config.train.cache_frozen:
            later = frozen_cache.later(
                items,
                setup.model,
                mirror=config.train.mirror,
                variants=config.train.variants,
            )
        batches = training_batches(config, setup.model, mesh, later.items if later else items)
        consistency.agree(data_facts(config, validation))
        needed = sharding.bytes_per_device(setup.abstract)
        if sentence := advice.memory("The model and optimizer", needed, advice.free_memory()):
            logger.warning("%s", sentence)
        start, state = checkpoints.resume(setup.abstract, batches, check) or (
            None,
            initialization.first_state(config, mesh, setup, workdir),
        )
        if later and (start or 0) < config.train.steps:
            frozen_cache.fill(later, merge_model(setup.definition, state), config, mesh)
        if jax.process_index() == 0:
            config_io.write_yaml(config, workdir / CONFIG_FILE)
        headline = config.evaluation.select.partition("/")[2]
        with Reporter(
            workdir, config.train.steps, start, config.log.tensorboard, headline
        ) as report:
            introduce(report, config, mesh, setup, workdir, start, changed)
            if start is not None and checkpoints.incomparable:
                report.say(
                    "The validation setting has changed, so earlier evaluations do not compare: "
                    f"the best step is chosen from step {start} on. (The former best checkpoint "
                    "is kept.)"
                )
            run = Run(config, mesh, setup, workdir, checkpoints, report, validation, test, trace)
            closing = contextlib.closing  # closing the batches ends the worker processes
            with preemption.Preemption() as notice:
                with closing(batches), closing(trace), run.health:
                    run.loop(state, batches, start, notice)
                notice.at_once()
                return run.finish()


def check_length(reached: int, config: ConfigDict, workdir: str) -> None:
    """Checks that a run is not made shorter than the step that it has reached.

    Raises:
      ValueError: it is.
    """
    if reached > config.train.steps:
        raise ValueError(
            f"config.train.steps={config.train.steps}, but the run in {workdir} has reached step "
            f"{reached}: give {reached} or more to continue it, or another --workdir to start a "
            "shorter run."
        )


def rescheduled(
    config: ConfigDict, start: int | None, changed: Mapping[str, tuple[Any, Any]]
) -> str:
    """What another length means for the learning rate of a resumed run; "" if nothing.

    A schedule that depends on the length ("cosine") is the one of the new length from the step of
    the checkpoint on, as if the run had had this length: the rate of the next step is that of the
    new schedule at this step, and the optimizer's moments are kept.
    """
    if start is None or "train.steps" not in changed or config.optimizer.schedule == "constant":
        return ""
    old, new = changed["train.steps"]
    if start >= new:
        return ""
    before, after = (
        float(optimizers.learning_rate(config.optimizer, steps)(min(start, steps)))
        for steps in (old, new)
    )
    return (
        f"config.train.steps {old} -> {new}: from step {start} on, the learning rate follows the "
        f"{config.optimizer.schedule} schedule of {new} steps ({before:.3g} -> {after:.3g} here)."
    )


@dataclasses.dataclass
class Run:
    """A training run: the phases of the loop and their shared objects."""

    config: ConfigDict
    mesh: Mesh
    setup: Setup
    workdir: epath.Path
    checkpoints: writing.Checkpoints
    report: Reporter
    validation: Evaluator | None
    """None: there are no classes to select checkpoints by."""
    test: Evaluator | None
    """None: there are no unseen classes."""
    trace: profiling.Trace
    health: profiling.Health = dataclasses.field(default_factory=profiling.Health)
    pending: list[tuple[int, dict[str, Array]]] = dataclasses.field(default_factory=list)
    """Losses that are still on the device, with their steps."""
    spikes: divergence.SpikeGuard = dataclasses.field(init=False)
    warned: set[str] = dataclasses.field(default_factory=set)
    """The beginnings of the warnings that were printed."""

    def __post_init__(self) -> None:
        self.spikes = divergence.SpikeGuard(self.config.train.spike)

    @property
    def scratch(self) -> epath.Path | None:
        """Keeps partial results of the final evaluation, which may take hours; local disks only."""
        return None if "://" in os.fspath(self.workdir) else self.workdir / "scratch"

    def loop(
        self, state: State, batches: Any, start: int | None, notice: preemption.Preemption
    ) -> None:
        """Trains from step `start` (None: from scratch) to the end, and saves the last step."""
        steps = self.config.train.steps
        with watchdog_.Watchdog(self.config.train.stall_seconds) as watchdog:
            watchdog.beat(start or 0)
            for step in range(start or 0, steps + 1):
                stopping = notice.due()
                if not stopping and self.evaluation_due(step):
                    stopping = notice.due()  # of several processes, one may have got a notice
                with watchdog.paused():
                    metrics = None
                    if not stopping:  # save first: the time until the kill may be short
                        with notice.breakable():
                            if self.evaluation_due(step) or start != step == steps:
                                state = self.centred(state)
                            metrics = self.evaluate(step, state)
                    if metrics is not None and step == start:
                        self.checkpoints.evaluated(step, self.config, metrics)
                    stopping = stopping or notice.broken
                    self.save(step, state, batches, metrics, now=stopping)
                if stopping:
                    self.leave(notice)
                if trace := self.trace.at(step, self.pending):
                    self.report.say(f"Wrote a profile of steps {self.config.profile} to {trace}.")
                if step >= steps:
                    break
                try:
                    batch = self.health.fetch(batches)
                except Exception:
                    # The notice may also have ended the processes that read images. (Several
                    # processes save together, so one cannot do it alone.)
                    if not notice.noticed or distributed.together():
                        raise
                    self.save(step, state, batches, None, now=True)
                    self.leave(notice)
                if step == (start or 0):
                    advance = self.compiled(state, batch)
                with jax.transfer_guard("disallow"):  # a step transfers nothing from the host
                    state, losses = advance(state, batch)
                self.health.started(losses)
                self.note(step, losses, first=step == (start or 0), batch=batch)
                watchdog.beat(step + 1)

    def leave(self, notice: preemption.Preemption) -> NoReturn:
        """Ends the run after a notice, when the last save is on disk."""
        self.checkpoints.wait()
        last = self.checkpoints.latest
        end = notice.left(
            " before the first step; nothing was saved" if last is None else f": saved step {last}"
        )
        self.report.say(str(end))
        raise end

    def compiled(self, state: State, batch: Batch) -> profiling.Step:
        """Compiles the step for these arrays, and reports its cost."""
        config, health = self.config, self.health
        step, health.cost = profiling.compile_step(
            self.setup.step, state, batch, self.mesh.size, config.train.accumulate
        )
        health.rate = profiling.device_rate(config.compute_dtype)
        self.report.health = health.timing
        self.report.say(profiling.describe(health.cost, health.rate))
        needed = health.cost.temporary_bytes
        self.warn(advice.memory("The activations of a step", needed, advice.free_memory()))
        return step

    def evaluation_due(self, step: int) -> bool:
        """Whether to evaluate at `step`: it is its turn, and no evaluation was saved with it."""
        every = self.config.evaluation.every
        turn = bool(every and self.validation) and (
            not step % every or step == self.config.train.steps
        )
        return turn and not self.checkpoints.metrics(step)

    def centred(self, state: State) -> State:
        """The state with the domain means of its parameters, for systems that subtract them."""
        if self.setup.model.means is None:
            return state
        with self.report.clock.paused():
            model = merge_model(self.setup.definition, state)
            domain_means.measure(evaluation_view(model), self.config, self.mesh)
            return placed(state, model, self.setup)

    def evaluate(self, step: int, state: State) -> dict[str, float] | None:
        """The validation metrics, if they are due at `step`."""
        if not self.evaluation_due(step):
            return None
        assert self.validation is not None
        self.flush(step)
        with self.report.clock.paused():
            began = time.monotonic()
            evaluation = self.validation(merge_model(self.setup.definition, state))
            # The same for all processes, to the last bit: what is saved depends on them.
            metrics = distributed.of_first(evaluation.flat(), seconds=600.0)
            seconds = time.monotonic() - began
            if self.is_best(metrics):
                per_query.write(self.workdir / per_query.FILE, self.validation, evaluation, step)
            self.report.evaluation(
                step, metrics, seconds, self.checkpoints.setting, self.validation.classes.lower()
            )
            if step:
                self.advise(metrics, merge_model(self.setup.definition, state))
        return metrics

    def advise(self, metrics: Mapping[str, float], model: Retriever) -> None:
        """Warns of a validation at chance, and of embeddings that do not differ any more."""
        validation, select = self.validation, self.config.evaluation.select
        assert validation is not None
        labels = (items.labels for items in (validation.sketches, validation.photos))
        chance = advice.chance_level(select, *labels)
        self.warn(advice.at_chance(select, metrics[select], chance))
        self.warn(advice.collapse(similarities(validation, model)))

    def warn(self, sentence: str) -> None:
        """Prints a warning, once of each kind."""
        kind = sentence.partition(":")[0]
        if sentence and kind not in self.warned:
            self.warned.add(kind)
            self.report.say(f"warning: {sentence}")

    def save(
        self,
        step: int,
        state: State,
        batches: Any,
        metrics: Mapping[str, float] | None,
        now: bool = False,
    ) -> None:
        """Saves in the background if due, if the best so far, at the last step, or if `now`."""
        self.checkpoints.check()
        if step == 0 < self.config.train.steps:
            return
        every = self.config.checkpoint.every
        record = metrics is not None and self.is_best(metrics)
        due = bool(every) and step % every == 0
        if not (due or record or now or step == self.config.train.steps):
            return
        self.flush(step)
        with self.report.clock.paused():
            self.checkpoints.save(step, state, batches, self.config, metrics)

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether these validation metrics are better than those of every saved step."""
        best = self.checkpoints.best
        return best is None or metrics[self.config.evaluation.select] > best[1]

    def note(self, step: int, losses: dict[str, Array], *, first: bool, batch: Batch) -> None:
        """Records the losses of the step after `step` without waiting for them.

        They are reported one step later, while the device computes the next step. Waits for the
        step `AHEAD` steps before.
        """
        self.pending.append((step + 1, losses))
        if len(self.pending) > AHEAD:
            jax.block_until_ready(self.pending[-1 - AHEAD][1])
        if first:  # its time includes the compilation
            jax.block_until_ready(losses)
            self.report.clock.restart(step + 1)
            self.report.images = images_in(batch)
        if estimate := self.health.estimate(self.config.train.steps - step - 1):
            self.report.say(estimate)
        if step % self.config.log.every == 0:
            self.flush(step)

    def flush(self, until: int) -> None:
        """Reports the mean losses of the pending steps up to `until`; raises if one diverged."""
        due = [(step, losses) for step, losses in self.pending if step <= until]
        if not due:
            return
        self.pending = self.pending[len(due) :]
        fetched = jax.device_get([losses for _, losses in due])
        for (step, _), losses in zip(due, fetched, strict=True):
            finite = all(math.isfinite(value) for value in losses.values())
            if not finite or self.spikes.is_spike(float(losses["loss"])):
                self.fail(step, losses)
        means = {
            name: float(np.mean([losses[name] for losses in fetched], dtype=np.float64))
            for name in fetched[0]
        }
        rate = optimizers.learning_rate(self.config.optimizer, self.config.train.steps)(until - 1)
        self.report.training(until, means | {"learning_rate": float(rate)})

    def fail(self, step: int, losses: Mapping[str, Any]) -> None:
        """Raises FloatingPointError for a loss that is not finite or is a spike."""
        self.checkpoints.wait()
        last = self.checkpoints.latest
        terms = ", ".join(f"{name} {float(value):.4g}" for name, value in losses.items())
        raise FloatingPointError(
            f"The training diverged at step {step}: {terms}. This step was not saved; "
            + (
                f"the last good checkpoint is {self.checkpoints.folder / str(last)}. "
                if last
                else "there is no checkpoint yet. "
            )
            + "Start a new run (another --workdir) with a smaller --config.optimizer."
            "learning_rate, a warm-up (--config.optimizer.warmup_steps) or gradient clipping "
            "(--config.optimizer.clip_norm=1.0)."
        )

    def finish(self) -> dict[str, Any]:
        """Evaluates the best checkpoint on the test set; prints and writes the results."""
        config, checkpoints = self.config, self.checkpoints
        checkpoints.wait()
        step = checkpoints.best[0] if checkpoints.best else checkpoints.latest
        if step is None:
            raise ValueError(f"config.train.steps={config.train.steps}: nothing was trained.")
        validation = checkpoints.metrics(step)
        file = self.workdir / RESULTS_FILE
        plain = config_io.to_plain(config)
        setting = {key: plain[key] for key in ("data", "target", "evaluation")}
        for places in (setting["data"], setting["target"]):
            for key in ("data_dir", "manual_dir", "workers"):
                places.pop(key, None)
        wanted = {"step": step, "setting": setting}
        done = distributed.of_first(paths.read_json(file)) or {}
        if wanted.items() <= done.items():
            self.report.say(f"This run is already complete; its results are in {file}.")
            self.compare(done, step)
            return done
        evaluation = config.evaluation
        test, details = validation if self.test else {}, dict[str, Any]()
        alike = self.test and self.validation and self.test.notes == self.validation.notes
        if self.test and (not alike or not validation or evaluation.shortlists):
            best = checkpoints.restore(step, self.setup.abstract)
            self.report.say(f"Evaluating step {step}. {self.test.ranked}")
            folder = self.scratch
            if folder is not None:  # of this step, these images and this code
                key = self.test.key(self.setup.model.image_size)
                folder /= f"{step}-{consistency.digest([key])}"
            found = self.test(
                merge_model(self.setup.definition, best),
                progress=True,
                shortlists=evaluation.shortlists,
                folder=folder,
                name=f"{self.test.ranked}, step {step}",
            )
            system, ranked = config.model.system, self.test.ranked
            show(tables.first_table(config, system, ranked, found, f"step {step}"))
            if (tradeoff := shortlist_table(found)) is not None:
                show(tradeoff)
            test, details = found.flat(), found.details()
            per_query.write(self.workdir / per_query.FILE, self.test, found, step)
        lines = read_metrics(self.workdir / METRICS_FILE)
        untrained = {
            key.removeprefix("validation/"): value
            for line in lines
            if line["step"] == 0 and line.get("setting", checkpoints.setting) == checkpoints.setting
            for key, value in line.items()
            if key.startswith("validation/")
        }
        results = wanted | {"test": test, "validation": validation, "untrained": untrained}
        results |= {"test_details": details} if details else {}
        notes = self.test.notes if self.test else {}
        results["notes"] = json.loads(json.dumps(notes))  # lists, as in the file
        if jax.process_index() == 0:
            write_json(file, results)
            if self.scratch is not None:
                shutil.rmtree(self.scratch, ignore_errors=True)
            self.compare(results, step)
        return results

    def compare(self, results: Mapping[str, Any], step: int) -> None:
        """Prints the validation metrics before and after training, if there are any."""
        start = initial_weights.started_from(self.config) or "initial weights"
        before, after = results["untrained"], results["validation"]
        if after and self.validation:
            config, of, before = self.config, self.validation, before if step else {}
            given = config.model.system, of.ranked, before, after, step, start, of.labels
            show(tables.progress_table(config, *given))


def similarities(validation: Evaluator, model: Retriever) -> np.ndarray:
    """Cosine similarities between about a batch of sketches and of photos of all classes."""
    model, found = evaluation_view(model), []
    for items in (validation.sketches, validation.photos):
        some = items.every(max(1, len(items) // validation.config.evaluation.batch_size))
        batches = validation.batches(some, model.image_size)
        features, _ = encode(model, batches, items.modality, sharding=validation.sharding)
        features = jax.tree.map(jax.numpy.asarray, features)  # they may be kept on the host
        found.append(np.asarray(model.embedding(features)))
    return found[0] @ found[1].T


def introduce(
    report: Reporter,
    config: ConfigDict,
    mesh: Mesh,
    setup: Setup,
    workdir: epath.Path,
    start: int | None,
    changed: Mapping[str, tuple[Any, Any]],
) -> None:
    """Prints what is about to run, on which devices, and from which step."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(setup.abstract["model"]))
    groups = profiling.parameter_groups(setup.model)
    parts = ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in groups.items())
    begin = initial_weights.started_from(config)
    trained, evaluated = config.data.split or config.data.name, title(config)
    setting = trained if trained == evaluated else f"{trained}, evaluated on {evaluated}"
    report.say(
        f"{config.model.system} on {setting}: {count / 1e6:.1f} M parameters"
        + (f" ({parts})" if len(groups) > 1 else "")
        + f", computing in {config.compute_dtype} on {sharding.describe(mesh)}"
    )
    report.say(
        f"workdir {workdir}: "
        + (
            f"from step 0 ({begin}) to {config.train.steps}"
            if start is None
            else f"resuming from step {start}"
        )
        + (f" (changed: {config_io.describe(changed)})" if changed else "")
    )
    if note := data_selection.unseen_note(config):
        report.say(note)
    if sentence := rescheduled(config, start, changed):
        report.say(sentence)


def facts(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Values that must be the same in all processes of a run, without the data."""
    own = ("data_dir", "manual_dir", "lists", "workers")  # the data themselves are compared
    values = config_io.flat(config_io.to_plain(config))
    shared = {
        f"config.{key}": value for key, value in values.items() if key.rpartition(".")[2] not in own
    }
    return shared | {"--workdir": os.fspath(workdir)} | consistency.code_version()


def data_facts(config: ConfigDict, validation: Evaluator | None) -> dict[str, Any]:
    """The number and a digest of the images, which must be the same in all processes."""
    if not distributed.together():
        return {}
    names = ("training sketches", "training photos", "evaluated sketches", "evaluated photos")
    ranked = (validation.sketches, validation.photos) if validation else ()
    items = (*data_selection.training_items(config), *ranked)
    return {
        name: f"{len(found)} images, {consistency.digest(found.names)}"
        for name, found in zip(names[: len(items)], items, strict=True)
    }


def images_in(batch: Batch) -> int:
    """The number of images in a batch."""
    arrays = [leaf for leaf in jax.tree.leaves(batch) if leaf.ndim >= 4]
    return sum(math.prod(leaf.shape[:-3]) for leaf in arrays)
