"""Learns binary codes for a trained system on its seen classes and measures them on unseen ones.

    python -m zse_jax.hashing --checkpoint=runs/efficient_sketchy --output=codes.json

Embeds sketches and photos of the seen classes (at most --examples of each, spread evenly), learns
the projection to --bits signs from them, writes it to --projection (codes.npz in the workdir), and
ranks the unseen classes twice, by the real-valued embedding and by Hamming distance, with the
protocol of the checkpoint's config. Works for every system: all have an embedding.
"""

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags
from rich.table import Table

from zse_jax.checkpoints import initial_weights, reading
from zse_jax.evaluation import domain_means, training_record
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.retrieval import codes
from zse_jax.retrievers.base import Encoder
from zse_jax.runtime import cli, config_io, sharding
from zse_jax.runtime.console import show
from zse_jax.runtime.metrics_file import write_json

FILE = "codes.npz"


def measure(
    retriever: Encoder, projection: codes.Projection, evaluator: Evaluator
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics by the embedding and by the codes, under the same names."""
    rankings = [_embedding_ranking(retriever)]
    real = evaluator(retriever, rankings=rankings, expansion=0, progress=True)
    coded = codes.BinaryCodes(retriever, projection)
    short = evaluator(coded, rankings=None, expansion=0, progress=True)
    return _unnamed(real.flat()), _unnamed(short.flat())


def table(
    real: dict[str, float],
    short: dict[str, float],
    bits: int,
    size: str,
    classes: str = "Unseen classes",
    labels: Mapping[str, str] | None = None,
) -> Table:
    """The metrics of embedding and codes for `classes`, and the loss in points.

    `labels` are the names of the metrics to show, see `results.metric_labels`.
    """
    made = Table(title=f"{classes}: embedding and {bits}-bit codes", caption=f"percent; {size}")
    for name in ("metric", "embedding", f"{bits} bits", "lost"):
        made.add_column(name, justify="left" if name == "metric" else "right")
    for name, value in real.items():
        row = value, short[name], value - short[name]
        scope, _, metric = name.rpartition("/")
        shown = f"{scope}/{(labels or {}).get(metric, metric)}"
        made.add_row(shown, *(f"{100 * x:.1f}" for x in row))
    return made


def _unnamed(flat: Mapping[str, float]) -> dict[str, float]:
    """The metrics without the name of the ranking."""
    return {key.partition("/")[2]: value for key, value in flat.items()}


def _embedding_ranking(retriever: Encoder) -> str:
    names = [name for name, kind in retriever.rankings.items() if kind == "embedding"]
    if not names:
        raise ValueError(
            f"{type(retriever).__name__} does not rank by an embedding, so it has no codes."
        )
    return names[0]


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line; the config's default is the one inside --checkpoint."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("checkpoint", None, "A workdir, or the folder of one step.", values)
        flags.DEFINE_integer(
            "bits", 64, "Length of a code, a multiple of 32.", 1, flag_values=values
        )
        flags.DEFINE_integer(
            "examples", 20_000, "Most seen sketches, and photos, to learn from.", 1,
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_string("projection", None, "Output file for the projection, .npz.", values)
        flags.DEFINE_string("output", None, "Write the metrics to this JSON file.", values)

    define(options)
    first = flags.FlagValues()
    define(first)
    first(argv, known_only=True)
    where = {"flag_values": options, "sys_argv": list(argv)}
    if first.checkpoint:
        config = reading.read_config(first.checkpoint)
        config_io.check_keys(config, cli.config_arguments(argv)[1])
        config_flags.DEFINE_config_dict("config", config, "The checkpoint's config.", **where)


def main(options: flags.FlagValues) -> None:
    """Learns, writes and measures the codes."""
    path = options.checkpoint
    if not path:
        raise ValueError("--checkpoint is missing: pass a workdir, such as runs/x. See --help.")
    cli.require_suffix(options, output=".json", projection=".npz")
    config = options.config
    mesh = sharding.make_mesh(**config.mesh)
    evaluator = Evaluator(
        config, mesh, config.evaluation.test_sketch_stride, config.evaluation.test_photo_stride
    )
    evaluator.compare(training_record.of_checkpoint(path))
    retriever = reading.load(path)
    seen = domain_means.training_embeddings(
        retriever, retriever.embed, config, mesh, options.examples, progress=True
    )
    projection = codes.learn(np.concatenate(seen), options.bits)
    file = reading.absolute(options.projection or workdir_of(path) / FILE)
    if jax.process_index() == 0:
        codes.save(projection, file)
        print(f"wrote {file}")
    real, short = measure(retriever, projection, evaluator)
    start = initial_weights.notes(reading.read_config(path))
    about_size = "; ".join([evaluator.size, *(f"started from {x}" for x in start.values())])
    show(table(real, short, options.bits, about_size, str(evaluator.ranked), evaluator.labels))
    if options.output:
        notes = evaluator.notes | start
        about = {"checkpoint": str(path), "bits": options.bits, "notes": notes}
        write_json(options.output, about | {"embedding": real, "codes": short})


def workdir_of(path: str | os.PathLike) -> epath.Path:
    """The workdir of a checkpoint, given as a workdir or as the folder of one step."""
    found = reading.absolute(path)
    return found.parent.parent if found.name.isdigit() else found


if __name__ == "__main__":
    cli.run(main, define_flags)
