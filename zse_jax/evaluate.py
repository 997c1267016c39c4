"""Evaluates a checkpoint on classes that it has not seen in training.

    python -m zse_jax.evaluate --checkpoint=runs/sketchy --output=metrics.json --pictures=pictures
    python -m zse_jax.evaluate --checkpoint=runs/sketchy --report=report.html
    python -m zse_jax.evaluate --checkpoint=runs/sketchy --config.evaluation.test_sketch_stride=20
    python -m zse_jax.evaluate --checkpoint=runs/sketchy --config=configs/cross_sketchy_tuberlin.py

Loads the best model of a workdir (or the one of --step) and ranks a gallery for each sketch of the
unseen classes, by every ranking of the system. The config defines the sketches, the gallery and
which photos are relevant. The first table has the metrics in the convention of the paper that
reports the setting, with 95 % bootstrap intervals and the published values; --all_conventions
prints the others, and --output writes all. Also prints metrics per class and the most confused
classes. The report is an HTML page that works offline; it adds the best, typical and
worst queries, explanations, and a map of the embeddings.

The config is read from the checkpoint: --config.KEY=VALUE overrides a value, --config=FILE replaces
it, to evaluate in another setting. --config.evaluation.shortlists="(100,400)" also measures
two-stage ranking.
"""

import logging
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from data_pipelines import paths
from zse_jax.checkpoints import initial_weights, reading
from zse_jax.evaluation import per_query, report, tables, training_record
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.retrieval.rerank_report import shortlist_table, shortlists_dict
from zse_jax.runtime import cli, config_io, sharding
from zse_jax.runtime.console import show
from zse_jax.runtime.metrics_file import write_json

logger = logging.getLogger(__name__)


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the flags; the default config is the one in --checkpoint."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "checkpoint", None, "The workdir of a training run, or the folder of one step.", values
        )
        help_ = "Evaluate this step of the run; default: its best one."
        flags.DEFINE_integer("step", None, help_, flag_values=values)
        help_ = "If the best step is damaged, evaluate the next best, with a warning."
        flags.DEFINE_bool("allow_fallback", False, help_, values)
        flags.DEFINE_string("output", None, "Write the metrics to this JSON file.", values)
        help_ = "Print the metrics in all conventions of average precision as well."
        flags.DEFINE_bool("all_conventions", False, help_, values)
        help_ = "Write the metrics of every sketch to this .npz file, for zse_jax.compare."
        flags.DEFINE_string("queries", None, help_, values)
        flags.DEFINE_string("pictures", None, "Draw retrieved photos into this folder.", values)
        flags.DEFINE_string(
            "report", None, "Write an HTML report with explanations to this file.", values
        )
        flags.DEFINE_string(
            "scratch",
            None,
            "Keep features and scores in this folder, so that the same command resumes after a "
            "kill. It may become large; delete it afterwards.",
            values,
        )

    define(options)
    first = flags.FlagValues()
    define(first)
    first(argv, known_only=True)
    where = {"flag_values": options, "sys_argv": list(argv)}
    file, overrides = cli.config_arguments(argv)
    if first.checkpoint and file is None:
        config = reading.read_config(
            first.checkpoint, first.step, allow_fallback=first.allow_fallback
        )
        config_io.check_keys(config, overrides)
        help_ = "The config of the checkpoint."
        config_flags.DEFINE_config_dict("config", config, help_, **where)
    else:
        help_ = "Evaluate in the setting of this config instead of the checkpoint's."
        config_flags.DEFINE_config_file("config", None, help_, **where)


def main(options: flags.FlagValues) -> None:
    """Evaluates the checkpoint of the flags."""
    path, config = options.checkpoint, options.config
    if not path:
        raise ValueError("Give a checkpoint, such as --checkpoint=runs/sketchy. See --help.")
    scratch = paths.local(options.scratch, "--scratch") if options.scratch else None
    cli.require_suffix(options, output=".json", report=".html .htm", pictures="", queries=".npz")
    strides = config.evaluation.test_sketch_stride, config.evaluation.test_photo_stride
    evaluator = Evaluator(config, sharding.make_mesh(**config.mesh), *strides)
    step, retriever = reading.load_step(path, options.step, allow_fallback=options.allow_fallback)
    path = reading.place_of(path, step)  # what follows must not choose again
    evaluator.compare(training_record.of_checkpoint(path))
    evaluator.notes |= initial_weights.notes(reading.read_config(path))
    title = f"{evaluator.ranked}, step {step}"
    print(f"{options.checkpoint}, step {step}. {evaluator.ranked}")
    results = evaluator(
        retriever,
        progress=True,
        shortlists=config.evaluation.shortlists,
        folder=scratch,
        name=title,
    )
    system = reading.read_config(path).model.system  # --config may be that of another system
    subject = f"{options.checkpoint}, step {step}"
    show(tables.first_table(config, system, evaluator.ranked, results, subject))
    if options.all_conventions:
        show(results.table(intervals=True))
    if (tradeoff := shortlist_table(results)) is not None:
        show(tradeoff)
    for ranking in (x for x in results.values if x in retriever.rankings):
        show(results.class_table(ranking))
        show(results.confusion_table(ranking))
    if options.output:
        about = {"checkpoint": str(options.checkpoint), "step": step, "split": config.data.split}
        about["config"] = config_io.to_plain(config)
        write_json(options.output, about | results.to_dict() | shortlists_dict(results))
    if options.queries:
        per_query.write(options.queries, evaluator, results, step)
        print(f"wrote {options.queries}")
    if options.pictures and jax.process_index() == 0:
        report.draw(evaluator, results, retriever.image_size, options.pictures)
        metric = config.evaluation.select.partition("/")[2]
        report.draw_training(path, options.pictures, metric)
    if options.report:
        report.write_report(evaluator, results, retriever, path, options.report)


if __name__ == "__main__":
    cli.run(main, define_flags)
