r"""Trains a sketch-based image retrieval system, evaluating on unseen classes as it goes.

    python -m zse_jax.main --config=configs/sketchy.py --workdir=runs/sketchy
    python -m zse_jax.main --config=configs/sketchy.py:Ti/16 --workdir=runs/tiny \
        --config.data.manual_dir=~/Sketchy --config.train.steps=2000

Writes checkpoints/ (the best and the last ones), metrics.jsonl and TensorBoard files to the workdir
during training, config.yaml at the start, and metrics.json at the end. The same command resumes an
interrupted run from its last checkpoint, with bit-identical results; with more --config.train.steps
it extends a finished one. --config.KEY=VALUE overrides any value of the config: docs/config.md
lists all keys, and --print_config those of a config, with their values.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections.config_flags import config_flags

from zse_jax.runtime import cli, config_help
from zse_jax.runtime.console import show


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the flags."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The config: a file in configs/, with an optional :variant.",
        flag_values=options,
        sys_argv=list(argv),
    )
    flags.DEFINE_string(
        "workdir", None, "Folder for checkpoints and metrics (default: runs/CONFIG).", options
    )
    flags.DEFINE_bool(
        "print_config", False, "Print every key, its value, type and meaning, then stop.", options
    )
    flags.DEFINE_bool(
        "dry_run", False, "Print data, parameters, memory and time of the run, then stop.", options
    )


def main(options: flags.FlagValues) -> None:
    """Trains the config of the flags."""
    if options.config is None:
        raise ValueError("Give a config, such as --config=configs/sketchy.py. See --help.")
    file, _, arg = config_flags.get_config_filename(options["config"]).partition(":")
    if options.print_config:
        unchanged = config_flags.ConfigFileFlagParser("config").parse(file)
        show(config_help.table(options.config, unchanged))
        return
    if options.dry_run:
        from zse_jax.training.dry_run import dry_run

        dry_run(options.config)
        return
    from zse_jax.training.loop import train  # here, so that --help and flag errors are fast

    name = re.sub(r"[^\w.=]+", "-", f"{Path(file).stem} {arg}").strip("-")
    train(options.config, options.workdir or f"runs/{name}")


if __name__ == "__main__":
    cli.run(main, define_flags)
