"""Figures of results: the photos retrieved for sketches, and training curves.

Other figures: `pair_figures` (why a photo was found), `evaluation_figures` (metrics).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from zse_jax.explain import style
from zse_jax.explain.style import INK, LINES, MUTED, RIGHT, WRONG, Images, class_name

# Inches. A cell is an image with its caption; matplotlib text sizes are in points, 1/72 inch.
_IMAGE, _GAP, _CAPTION, _QUERY_GAP, _HEADER, _MARGIN = 0.92, 0.14, 0.18, 0.26, 0.24, 0.12
_LINE, _CAPTION_SIZE, _LONGEST_CAPTION = 0.12, 6.5, 17

# Strokes of the marks, in inches from their centre, y downwards.
_CHECK = (((-0.04, 0.0), (-0.01, 0.03), (0.04, -0.035)),)
_CROSS = (((-0.032, -0.032), (0.032, 0.032)), ((-0.032, 0.032), (0.032, -0.032)))


def retrieval_grid(
    sketches: Images,
    photos: Images,
    top: Integer[np.ndarray, "q k"],
    *,
    sketch_labels: Integer[np.ndarray, " q"],
    photo_labels: Integer[np.ndarray, " g"],
    sketch_instances: Integer[np.ndarray, " q"] | None = None,
    photo_instances: Integer[np.ndarray, " g"] | None = None,
    class_names: Sequence[str] | None = None,
    similarity: Float[np.ndarray, "q k"] | None = None,
    judged: bool = True,
    columns: int = 10,
    title: str | None = None,
) -> Figure:
    """Each query sketch with its nearest photos, the most similar first.

    Args:
      sketches: the Q sketches, one row each.
      photos: the gallery; only the photos that are shown are read.
      top: gallery indices of each sketch's photos, nearest first; -1 if there are no more.
      sketch_labels: class of each sketch.
      photo_labels: class of each photo.
      sketch_instances, photo_instances: for fine-grained retrieval, where only the photo of the
        sketch's instance is right; without them, all photos of its class are right.
      class_names: name of each class, by label; None: write labels.
      similarity: similarity of each photo in `top`, written under it; then the rank of the first
        right photo in `top` is written under the sketch.
      judged: False if it is unknown which photos are right: plain frames, no marks.
      columns: photos in a row, fewer if the gallery is smaller.
      title: written above.

    Returns:
      A figure of about 1.1 inches per image, on white.

    Raises:
      ValueError: there is nothing to show, or the shapes are inconsistent.
    """
    queries = len(sketch_labels)
    columns = min(columns, top.shape[1])
    _check_grid(top, queries, len(photo_labels), columns)
    right = right_photos(top, sketch_labels, photo_labels, sketch_instances, photo_instances)

    step_x, step_y = _IMAGE + _GAP, _IMAGE + _CAPTION + _GAP + _LINE * (similarity is not None)
    upper = _MARGIN + (0.3 if title else 0.0)
    width = 2 * _MARGIN + _IMAGE + _QUERY_GAP + columns * step_x
    height = upper + _HEADER + queries * step_y
    figure, axes = style.canvas(width, height)
    if title:
        axes.text(_MARGIN, upper - 0.06, title, fontsize=10, color=INK, va="bottom", weight="bold")

    first = _MARGIN + _IMAGE + _QUERY_GAP
    heading: dict[str, Any] = {"fontsize": 7.5, "color": MUTED, "ha": "center", "va": "center"}
    axes.text(_MARGIN + _IMAGE / 2, upper + _HEADER / 2, "sketch", **heading)
    for column in range(columns):
        x = first + column * step_x + _IMAGE / 2
        axes.text(x, upper + _HEADER / 2, f"{column + 1}", **heading)

    for row in range(queries):
        y = upper + _HEADER + row * step_y
        style.picture(axes, sketches[row], _MARGIN, y, _IMAGE)
        name = class_name(int(sketch_labels[row]), class_names)
        _caption(axes, _MARGIN, y, name, color=INK, weight="bold")
        if similarity is not None and judged:
            _caption(axes, _MARGIN, y + _LINE, _first_right(right[row], top[row]), color=MUTED)
        for column, photo in enumerate(top[row, :columns].tolist()):
            if photo < 0:
                break
            x = first + column * step_x
            verdict = bool(right[row, column]) if judged else None
            _photo(axes, photos[photo], x, y, right=verdict)
            color = WRONG if verdict is False else MUTED
            _caption(axes, x, y, class_name(int(photo_labels[photo]), class_names), color=color)
            if similarity is not None:
                _caption(axes, x, y + _LINE, f"{similarity[row, column]:#.3g}", color=MUTED)
    return figure


def _check_grid(top: Integer[np.ndarray, "q k"], queries: int, gallery: int, columns: int) -> None:
    """Raises ValueError unless there is something to show and `top` is consistent with it."""
    if len(top) != queries or top.max(initial=-1) >= gallery:
        raise ValueError(
            f"top has shape {top.shape} and photo indices up to {top.max(initial=-1)}, but there "
            f"are {queries} sketch labels and {gallery} photo labels: give one row per sketch, and "
            "indices of photos."
        )
    if not queries or min(gallery, columns) < 1:
        raise ValueError(
            f"Nothing to show: {queries} sketches, {gallery} photos, {columns} columns. Give at "
            "least one of each."
        )


def right_photos(
    top: Integer[np.ndarray, "q k"],
    sketch_labels: Integer[np.ndarray, " q"],
    photo_labels: Integer[np.ndarray, " g"],
    sketch_instances: Integer[np.ndarray, " q"] | None = None,
    photo_instances: Integer[np.ndarray, " g"] | None = None,
) -> Bool[np.ndarray, "q k"]:
    """Which photos of a ranking are right: of the sketch's class or, with instances, its instance.

    False where `top` is -1.
    """
    if sketch_instances is None or photo_instances is None:
        sketch_instances, photo_instances = sketch_labels, photo_labels
    return (photo_instances[top] == sketch_instances[:, None]) & (top >= 0)


def _first_right(right: Bool[np.ndarray, " k"], top: Integer[np.ndarray, " k"]) -> str:
    if right.any():
        return f"first right: {right.argmax() + 1}"
    return f"first right: > {(top >= 0).sum()}"


def training_curves(
    records: Iterable[Mapping[str, Any]],
    *,
    loss: str = "loss",
    metric: str = "exact/mAP@all",
    chance: float | None = None,
    classes: str = "unseen classes",
    title: str | None = None,
    stacked: bool = False,
) -> Figure:
    """The training loss and a metric of validation over steps.

    Args:
      records: the lines of a run's `metrics.jsonl`, each with "step" and some of the values; names
        of values can have prefixes, such as "train/loss" or "unseen/relation/exact/mAP@all".
      loss: name of the loss.
      metric: name of the metric in 0..1; drawn as one line for each prefix, that is each ranking.
      chance: the metric of a random ranking, drawn as a dotted line.
      classes: whose metric it is.
      title: written above.
      stacked: draw the two charts above each other, for narrow pages.

    Raises:
      ValueError: no record contains the loss or the metric.
    """
    losses, metrics = _series(records, (loss, metric))
    if not losses and not metrics:
        raise ValueError(
            f"No record contains a finite {loss!r} or {metric!r}, so there is nothing to draw. "
            "Records are the lines of metrics.jsonl, each with 'step'."
        )
    panels = [
        panel
        for panel in (
            (losses, loss, "training loss"),
            (metrics, metric, f"{classes}, {metric}"),
        )
        if panel[0]
    ]
    rows, columns = (len(panels), 1) if stacked else (1, len(panels))
    size = (3.7, 2.0 * rows) if stacked else (4.2 * columns, 3.0)
    figure, charts = style.chart(*size, rows=rows, columns=columns)
    for axes, (series, name, heading) in zip(charts, panels, strict=True):
        _panel(axes, series, name, heading)
        if series is metrics:
            axes.set_ylim(0, 1)
            if chance is not None:
                axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1.0, label="chance")
        if series is metrics or len(series) > 1:
            style.legend(axes)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    return figure


Series = dict[str, dict[int, float]]
"""For each key of the records, its value at each step."""


def _series(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[Series]:
    """For each name, the finite values of all keys that are equal to it or end with "/name".

    A resumed run may have written a step twice; the later record is used.
    """
    found: list[Series] = [{} for _ in names]
    for record in records:
        for key, value in record.items():
            for name, series in zip(names, found, strict=True):
                if (key == name or key.endswith(f"/{name}")) and np.isfinite(value):
                    series.setdefault(key, {})[int(record["step"])] = float(value)
    return found


def _panel(axes: Axes, series: Series, name: str, heading: str) -> None:
    """Draws a line for each key, labelled with its prefix before `name`."""
    for (key, values), (color, line, marker) in zip(
        series.items(), itertools.cycle(LINES), strict=False
    ):
        axes.plot(
            *zip(*sorted(values.items()), strict=True),
            color=color,
            linestyle=line,
            linewidth=1.4,
            marker=marker if len(values) <= 40 else "",
            markersize=3,
            label=key.removesuffix(name).strip("/").rsplit("/", 1)[-1] or name,
        )
    style.heading(axes, heading, x="step")
    style.steps(axes)


def _photo(
    axes: Axes, image: UInt8[np.ndarray, "h w 3"], x: float, y: float, *, right: bool | None
) -> None:
    """Draws a photo with the frame and the mark for right or wrong; None: a plain frame."""
    if right is None:
        style.picture(axes, image, x, y, _IMAGE)
        return
    color = RIGHT if right else WRONG
    line, width = ("-", 2.4) if right else ("--", 1.3)
    style.picture(axes, image, x, y, _IMAGE, edgecolor=color, linestyle=line, linewidth=width)
    center = x + _IMAGE - 0.02, y + 0.02
    axes.add_patch(
        Circle(center, 0.085, facecolor=color, edgecolor="white", linewidth=0.8, zorder=3)
    )
    for stroke in _CHECK if right else _CROSS:
        points = np.add(center, stroke)
        axes.plot(*points.T, color="white", linewidth=1.3, zorder=4, solid_capstyle="round")


def _caption(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    if len(text) > _LONGEST_CAPTION:
        text = text[: _LONGEST_CAPTION - 1] + "…"
    center = x + _IMAGE / 2, y + _IMAGE + 0.06
    axes.text(*center, text, fontsize=_CAPTION_SIZE, ha="center", va="top", **style)
