"""Figures of an evaluation: classes, rankings by depth, and a map of sketches and photos.

They are drawn from plain arrays, so they work for any system and protocol.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from zse_jax.explain import style
from zse_jax.explain.style import INK, LINES, MARKS, MUTED, RULE

NEIGHBOURS = 30
"""The perplexity of t-SNE; for fewer than 90 images, a third of their number."""

PERCENT = PercentFormatter(1, decimals=0, symbol="")


class Curve(NamedTuple):
    """Means over sketches after the first k photos, k = 1, 2, ...

    Attributes:
      recall: [k], share of the right photos that were found.
      precision: [k], share of the found photos that are right.
      accuracy: [k], share of the sketches with at least one right photo.
    """

    recall: Float[np.ndarray, "k"]
    precision: Float[np.ndarray, "k"]
    accuracy: Float[np.ndarray, "k"]


def depth_curve(right: Bool[np.ndarray, "q k"], relevant: Integer[np.ndarray, " q"]) -> Curve:
    """Recall, precision and accuracy by the number of photos.

    Args:
      right: which of each sketch's first photos are right, nearest first.
      relevant: number of right photos of each sketch in the whole gallery; sketches with 0 are
        excluded.
    """
    right, relevant = right[relevant > 0], relevant[relevant > 0]
    hits = right.cumsum(axis=1)
    depth = np.arange(1, right.shape[1] + 1)
    return Curve(
        (hits / relevant[:, None]).mean(axis=0),
        (hits / depth).mean(axis=0),
        (hits > 0).mean(axis=0),
    )


def precision_recall(curves: Mapping[str, Curve], chance: float | None = None) -> Figure:
    """Precision over recall: a line for each ranking, dots after 10, 50 and 200 photos.

    Args:
      curves: curves by ranking, of which the first `len(LINES)` are drawn.
      chance: precision of a random ranking, drawn as a dotted line.
    """
    figure, (axes,) = style.chart(3.7, 2.9)
    for (name, curve), (color, line, _) in zip(curves.items(), LINES, strict=False):
        axes.plot(curve.recall, curve.precision, color=color, linestyle=line, label=name)
        for depth in (d for d in (10, 50, 200) if d <= len(curve.recall)):
            point = curve.recall[depth - 1], curve.precision[depth - 1]
            axes.plot(*point, "o", color=color, markersize=4)
            if name == next(iter(curves)):  # those of similar curves would cover each other
                axes.annotate(
                    str(depth), point, (4, 4), textcoords="offset points", fontsize=7, color=MUTED
                )
    _shares(axes, chance)
    axes.set_xlim(0, 1.04)
    axes.xaxis.set_major_formatter(PERCENT)
    style.heading(axes, "Precision and recall after k photos", "recall, %", "precision, %")
    style.legend(axes, loc="upper right")
    return figure


def found_within(curves: Mapping[str, Curve], chance: float | None = None) -> Figure:
    """For fine-grained retrieval: share of sketches with the matching photo among the first k.

    Args:
      curves: curves by ranking, of which the first `len(LINES)` are drawn.
      chance: Acc@1 of a random ranking, drawn as a dotted line that grows with k.
    """
    figure, (axes,) = style.chart(3.7, 2.9)
    for (name, curve), (color, line, _) in zip(curves.items(), LINES, strict=False):
        depth = np.arange(1, len(curve.accuracy) + 1)
        axes.plot(depth, curve.accuracy, color=color, linestyle=line, label=name)
    if chance is not None:
        axes.plot(depth, np.minimum(1, depth * chance), color=MUTED, linestyle=":", label="chance")
    _shares(axes, None)
    axes.set_xscale("log")
    ticks = [k for k in (1, 5, 10, 50, 100, 200) if k <= len(depth)]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xticks([], minor=True)
    style.heading(axes, "The matching photo is among the first k", "k", "sketches, %")
    style.legend(axes, loc="upper left")
    return figure


def _shares(axes: Axes, chance: float | None) -> None:
    if chance is not None:
        axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1.0, label="chance")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(color=RULE, linewidth=0.6)


def class_bars(
    names: Sequence[str],
    values: Float[np.ndarray, " c"],
    bounds: Float[np.ndarray, "c 2"],
    *,
    metric: str,
    mean: float | None = None,
    chance: float | None = None,
) -> Figure:
    """A bar for each class with its interval, the best on top.

    Args:
      names: names of the classes.
      values: the metric of each class, 0..1.
      bounds: low and high end of each interval.
      metric: name of the metric.
      mean: mean over all sketches, drawn as a line.
      chance: the metric of a random ranking, drawn as a dotted line.
    """
    order = np.argsort(values)
    figure, (axes,) = style.chart(3.7, 0.8 + 0.22 * len(names))
    rows = np.arange(len(order))
    axes.barh(rows, values[order], color=MARKS[0], height=0.62, alpha=0.85)
    errors = np.abs(bounds[order].T - values[order])
    axes.errorbar(
        values[order], rows, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.5
    )
    for row, (high, value) in enumerate(zip(bounds[order, 1], values[order], strict=True)):
        axes.annotate(
            f"{100 * value:.0f}", (high, row), (4, 0), textcoords="offset points", va="center",
            fontsize=7.5, color=INK,
        )  # fmt: skip
    marks = [(mean, "-", "mean"), (chance, ":", "chance")]
    known = sorted((value, line, label) for value, line, label in marks if value is not None)
    for place, (value, line, label) in enumerate(known):
        axes.axvline(value, color=MUTED, linestyle=line, linewidth=1.0)
        above: Any = {"transform": axes.get_xaxis_transform(), "va": "bottom"}
        side = "left" if place else "right"  # away from the other label
        axes.text(value, 1.0, label, fontsize=7, color=MUTED, ha=side, **above)
    axes.set_yticks(rows, [names[i].replace("_", " ") for i in order])
    axes.set(ylim=(-0.6, len(order) - 0.4), xlim=(0, min(1.08, bounds.max() + 0.12)))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    style.heading(axes, x=f"{metric}, %, with 95 % intervals for other sketches")
    return figure


def project(vectors: Float[np.ndarray, "n d"], seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Positions in the plane that preserve neighbourhoods: t-SNE (van der Maaten and Hinton, 2008).

    Uses cosine distances and starts from the principal components; deterministic for a seed.

    Raises:
      ValueError: fewer than 4 vectors.
    """
    from sklearn.manifold import TSNE  # slow to import, and only the map needs it

    if len(vectors) < 4:
        raise ValueError(
            f"{len(vectors)} images are too few for a map: give the embeddings of 4 or more."
        )
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places = TSNE(
        perplexity=min(NEIGHBOURS, len(vectors) / 3),
        init="pca",
        learning_rate="auto",
        random_state=seed,
        method="exact" if len(vectors) <= 1000 else "barnes_hut",  # faster for few
    ).fit_transform(vectors)
    return np.asarray(places, np.float32)


