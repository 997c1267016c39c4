"""How well a checkpoint ranks photos of classes it never saw in training.

    python -m zse_jax.evaluate --checkpoint=runs/sketchy --output=metrics.json --pictures=pictures
    python -m zse_jax.evaluate --checkpoint=runs/sketchy --config.evaluation.test_sketch_stride=20

Restores the best model of a workdir (or the step whose folder is given), ranks the photos of the
split's unseen classes for each of their sketches by every ranking of the system, and prints the
metrics in three conventions (exact, voc, hits) that papers mix. The config comes from inside the
checkpoint: --config.KEY=VALUE changes a value of it, --config=FILE takes another one, to evaluate
on another data set.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict, config_flags
from rich.table import Table

from data_pipelines import loading, splits
from zse_jax import checkpoint, configuration, programs, sharding
from zse_jax.reporting import METRICS_FILE, read_metrics, show
from zse_jax.retrieval import metrics, protocols
from zse_jax.retrievers.base import Modality, Retriever

Values = Mapping[str, float]
"""{"relation/exact/mAP@all": 0.43, ...}: ranking / convention / metric, in [0, 1]."""


WORTH_WORKERS = 4000
"""Images from which on it pays to start processes that decode them, which takes seconds."""


class Evaluator:
    """Ranks the unseen classes' photos for their sketches, as often as it is called.

    Attributes:
      sketches, photos: the items (not read yet) of the unseen classes, thinned by the strides.
      size: how many there are of each, for people.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, sketch_stride: int, photo_stride: int):
        """Opens the data set of `config.data`, preparing it first where it is not there.

        Raises:
          ValueError: unknown names, or a batch that does not divide over the mesh.
          FileNotFoundError: the data set is not on this machine.
        """
        sharding.check_batch_size(
            mesh, config.evaluation.batch_size, "config.evaluation.batch_size"
        )
        self._config, self._sharding = config, sharding.batch_sharding(mesh)
        classes = splits.get(config.data.split).unseen
        self.sketches = load_items(config, "sketch", classes).every(sketch_stride)
        self.photos = load_items(config, "photo", classes).every(photo_stride)
        self.size = f"{len(self.sketches):,} sketches x {len(self.photos):,} photos"

    def __call__(self, retriever: Retriever, **options: Any) -> protocols.Evaluation:
        """What `retriever` reaches; `options` are those of `protocols.zero_shot`."""
        return protocols.zero_shot(
            retriever,
            self._batches(self.sketches, retriever.image_size),
            self._batches(self.photos, retriever.image_size),
            sharding=self._sharding,
            **options,
        )

    def _batches(self, items: loading.Items, image_size: int) -> Any:
        return loading.evaluation_batches(
            items,
            image_size=image_size,
            batch_size=self._config.evaluation.batch_size // jax.process_count(),
            workers=self._config.data.workers if len(items) > WORTH_WORKERS else 0,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )


def load_items(config: ConfigDict, modality: Modality, classes: Sequence[str]) -> loading.Items:
    """The items of one modality of `classes` in the data set of `config.data`."""
    data = config.data
    return loading.load_items(
        data.name,
        modality,
        classes,
        data_dir=data.data_dir,
        manual_dir=data.manual_dir,
        skip_unreadable=data.skip_unreadable,
    )


def check_select(select: str, rankings: Iterable[str]) -> None:
    """Raises ValueError unless `config.evaluation.select` is a metric of a system's `rankings`."""
    known = [
        f"{ranking}/{convention}/{name}"
        for ranking in rankings
        for convention in metrics.CONVENTIONS
        for name in metrics.METRICS
    ]
    if select not in known:
        raise ValueError(
            f"config.evaluation.select={select!r} is no metric of this system: did you mean "
            f"{configuration.nearest(select, known)!r}?"
        )


