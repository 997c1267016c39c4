"""Ablation on Sketchy split 2: trains variations of a config with several seeds, and makes tables.

    python -m tests.benchmarks.ablation run --manual_dir=~/Sketchy [--only lite0 lite2] [--seeds 0]
    python -m tests.benchmarks.ablation table runs/ablation/* [--of=validation]
    python -m tests.benchmarks.ablation rows metrics.json [more.json ...]
    python -m tests.benchmarks.ablation classes metrics.json [--ranking=embedding]

`run` trains each variation of `configs/efficient_sketchy_split2.py` with each seed, in workdirs
named VARIATION-SEED; the same command resumes. Variations that differ from `lite0` only in how they
rank start from its run with this seed, and do not train. What frozen layers compute from the
training images is kept in the folder `shared`, about 1 GB for each seed. `table` prints mean and
the standard deviation over the seeds of each variation as Markdown, from workdirs or files of
`zse_jax.evaluate --output`; with --of=validation, those of the classes by which checkpoints are
selected. `rows` prints every ranking of some evaluations with its 95 % intervals, `classes` one
ranking by class.

The time is that of the training steps alone, without evaluations and without the pass over the
training images before the first step.
"""

import argparse
import collections
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zse_jax.runtime.config_io import flat
from zse_jax.runtime.metrics_file import METRICS_FILE, read_metrics

CONFIG = "configs/efficient_sketchy_split2.py"

_FULL = {"model.frozen_blocks": 0, "train.cache_frozen": False}

VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lite0": ("lite0", {}),
    "no-contrastive": ("lite0", {"model.contrastive_weight": 0.0}),
    "no-classification": ("lite0", {"model.classification_weight": 0.0}),
    "no-knowledge": ("lite0", {"model.knowledge_weight": 0.0}),
    "with-quadruplet": ("lite0", {"model.quadruplet_weight": 1.0}),
    "as-published": ("lite0", {"model.contrastive_weight": 0.0, "model.quadruplet_weight": 1.0,
                               "model.knowledge_weight": 1.0, "model.classifier_scale": 0.0,
                               "model.label_smoothing": 0.0, "model.centred": False,
                               "model.retrieval_layer": "projection"}),
    "projection": ("lite0", {"model.retrieval_layer": "projection"}),
    "features": ("lite0", {"model.retrieval_layer": "features"}),
    "not-centred": ("lite0", {"model.centred": False}),
    "all-blocks": ("lite0", _FULL),
    "lite2": ("lite2", {}),
    "lite2-all-blocks": ("lite2", _FULL),
    "10-images": ("lite0", {"data.images_per_class": 10}),
    "5-images": ("lite0", {"data.images_per_class": 5}),
}  # fmt: skip
"""Name -> variant of the config, and the values that differ from it."""

RANKED_DIFFERENTLY = ("projection", "features", "not-centred")
"""Variations that train as `lite0` does: they are measured on its networks, without training."""

DASH = "\N{EN DASH}"

METRICS = (
    "embedding/exact/mAP@all",
    "embedding/voc/mAP@200",
    "embedding/exact/P@200",
    "embedding+expansion/exact/mAP@all",
    "embedding+expansion/voc/mAP@200",
    "embedding+expansion/exact/P@200",
)


class Run(NamedTuple):
    """The result of one run.

    Attributes:
      values: "ranking/convention/metric" -> value in 0..1.
      minutes: of the training steps; None if not known.
      images_per_second: of training, median; None if not known.
    """

    values: Mapping[str, float]
    minutes: float | None
    images_per_second: float | None


def command(name: str, seed: int, workdir: Path, settings: Mapping[str, Any]) -> list[str]:
    """The command that trains a variation.

    What is the same in several runs is kept in the parent folder of `workdir`.
    """
    variant, changes = VARIATIONS[name]
    shared, images = workdir.parent / "shared", changes.get("data.images_per_class", "all")
    given = {
        "seed": seed,
        "train.frozen_dir": shared / "frozen",
        "teacher.knowledge": shared / f"knowledge-{variant}-{images}-{seed}.npz",
        **settings,
        **changes,
    }
    if name in RANKED_DIFFERENTLY:
        given |= {"init_from": workdir.parent / f"lite0-{seed}", "train.steps": 0}
    return [
        *("python", "-m", "zse_jax.main", f"--config={CONFIG}:{variant}", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in given.items()),
    ]


def read(path: Path, of: str = "test") -> Run:
    """The result in a workdir, or in a file of `zse_jax.evaluate --output`.

    Raises:
      FileNotFoundError: the run has not finished.
      ValueError: it does not have the metrics of `of`.
    """
    file = path / "metrics.json" if path.is_dir() else path
    content = json.loads(file.read_text())
    if of == "test" and "values" in content:
        values = {key.replace(".", "/"): value for key, value in flat(content["values"]).items()}
    else:
        values = content.get(of, {})
    if not values:
        raise ValueError(f"{file} has no metrics of {of!r}: it has {', '.join(content)}.")
    lines = read_metrics(path / METRICS_FILE) if (path / METRICS_FILE).exists() else []
    steps = {line["step"]: line for line in lines if "time/steps_per_second" in line}
    seconds, before = 0.0, 0
    for step, line in sorted(steps.items()):
        seconds += (step - before) / line["time/steps_per_second"]
        before = step
    rates = [line["time/images_per_second"] for line in steps.values()]
    return Run(values, seconds / 60 if steps else None, statistics.median(rates) if steps else None)


