"""What papers report in each setting: metrics, convention of average precision, and values.

A measured number compares with a published one only in the same setting, on the complete test set,
and in the convention of the paper. `reported` selects what compares with a config. The conventions
are defined in `zse_jax.retrieval.metrics`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from zse_jax.retrieval import metrics
from zse_jax.retrievers import registry

SAME_SIZE = 0.01
"""Share by which the numbers of images of a test set may differ from the published ones: copies of
a benchmark lack a few files."""


class Benchmark(NamedTuple):
    """What papers report on a test set.

    Attributes:
      metrics: in the order of `Paper.values`.
      size: sketches and photos of the complete test set; None: not published.
    """

    metrics: tuple[str, ...]
    size: tuple[int, int] | None = None


class Paper(NamedTuple):
    """A paper and its results.

    Attributes:
      name: of the system, with the place of publication.
      source: of the values and of the convention.
      scope: the convention of average precision; fine-grained: the ranked photos.
      values: setting -> ranking -> values in percent, in the order of the setting's metrics. Empty
        if the paper reports the setting, but no value is at hand.
    """

    name: str
    source: str
    scope: str
    values: Mapping[str, Mapping[str, tuple[float, ...]]]


FINE_GRAINED = "sketchy_split2, fine-grained"

BENCHMARKS: Mapping[str, Benchmark] = {
    "sketchy_split1": Benchmark(("mAP@all", "P@100"), (15_229, 17_101)),
    "sketchy_split2": Benchmark(("mAP@200", "P@200"), (12_694, 12_553)),
    "tuberlin": Benchmark(("mAP@all", "P@100"), (2_400, 27_989)),
    "quickdraw": Benchmark(("mAP@all", "P@200"), (92_291, 54_151)),
    "sketchy_split1 -> tuberlin": Benchmark(("mAP@all", "P@100")),
    "sketchy_split1 -> quickdraw": Benchmark(("mAP@all", "P@200")),
    "tuberlin -> quickdraw": Benchmark(("mAP@all", "P@200")),
    FINE_GRAINED: Benchmark(("Acc@1", "Acc@5")),
}
"""Settings, as named by `setting`. The sizes are those of the published file lists."""

PAPERS: Mapping[str, tuple[Paper, ...]] = {
    "https://arxiv.org/abs/2303.14348": (
        Paper(
            "ZSE (Lin et al., CVPR 2023)",
            "arXiv 2303.14348; convention of its published evaluator",
            "voc",
            {
                "sketchy_split1": {"token": (73.6, 80.8), "relation": (69.8, 79.7)},
                "sketchy_split2": {"token": (50.4, 60.2), "relation": (52.5, 62.4)},
                "tuberlin": {"token": (56.9, 63.7), "relation": (54.2, 65.7)},
                "quickdraw": {"token": (14.2, 20.2), "relation": (14.5, 21.6)},
                "sketchy_split1 -> tuberlin": {},
                "sketchy_split1 -> quickdraw": {},
                "tuberlin -> quickdraw": {},
            },
        ),
    ),
    "https://arxiv.org/abs/2303.13440": (
        Paper(
            "CLIP-AT (Sain et al., CVPR 2023)",
            "arXiv 2303.13440, which names no convention; compared by that of torchmetrics' top_k",
            "hits",
            {
                "sketchy_split2": {"embedding": (72.3, 72.5)},
                "tuberlin": {"embedding": (65.1, 73.2)},
                "quickdraw": {"embedding": (20.2, 38.8)},
            },
        ),
        Paper(
            "CLIP-AT (Sain et al., CVPR 2023)",
            "arXiv 2303.13440, ranked within the class",
            "class",
            {FINE_GRAINED: {"embedding": (28.68, 62.34)}},
        ),
    ),
}
"""The address of a system's paper (`registry.System.paper`) -> what it reports. A system whose own
paper reports nothing in a setting is compared with the first paper here that does."""


class Reported(NamedTuple):
    """What to show first of an evaluation, and what it compares with.

    Attributes:
      scope: the convention of average precision; fine-grained: the ranked photos.
      metrics: their names.
      paper: that reports them; None: no paper does.
      values: ranking -> values of the paper in percent, in the order of the metrics.
      own: whether the paper is that of the evaluated system.
      size: sketches and photos of the paper's test set; None: not known.
    """

    scope: str
    metrics: tuple[str, ...]
    paper: Paper | None = None
    values: Mapping[str, tuple[float, ...]] = {}
    own: bool = False
    size: tuple[int, int] | None = None

    def same_size(self, sketches: int, photos: int) -> bool:
        """Whether a test set has as many images as the paper's, up to `SAME_SIZE`."""
        if self.size is None:
            return True
        pairs = zip((sketches, photos), self.size, strict=True)
        return all(abs(ours - theirs) <= SAME_SIZE * theirs for ours, theirs in pairs)


def setting(config: ConfigDict) -> str:
    """The name of a config's setting, as in `BENCHMARKS` if papers report it."""
    trained, target = config.data.split or config.data.name, config.target
    name = trained
    if target.name is not None:
        name = f"{trained} -> {target.split or target.name}"
    evaluation = config.evaluation
    parts = [
        name,
        "fine-grained" if evaluation.protocol == "fine_grained" else "",
        "" if evaluation.seen_gallery == "none" else f"gallery with seen photos, {trained}",
        "" if evaluation.get("queries", "sketch") == "sketch" else f"{evaluation.queries} queries",
    ]
    return ", ".join(filter(None, parts))


def reported(config: ConfigDict, system: str) -> Reported:
    """What papers report in the setting of `config`, for the system `system`.

    The paper of the system if it reports this setting, else the first one that does. Without a
    paper: `exact` mAP@all and P@10; fine-grained, Acc@k within the class.
    """
    name, own = setting(config), registry.system(system).paper
    for candidate in dict.fromkeys((own, *PAPERS)):
        for paper in PAPERS.get(candidate, ()):
            if name in paper.values:
                named, size = BENCHMARKS[name]
                values = paper.values[name]
                return Reported(paper.scope, named, paper, values, candidate == own, size)
    if config.evaluation.protocol == "fine_grained":
        return Reported("class", metrics.ACCURACY)
    return Reported("exact", ("mAP@all", *metrics.FIRST_PHOTOS))


def as_text(values: Any) -> str:
    """Published values as they stand in the paper: "50.4 / 60.2"."""
    return " / ".join(f"{value:g}" if value % 1 else f"{value:.1f}" for value in values)
