r"""Trains a sketch-based image retrieval system, evaluating on unseen classes as it goes.

    python -m zse_jax.main --config=configs/sketchy.py --workdir=runs/sketchy
    python -m zse_jax.main --config=configs/sketchy.py:Ti/16 --workdir=runs/tiny \
        --config.data.manual_dir=~/Sketchy --config.train.steps=2000

WORKDIR gets checkpoints/ (the best and the last), metrics.jsonl and TensorBoard files while it
runs, and metrics.json at the end. Started again with the same command, a run goes on where its last
checkpoint stands, to the bit. Every value of the config file can be set by --config.KEY=VALUE.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from zse_jax.runtime import cli


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line of training."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "What to train: a file in configs/, with an optional :variant.",
        flag_values=options,
        sys_argv=list(argv),
    )
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints and metrics go (runs/NAME-OF-THE-CONFIG).", options
    )


def main(options: flags.FlagValues) -> None:
    """Trains what the flags say."""
    if options.config is None:
        raise ValueError("Say what to train, such as --config=configs/sketchy.py. See --help.")
    from zse_jax.training.loop import train  # only now: --help and wrong flags need not wait for it

    file, _, arg = config_flags.get_config_filename(options["config"]).partition(":")
    name = re.sub(r"[^\w.=]+", "-", f"{Path(file).stem} {arg}").strip("-")
    train(options.config, options.workdir or f"runs/{name}")


if __name__ == "__main__":
    cli.run(main, define_flags)
