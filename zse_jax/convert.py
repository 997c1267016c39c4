r"""Converts published weights to a checkpoint, and checkpoints to published weights.

    python -m zse_jax.convert --from=zse_sbir best_checkpoint.pth runs/published
    python -m zse_jax.convert --to=zse_sbir runs/sketchy best_checkpoint.safetensors

SOURCE is a file of weights of PyTorch, numpy (.npz) or safetensors, or a folder with one. It is
read without PyTorch, and no code in it is executed. OUTPUT is a new folder, which `zse_jax.load`,
every `--checkpoint` and `--config.init_from` accept. The publisher is recognised by the parameter
names; --from checks it. Sizes are read from the arrays; set those that cannot be inferred:
--config.model.heads=12, and --config.model.image_size=384 to interpolate Google's positions. With
--to, SOURCE is a checkpoint and OUTPUT a file with the publisher's parameter names. The published
code reads .pth:

    python -c "import torch, safetensors.torch as s; torch.save(s.load_file('best.safetensors'), \
        'best.pth')"
"""

import functools
import os
from collections.abc import Sequence

import jax
from absl import flags
from flax import nnx
from ml_collections import ConfigDict, config_flags

from data_pipelines import paths
from zse_jax.checkpoints import conversion, reading, writing
from zse_jax.pretrained import files, publishers
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Retriever
from zse_jax.runtime import cli, config_io


def convert(
    source: str | os.PathLike, output: str | os.PathLike, config: ConfigDict | None = None
) -> Retriever:
    """Writes a checkpoint of a publisher's weights, and returns its retriever.

    Args:
      source: a file; see `files.read`.
      output: a new or an empty folder.
      config: of the checkpoint; None: `the one that `conversion.recognised` gives.

    Raises:
      FileNotFoundError: there is no such file.
      FileExistsError: `output` is not empty.
      ValueError: an unknown publisher, or sizes that do not fit.
    """
    folder = reading.new_folder(output)
    weights = _weights(os.fspath(source))
    config = config or conversion.recognised(weights, source)[1]
    config = config.copy_and_resolve_references()
    config.init_from = os.fspath(source)
    retriever = conversion.built(weights, config, source)
    writing.write(folder, 0, retriever, config)
    return retriever


def export(source: str | os.PathLike, output: str | os.PathLike, publisher: str) -> int:
    """Writes a checkpoint's weights with a publisher's names, as safetensors.

    Returns:
      The number of arrays.

    Raises:
      FileNotFoundError: there is no checkpoint.
      FileExistsError: `output` exists.
      ValueError: an unknown publisher, a system that it does not publish, or another suffix.
    """
    if publisher not in publishers.EXPORTS:
        known = ", ".join(publishers.EXPORTS)
        raise ValueError(f"--to={publisher}: checkpoints can be exported for {known}.")
    file = paths.local(output, "OUTPUT")
    if file.suffix != ".safetensors":
        raise ValueError(f"OUTPUT {file}: name a file that ends with .safetensors.")
    if file.exists():
        raise FileExistsError(f"{file} exists and is not overwritten: name another file.")
    arrays = publishers.export(publisher, reading.load(source), os.fspath(source))
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, arrays)
    return len(arrays)


@functools.lru_cache(maxsize=1)
def _weights(source: str) -> files.Weights:
    """The contents of a file, read once for the flags and the conversion."""
    return conversion.read(source)


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the command line; the default config is the one that fits the weights."""

    def define(values: flags.FlagValues) -> None:
        known = list(publishers.PUBLISHERS)
        flags.DEFINE_enum("from", None, known, "Publisher of SOURCE; None: recognised.", values)
        flags.DEFINE_enum("to", None, [*publishers.EXPORTS], "Publisher to export for.", values)
        help_ = "System to convert to; None: the first that accepts the weights."
        flags.DEFINE_enum("system", None, [*registry.SYSTEMS], help_, values)

    define(options)
    first = flags.FlagValues()
    define(first)
    given = [argument for argument in first(argv, known_only=True)[1:] if argument[:1] != "-"]
    file, overrides = cli.config_arguments(argv)
    if file is not None:
        raise ValueError("convert takes no --config: the weights determine it. See --help.")
    if first.to is None and len(given) == 2 and not {"--help", "--helpfull", "-h"} & set(argv):
        reading.new_folder(given[1])
        found, config = conversion.recognised(_weights(given[0]), given[0], first.system)
        if (wanted := first["from"].value) not in (None, found):
            raise ValueError(f"{given[0]} contains weights of {found}, not of {wanted}.")
        config_io.check_keys(config, overrides)
        config_flags.DEFINE_config_dict(
            "config", config, "Of the weights.", flag_values=options, sys_argv=list(argv)
        )
    elif overrides:
        raise ValueError("--config.KEY=VALUE is only for SOURCE OUTPUT without --to. See --help.")


def main(options: flags.FlagValues, source: str, output: str) -> None:
    """Converts or exports as the flags specify."""
    if options.to:
        count = export(source, output, options.to)
        print(f"wrote {output}: {count} arrays with the names of {options.to}")
        settings = _uninferred(options.to, reading.read_config(source))
        print(f"  Not stored in the file, so keep them with it: {settings}.")
        return
    retriever = convert(source, output, options.config)
    values = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(retriever, nnx.Param)))
    print(f"wrote {output}: {type(retriever).__name__}, {values / 1e6:,.1f} million parameters")
    weights = _weights(source)
    for note in weights.notes:
        print(f"  {note}")
    publisher = publishers.publisher_of(weights.arrays)
    settings = _uninferred(publisher, options.config)
    print(f"  Not inferred from the weights: {settings}. To change: --config.model.NAME=VALUE.")
    if random := registry.system(options.config.model.system).pretrained[publisher].random:
        print(f"  Not in the weights, and random values until trained: {', '.join(random)}.")


def _uninferred(publisher: str, config: ConfigDict) -> str:
    names = registry.system(config.model.system).pretrained[publisher].uninferred
    return ", ".join(f"{name}={config.model[name]}" for name in names)


if __name__ == "__main__":
    cli.run(main, define_flags, arguments=("SOURCE", "OUTPUT"))
