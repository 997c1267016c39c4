r"""Other people's weights as a checkpoint of ours, and back.

    python -m zse_jax.convert --from=zse_sbir best_checkpoint.pth runs/published
    python -m zse_jax.convert --to=zse_sbir runs/sketchy best_checkpoint.safetensors

SOURCE is a file of weights (.pth and .pt need PyTorch; .npz and .safetensors nothing), OUTPUT a new
folder, which `zse_jax.load` and every `--checkpoint` take, and `--config.init_from` to start
training from. Whose weights they are is recognised; --from checks it. Their sizes are read from the
arrays; where shapes do not tell, say it: --config.model.heads=12, and
--config.model.image_size=384 for other positions of Google's. With --to, SOURCE is a checkpoint and
OUTPUT a file with the publisher's names. To give it to the published code, which reads .pth:

    python -c "import torch, safetensors.torch as s; torch.save(s.load_file('best.safetensors'), \
        'best.pth')"
"""

import functools
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import ConfigDict, config_flags

from zse_jax import retrievers
from zse_jax.checkpoints import reading, writing
from zse_jax.pretrained import files, publishers, sizes, zse_sbir
from zse_jax.retrievers.base import Retriever
from zse_jax.retrievers.zse import ZSE
from zse_jax.runtime import cli, config_io

CONFIGS = {
    "zse": "configs.default",
    "clip_prompt": "configs.clip_default",
    "efficient_cnn": "configs.efficient_default",
}
"""The config that a system's checkpoints start from."""

EXPORTS = ("zse_sbir",)
"""Publishers whose names a checkpoint can be written with."""


def config_of(publisher: str, arrays: Mapping[str, np.ndarray]) -> ConfigDict:
    """The config of the system that a publisher's arrays are for, at their size.

    Raises:
      ValueError: the arrays do not tell their size.
    """
    system = publishers.PUBLISHERS[publisher].system
    config = import_module(CONFIGS[system]).get_config()
    with config.unlocked():
        config.model.update(sizes.model_settings(publisher, arrays))
    return config


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    publisher: str | None = None,
    config: ConfigDict | None = None,
) -> Retriever:
    """Writes a checkpoint of a publisher's weights; the system that is in it.

    Args:
      source: a file; see `files.read`.
      output: a new or an empty folder.
      publisher: a key of `publishers.PUBLISHERS`; None: recognised.
      config: of the checkpoint; None: `config_of` the weights.

    Raises:
      FileNotFoundError: there is no such file.
      FileExistsError: `output` holds something.
      ValueError: nobody's weights, another publisher's, or sizes that do not fit.
    """
    folder = reading.new_folder(output)
    arrays = _arrays(os.fspath(source))
    found = publishers.publisher_of(arrays)
    config = config or config_of(found, arrays)
    settings, seed = config.model.to_dict(), config.seed

    @nnx.jit
    def create() -> Retriever:  # one compilation in place of hundreds of small ones
        return retrievers.create(settings, rngs=nnx.Rngs(params=seed, dropout=seed + 1))

    retriever = create()
    publishers.fill(retriever, arrays, os.fspath(source), config.model.system, publisher)
    writing.write(folder, 0, retriever, config)
    return retriever


def export(source: str | os.PathLike, output: str | os.PathLike, publisher: str) -> int:
    """Writes a checkpoint's weights by a publisher's names, as safetensors; how many arrays.

    Raises:
      FileNotFoundError: there is no checkpoint.
      FileExistsError: `output` is there.
      ValueError: an unknown publisher, a system that is not its own, or another suffix.
    """
    if publisher not in EXPORTS:
        raise ValueError(f"--to={publisher}: checkpoints are written for {', '.join(EXPORTS)}.")
    file = Path(output).expanduser()
    if file.suffix != ".safetensors":
        raise ValueError(f"OUTPUT {file}: name a file that ends with .safetensors.")
    if file.exists():
        raise FileExistsError(f"{file} is there, and is not overwritten: name another file.")
    retriever = reading.load(source)
    if not isinstance(retriever, ZSE):
        raise ValueError(
            f"{source} holds a {type(retriever).__name__}, and {publisher} publishes ZSE: there "
            "are no such names for its parameters."
        )
    arrays = zse_sbir.export(retriever)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, arrays)
    return len(arrays)


@functools.lru_cache(maxsize=1)
def _arrays(source: str) -> dict[str, np.ndarray]:
    """The arrays in a file; read once, though first the flags and then the program ask for it."""
    return files.read(source)


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line; the config's default is the one that fits the weights."""

    def define(values: flags.FlagValues) -> None:
        known = list(publishers.PUBLISHERS)
        flags.DEFINE_enum("from", None, known, "Whose weights; by default recognised.", values)
        flags.DEFINE_enum("to", None, [*EXPORTS], "Write a checkpoint by these names.", values)

    define(options)
    first = flags.FlagValues()
    define(first)
    given = [argument for argument in first(argv, known_only=True)[1:] if argument[:1] != "-"]
    file, overrides = cli.config_arguments(argv)
    if file is not None:
        raise ValueError("A conversion takes no --config: the weights decide it. See --help.")
    if first.to is None and len(given) == 2 and not {"--help", "--helpfull", "-h"} & set(argv):
        reading.new_folder(given[1])
        arrays = _arrays(given[0])
        config = config_of(_publisher(arrays, first["from"].value, given[0]), arrays)
        config_io.check_keys(config, overrides)
        config_flags.DEFINE_config_dict(
            "config", config, "Of the weights.", flag_values=options, sys_argv=list(argv)
        )
    elif overrides:
        raise ValueError("Only a conversion to a checkpoint takes --config: SOURCE, then OUTPUT.")


def _publisher(arrays: Mapping[str, Any], wanted: str | None, source: str) -> str:
    found = publishers.publisher_of(arrays)
    if wanted not in (None, found):
        raise ValueError(f"{source} holds the weights of {found}, not of {wanted}.")
    return found


def main(options: flags.FlagValues, source: str, output: str) -> None:
    """Converts what the command line says."""
    if options.to:
        count = export(source, output, options.to)
        print(f"wrote {output}: {count} arrays by the names of {options.to}")
        told = _untold(options.to, reading.read_config(source))
        print(f"  Arrays do not tell {told}: keep that with them.")
        return
    publisher = options["from"].value
    retriever = convert(source, output, publisher, options.config)
    values = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(retriever, nnx.Param)))
    print(f"wrote {output}: {type(retriever).__name__}, {values / 1e6:,.1f} million parameters")
    told = _untold(publisher or publishers.publisher_of(_arrays(source)), options.config)
    print(f"  Arrays do not tell {told}: if that is wrong, give --config.model.NAME=VALUE.")


def _untold(publisher: str, config: ConfigDict) -> str:
    return ", ".join(f"{name}={config.model[name]}" for name in sizes.UNTOLD[publisher])


if __name__ == "__main__":
    cli.run(main, define_flags, arguments=("SOURCE", "OUTPUT"))