def embedding_map(
    places: Float[np.ndarray, "n 2"],
    labels: Integer[np.ndarray, " n"],
    is_sketch: Bool[np.ndarray, " n"],
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Sketches (triangles) and photos (discs) at the positions of `project`.

    Up to eight classes have their own colours; with more, colours repeat, and the name of each
    class is written at the median of its photos.
    """
    classes = np.unique(labels)
    named = len(classes) > len(MARKS)
    figure, (axes,) = style.chart(3.7, 3.5 if named else 3.8)
    for position, label in enumerate(classes):
        color = MARKS[position % len(MARKS)]
        name = style.class_name(int(label), class_names)
        photos, sketches = ((labels == label) & (is_sketch == kind) for kind in (False, True))
        x, y = places[photos].T
        axes.scatter(
            x, y, s=14, color=color, alpha=0.8, linewidths=0, label=None if named else name
        )
        x, y = places[sketches].T
        axes.scatter(x, y, s=20, marker="^", facecolors="none", edgecolors=color, linewidths=0.9)
        if named:
            x, y = np.median(places[photos if photos.any() else sketches], axis=0)
            box = {"boxstyle": "round,pad=0.12", "facecolor": style.PAPER, "alpha": 0.75}
            axes.text(
                x, y, name, fontsize=6.5, color=INK, ha="center", va="center",
                bbox=box | {"edgecolor": color, "linewidth": 0.8},
            )  # fmt: skip
    axes.scatter([], [], s=14, color=MUTED, label="photo")
    axes.scatter([], [], s=20, marker="^", facecolors="none", edgecolors=[MUTED], label="sketch")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=RULE)
    style.legend(
        axes, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=4, handletextpad=0.1,
        columnspacing=1.0, borderaxespad=0.2,
    )  # fmt: skip
    style.heading(axes, "Sketches and photos by embedding (t-SNE)")
    return figure
