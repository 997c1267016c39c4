"""Compares training runs: configs, metrics with intervals of the difference, training curves.

    python -m zse_jax.compare runs/a runs/b
    python -m zse_jax.compare runs/a runs/b runs/c --output=compare.html

Each argument is the workdir of a run. All runs are compared with the first one. Differences have
95 % paired bootstrap intervals over the sketches that the runs have ranked; for other unseen
classes with --intervals=classes. Runs keep the metrics of every sketch in queries.npz; for a run
without this file, the command prints how to write it. Runs that ranked other photos, or by another
protocol, are shown side by side without a difference.
"""

from collections.abc import Sequence

from absl import flags

from data_pipelines import paths
from zse_jax.evaluation import comparison
from zse_jax.retrieval.intervals import OVER
from zse_jax.runtime import cli
from zse_jax.runtime.console import say, show


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "output", None, "Write the comparison, with curves, to this HTML file.", options
    )
    help_ = "Intervals for other sketches of the same classes, or for other unseen classes."
    flags.DEFINE_enum("intervals", OVER[0], OVER, help_, flag_values=options)


def main(options: flags.FlagValues, *folders: str) -> None:
    """Compares the runs in `folders`."""
    cli.require_suffix(options, output=".html .htm")
    runs = comparison.read_runs(folders)
    found = comparison.compare(runs, options.intervals)
    if (table := comparison.config_table(runs)) is None:
        say("The configs are the same.")
    else:
        show(table)
    show(comparison.training_table(runs))
    for remark in comparison.remarks(found):
        say(remark)
    if found.rows:
        show(comparison.metric_table(found, comparison.first_rows(found)))
    if options.output:
        paths.replace(options.output, comparison.page(found))
        say(f"wrote {options.output}")


if __name__ == "__main__":
    cli.run(main, define_flags, arguments=(cli.ANY_NUMBER,))