def table(runs: Mapping[str, Sequence[Run]], metrics: Sequence[str] = METRICS) -> str:
    """Mean ± standard deviation over the runs of each name, in percent, as Markdown."""
    header = ["variation", "seeds", *metrics, "training, minutes", "images/s"]
    lines = [header, ["---"] * len(header)]
    for name, found in runs.items():
        columns: list[list[float | None]] = [
            [None if (value := run.values.get(key)) is None else 100 * value for run in found]
            for key in metrics
        ]
        columns += [[run.minutes for run in found], [run.images_per_second for run in found]]
        lines.append([name, str(len(found)), *map(_mean, columns)])
    return _markdown(lines)


def read_evaluation(file: Path) -> dict[str, Any]:
    """The content of a file of `zse_jax.evaluate --output`.

    Raises:
      ValueError: it is another file.
    """
    content = json.loads(file.read_text())
    if "values" not in content:
        raise ValueError(
            f"{file} was not written by zse_jax.evaluate: give the file of its --output."
        )
    return content


def rows(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Each ranking of evaluations by `zse_jax.evaluate --output`, with 95 % intervals."""
    lines: list[list[str]] = []
    for name, one in evaluations.items():
        for ranking, scopes in one["values"].items():
            for scope, named in scopes.items():
                if not lines:
                    lines = [["evaluation", "ranking", "", *named], ["---"] * (3 + len(named))]
                bounds = one["intervals_95"][ranking][scope]
                cells = [
                    f"{100 * value:.1f} ({_span(bounds[key])})" for key, value in named.items()
                ]
                lines.append([name, ranking, scope, *cells])
    return _markdown(lines)


def classes(evaluation: Mapping[str, Any], ranking: str) -> str:
    """The classes of an evaluation by one ranking and its first scope, worst first."""
    scope, named = next(iter(evaluation["values"][ranking].items()))
    first = next(iter(named))
    found = [x for x in evaluation["by_class"].values() if x["values"]]
    found.sort(key=lambda x: x["values"][ranking][scope][first])
    lines = [["class", "sketches", "photos", *(f"{key} ({scope})" for key in named)]]
    lines.append(["---"] * len(lines[0]))
    for one in found:
        cells = [f"{100 * value:.1f}" for value in one["values"][ranking][scope].values()]
        lines.append([one["name"], f"{one['sketches']:,}", f"{one['photos']:,}", *cells])
    return _markdown(lines)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return DASH
    text = f"{statistics.mean(known):.1f}"
    return text if len(known) == 1 else f"{text} ± {statistics.stdev(known):.1f}"


def _span(bounds: Sequence[float]) -> str:
    return DASH.join(f"{100 * bound:.1f}" for bound in bounds)


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    programs = parser.add_subparsers(dest="what", required=True)
    one = programs.add_parser("run", help="train the variations")
    one.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    one.add_argument("--manual_dir", required=True, help="the unpacked benchmark")
    one.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    one.add_argument("--only", nargs="+", choices=VARIATIONS, default=list(VARIATIONS))
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one = programs.add_parser("table", help="mean ± standard deviation over seeds")
    one.add_argument("runs", type=Path, nargs="+", help="workdirs or files named NAME-SEED")
    one.add_argument("--of", choices=["test", "validation"], default="test")
    one.add_argument("--metrics", nargs="+", default=METRICS)
    one = programs.add_parser("rows", help="rankings with intervals")
    one.add_argument("files", type=Path, nargs="+", help="of zse_jax.evaluate --output")
    one = programs.add_parser("classes", help="one ranking by class")
    one.add_argument("file", type=Path, help="of zse_jax.evaluate --output")
    one.add_argument("--ranking", default="embedding")
    options = parser.parse_args()
    if options.what == "run":
        settings = {"data.manual_dir": options.manual_dir}
        settings |= dict(pair.split("=", 1) for pair in options.set)
        for seed in options.seeds:
            for name in options.only:
                words = command(name, seed, options.workdir / f"{name}-{seed}", settings)
                print("$", " ".join(words), flush=True)
                subprocess.run([sys.executable, *words[1:]], check=True)
    elif options.what == "table":
        runs: dict[str, list[Run]] = collections.defaultdict(list)
        for path in options.runs:
            name = re.sub(r"-\d+$", "", path.name.removesuffix(".json"))
            runs[name].append(read(path, options.of))
        print(table(runs, options.metrics))
    elif options.what == "rows":
        print(rows({file.stem: read_evaluation(file) for file in options.files}))
    else:
        print(classes(read_evaluation(options.file), options.ranking))


if __name__ == "__main__":
    main()