def comparison(before: Values, after: Values, step: int, size: str) -> Table:
    """What training brought: "untrained -> step N" for every ranking, convention and metric."""
    table = Table(
        title=f"Unseen classes: untrained \N{RIGHTWARDS ARROW} step {step}",
        caption=f"percent; {size}",
    )
    for name in ("ranking", "convention", *metrics.METRICS):
        table.add_column(name, justify="right" if name in metrics.METRICS else "left")
    for row in dict.fromkeys(key.rpartition("/")[0] for key in after):
        cells = (
            "\N{RIGHTWARDS ARROW}".join(
                f"{100 * values[f'{row}/{name}']:.1f}" for values in (before, after) if values
            )
            for name in metrics.METRICS
        )
        table.add_row(*row.split("/"), *cells)
    return table


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line of evaluation; the config's default is the one inside --checkpoint."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "checkpoint", None, "A training run's workdir, or one step's folder.", values
        )
        flags.DEFINE_string("output", None, "Write the metrics to this JSON file.", values)
        flags.DEFINE_string("pictures", None, "Draw retrieved photos into this folder.", values)

    define(options)
    first = flags.FlagValues()
    define(first)
    first(argv, known_only=True)
    where = {"flag_values": options, "sys_argv": list(argv)}
    file, overrides = programs.config_arguments(argv)
    if first.checkpoint and file is None:
        config = checkpoint.read_config(first.checkpoint)
        configuration.check_keys(config, overrides)
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
    step, retriever = checkpoint.step_of(path), checkpoint.load(path)
    print(f"{path}, step {step}, on unseen classes of {config.data.split}: {evaluator.size}")
    results = evaluator(retriever, progress=True, keep_similarities=bool(options.pictures))
    show(results.table(f"Unseen classes of {config.data.split}, step {step}"))
    if options.output:
        about = {"checkpoint": str(path), "step": step, "split": config.data.split}
        about["config"] = configuration.to_plain(config)
        write_json(options.output, about | results.to_dict())
    if options.pictures:
        draw(evaluator, results, retriever.image_size, options.pictures)
        draw_training(path, options.pictures)


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes `content` to the file `path`, creating its folder."""
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")


def draw(evaluator: Evaluator, results: protocols.Evaluation, image_size: int, folder: str) -> None:
    """Draws what each ranking finds for a sketch of every unseen class.

    Args:
      evaluator: whose images `results` ranks.
      results: with similarities.
      image_size: of the drawn images, in pixels.
      folder: gets a picture for each ranking, retrieved-RANKING.png.
    """
    from zse_jax.explain import figures  # matplotlib, which training does not need

    _, queries = np.unique(results.sketch_labels, return_index=True)
    sketches = _Images(evaluator.sketches.select(queries), image_size)
    for ranking, similarity in results.similarities.items():
        figure = figures.retrieval_grid(
            sketches,
            _Images(evaluator.photos, image_size),
            similarity[queries],
            sketch_labels=results.sketch_labels[queries],
            photo_labels=results.photo_labels,
            class_names=evaluator.sketches.class_names,
            title=f"The photos nearest to a sketch, by {ranking}",
        )
        _save(figure, folder, f"retrieved-{ranking}.png")


def draw_training(path: str | os.PathLike, folder: str) -> None:
    """Draws the training curves into `folder`, if the checkpoint at `path` lies in a workdir."""
    from zse_jax.explain import figures

    path = checkpoint.absolute(path)
    for workdir in (path, *path.parents[:2]):
        if (workdir / METRICS_FILE).exists():
            records = read_metrics(workdir / METRICS_FILE)
            _save(figures.training_curves(records), folder, "training.png")
            return


class _Images:
    """The prepared images of some items, read when asked for."""

    def __init__(self, items: loading.Items, size: int):
        self._items, self._size = items, size

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "h w 3"]:
        return self._items.image(index, self._size)


def _save(figure: Any, folder: str, name: str) -> None:
    file = epath.Path(folder) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        figure.savefig(stream, format="png", dpi=150)
    print(f"wrote {file}")


if __name__ == "__main__":
    programs.run(main, define_flags)
