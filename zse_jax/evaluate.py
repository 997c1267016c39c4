"""How well a checkpoint ranks photos of classes it never saw in training.

    python -m zse_jax.evaluate --checkpoint=runs/sketchy --output=metrics.json --pictures=pictures
    python -m zse_jax.evaluate --checkpoint=runs/sketchy --report=report.html
    python -m zse_jax.evaluate --checkpoint=runs/sketchy --config.evaluation.test_sketch_stride=20
    python -m zse_jax.evaluate --checkpoint=runs/sketchy --config=configs/cross_sketchy_tuberlin.py

Restores the best model of a workdir (or the step whose folder is given) and ranks a gallery for
each sketch of the unseen classes, by every ranking of the system: which sketches, which gallery and
what counts as right is the setting of the config. Prints the metrics in three conventions (exact,
voc, hits) that papers mix, or Acc@k for fine-grained settings, with 95 % bootstrap intervals, each
class by itself, and the classes that are confused most. The report is an HTML page that opens
offline: it adds the best, typical and worst queries, why their photos were found, and a map.

The config comes from inside the checkpoint: --config.KEY=VALUE changes a value of it, --config=FILE
takes another one, to evaluate in another setting. Two-stage ranking is measured beside the exact
one with --config.evaluation.shortlists="(100,400)".
"""

import logging
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from zse_jax.checkpoints import reading
from zse_jax.evaluation import report
from zse_jax.evaluation.evaluator import Evaluator, trained_on, write_json
from zse_jax.retrieval.rerank_report import shortlist_table, shortlists_dict
from zse_jax.runtime import cli, config_io, sharding
from zse_jax.runtime.console import show

logger = logging.getLogger(__name__)


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line of evaluation; the config's default is the one inside --checkpoint."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "checkpoint", None, "A training run's workdir, or one step's folder.", values
        )
        flags.DEFINE_string("output", None, "Write the metrics to this JSON file.", values)
        flags.DEFINE_string("pictures", None, "Draw retrieved photos into this folder.", values)
        flags.DEFINE_string(
            "report", None, "Write an HTML page with everything, and why, to this file.", values
        )
        flags.DEFINE_string(
            "scratch",
            None,
            "Keep encoded features and finished scores in this folder: the same command goes on "
            "after a kill. Large; delete it afterwards.",
            values,
        )

    define(options)
    first = flags.FlagValues()
    define(first)
    first(argv, known_only=True)
    where = {"flag_values": options, "sys_argv": list(argv)}
    file, overrides = cli.config_arguments(argv)
    if first.checkpoint and file is None:
        config = reading.read_config(first.checkpoint)
        config_io.check_keys(config, overrides)
        config_flags.DEFINE_config_dict("config", config, "Of the checkpoint.", **where)
    else:
        help_ = "Evaluate on the data of this config, not of the checkpoint's."
        config_flags.DEFINE_config_file("config", None, help_, **where)


def main(options: flags.FlagValues) -> None:
    """Evaluates what the flags say."""
    path, config = options.checkpoint, options.config
    if not path:
        raise ValueError("Say what to evaluate, such as --checkpoint=runs/sketchy. See --help.")
    strides = config.evaluation.test_sketch_stride, config.evaluation.test_photo_stride
    evaluator = Evaluator(config, sharding.make_mesh(**config.mesh), *strides)
    step, retriever = reading.load_step(path)
    evaluator.notes |= trained_on(path, config, evaluator.sketches.class_names)
    title = f"Unseen classes of {evaluator.title}, step {step}"
    print(f"{path}, step {step}, on unseen classes of {evaluator.title}: {evaluator.size}")
    results = evaluator(
        retriever,
        progress=True,
        shortlists=config.evaluation.shortlists,
        folder=options.scratch,
        name=title,
    )
    show(results.table(intervals=True))
    if (tradeoff := shortlist_table(results)) is not None:
        show(tradeoff)
    for ranking in (x for x in results.values if x in retriever.rankings):
        show(results.class_table(ranking))
        show(results.confusion_table(ranking))
    if options.output:
        about = {"checkpoint": str(path), "step": step, "split": config.data.split}
        about["config"] = config_io.to_plain(config)
        write_json(options.output, about | results.to_dict() | shortlists_dict(results))
    if options.pictures and jax.process_index() == 0:
        report.draw(evaluator, results, retriever.image_size, options.pictures)
        metric = config.evaluation.select.partition("/")[2]
        report.draw_training(path, options.pictures, metric)
    if options.report:
        report.write_report(evaluator, results, retriever, path, options.report)


if __name__ == "__main__":
    cli.run(main, define_flags)
