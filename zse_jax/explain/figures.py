"""Figures for a person's eyes: what was retrieved for a sketch, and how training went.

Right and wrong are told apart by colour (bluish green and vermilion, which colour-blind readers
distinguish; Okabe and Ito, 2008), by the frame's line (solid, dashed) and by a mark (check, cross).
Figures are built without pyplot: no display and no global state are needed, and they are freed like
any other object. Save one with `figure.savefig(path)`.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator

RIGHT, WRONG, INK, MUTED = "#009E73", "#D55E00", "#222222", "#777777"
LINES = (
    ("#0072B2", "-", "o"),
    ("#E69F00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
)

# Inches. A cell is an image and what is written under it; matplotlib text is in points, 1/72 inch.
_IMAGE, _GAP, _CAPTION, _QUERY_GAP, _HEADER, _MARGIN = 0.92, 0.14, 0.18, 0.26, 0.24, 0.12
_CAPTION_SIZE, _LONGEST_CAPTION = 6.5, 17

# Strokes of the marks, in inches from their centre, y downwards.
_CHECK = (((-0.04, 0.0), (-0.01, 0.03), (0.04, -0.035)),)
_CROSS = (((-0.032, -0.032), (0.032, 0.032)), ((-0.032, 0.032), (0.032, -0.032)))


@runtime_checkable
class Images(Protocol):
    """Images by index: an array, a list, a dict of just those needed, or a lazy source."""

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "h w 3"]:
        """The image at `index`."""


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
    columns: int = 10,
    title: str | None = None,
) -> Figure:
    """Each query sketch with its best photos beside it, the most similar first.

    Args:
      sketches: the Q sketches, one row each.
      photos: the gallery; only the photos that are shown are read.
      top: gallery indices of each sketch's best photos, nearest first; -1 where there are no more.
      sketch_labels: class of each sketch.
      photo_labels: class of each photo.
      sketch_instances, photo_instances: for fine-grained retrieval, in which only the photo of
        the sketch's own instance is right; without them, all photos of its class are.
      class_names: name of each class, by label; without it, labels are written.
      columns: photos in a row, fewer where the gallery is smaller.
      title: written above.

    Returns:
      A figure of some 1.1 inches per image, white behind.

    Raises:
      ValueError: nothing to show, or shapes that do not fit each other.
    """
    queries, gallery = len(sketch_labels), len(photo_labels)
    if len(top) != queries or top.max(initial=-1) >= gallery:
        raise ValueError(
            f"top has shape {top.shape} and names photos up to {top.max(initial=-1)}, but there "
            f"are {queries} sketch labels and {gallery} photo labels: give one row per sketch, and "
            "indices of photos."
        )
    columns = min(columns, top.shape[1])
    if not queries or min(gallery, columns) < 1:
        raise ValueError(
            f"Nothing to show: {queries} sketches, {gallery} photos, {columns} columns. At "
            "least one of each is needed."
        )
    if sketch_instances is None or photo_instances is None:
        sketch_instances, photo_instances = sketch_labels, photo_labels

    step_x, step_y = _IMAGE + _GAP, _IMAGE + _CAPTION + _GAP
    upper = _MARGIN + (0.3 if title else 0.0)
    width = 2 * _MARGIN + _IMAGE + _QUERY_GAP + columns * step_x
    height = upper + _HEADER + queries * step_y
    figure, axes = _canvas(width, height)
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
        label = int(sketch_labels[row])
        _image(axes, _MARGIN, y, sketches[row])
        _frame(axes, _MARGIN, y, color=MUTED, linewidth=0.6)
        _caption(axes, _MARGIN, y, _class_name(label, class_names), color=INK, weight="bold")
        for column, photo in enumerate(top[row, :columns].tolist()):
            if photo < 0:
                break
            x, right = first + column * step_x, sketch_instances[row] == photo_instances[photo]
            _image(axes, x, y, photos[photo])
            _verdict(axes, x, y, right=bool(right))
            name = _class_name(int(photo_labels[photo]), class_names)
            _caption(axes, x, y, name, color=MUTED if right else WRONG)
    return figure


def training_curves(
    records: Iterable[Mapping[str, Any]],
    *,
    loss: str = "loss",
    metric: str = "exact/mAP@all",
    chance: float | None = None,
    title: str | None = None,
) -> Figure:
    """The loss over steps, and beside it how well unseen classes are retrieved.

    Args:
      records: the lines of a run's `metrics.jsonl`, each with "step" and any of the values; a
        value's name may carry prefixes, as in "train/loss" or "unseen/relation/exact/mAP@all".
      loss: name of the loss.
      metric: name of the metric in 0..1; one line for each prefix, that is for each ranking.
      chance: what a random ranking reaches, drawn as a dotted line.
      title: written above.

    Raises:
      ValueError: no record carries the loss or the metric.
    """
    losses, metrics = _series(records, (loss, metric))
    if not losses and not metrics:
        raise ValueError(
            f"No record carries a finite {loss!r} or {metric!r}: there is nothing to draw. Records "
            "are the lines of metrics.jsonl, each with 'step'."
        )
    panels = [
        panel
        for panel in (
            (losses, loss, "training loss"),
            (metrics, metric, f"unseen classes, {metric}"),
        )
        if panel[0]
    ]
    figure = Figure(figsize=(4.2 * len(panels), 3.0), dpi=150, layout="constrained", facecolor="w")
    for axes, (series, name, heading) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _panel(axes, series, name, heading)
        if series is metrics:
            axes.set_ylim(0, 1)
            if chance is not None:
                axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1.0, label="chance")
        if series is metrics or len(series) > 1:
            axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    return figure


Series = dict[str, dict[int, float]]
"""For each key of the records, its value at each step."""


def _series(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[Series]:
    """For each name, the finite values of every key that is it or ends with "/" and it.

    A run that was resumed may have written a step twice: the later record counts.
    """
    found: list[Series] = [{} for _ in names]
    for record in records:
        for key, value in record.items():
            for name, series in zip(names, found, strict=True):
                if (key == name or key.endswith(f"/{name}")) and np.isfinite(value):
                    series.setdefault(key, {})[int(record["step"])] = float(value)
    return found


def _panel(axes: Axes, series: Series, name: str, heading: str) -> None:
    """A line for each key, named by what stands before `name`."""
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
    axes.set_title(heading, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("step", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose one axes fills it and counts in inches from the upper left corner."""
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    return figure, axes


def _image(axes: Axes, x: float, y: float, image: UInt8[np.ndarray, "h w 3"]) -> None:
    extent = (x, x + _IMAGE, y + _IMAGE, y)
    axes.imshow(image, extent=extent, interpolation="antialiased", aspect="auto")
    axes.autoscale(False)


def _frame(axes: Axes, x: float, y: float, **style: Any) -> None:
    axes.add_patch(Rectangle((x, y), _IMAGE, _IMAGE, fill=False, **style))


def _verdict(axes: Axes, x: float, y: float, *, right: bool) -> None:
    """Frame and mark of a right or wrong photo."""
    color = RIGHT if right else WRONG
    style, width = ("-", 2.4) if right else ("--", 1.3)
    _frame(axes, x, y, color=color, linestyle=style, linewidth=width)
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


def _class_name(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else class_names[label].replace("_", " ")
