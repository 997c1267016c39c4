"""How figures look: colours that colour-blind readers tell apart, text, axes, and how to save them.

Right and wrong are told apart by colour (bluish green and vermilion; Okabe and Ito, 2008), by the
frame's line (solid, dashed) and by a mark (check, cross). Heat maps are orange for and purple
against (ColorBrewer's PuOr). Figures are built without pyplot: no display and no global state are
needed, and they are freed like any other object. A figure is white behind, so that it can be read
in print and on a dark page; within an HTML page, `inline_svg` lets it take the page's colours.
"""

import hashlib
import html
import io
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

RIGHT, WRONG, INK, MUTED, RULE, PAPER = (
    "#009E73", "#D55E00", "#222222", "#777777", "#dddddd", "#ffffff",
)  # fmt: skip
FOR, AGAINST = "#B35806", "#542788"
LINES = (
    ("#0072B2", "-", "o"),
    ("#E69F00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
)
MARKS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#666699")
"""Colours for things that are also numbered or named where they stand."""

# What an HTML page calls the colours that must change on a dark page.
_THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--card)"}


_REFERENCE = r"(?:href=\"|url\()#([\w.-]+)"


@runtime_checkable
class Images(Protocol):
    """Images by index: an array, a list, a dict of just those needed, or a lazy source."""

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "h w 3"]:
        """The image at `index`."""


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """A class as people write it; its label where there are no names."""
    return str(label) if class_names is None else class_names[label].replace("_", " ")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose one axes fills it and counts in inches from the upper left corner."""
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    return figure, axes


def picture(
    axes: Axes, image: UInt8[np.ndarray, "h w 3"], x: float, y: float, side: float, **frame: Any
) -> None:
    """Draws an image on a canvas as a square, its upper left corner at (x, y), within a frame.

    Args:
      axes: of `canvas`.
      image: of any size.
      x, y, side: in inches.
      frame: properties of a matplotlib rectangle.
    """
    extent = (x, x + side, y + side, y)
    axes.imshow(image, extent=extent, interpolation="antialiased", aspect="auto")
    axes.autoscale(False)
    look: Any = {"edgecolor": MUTED, "linewidth": 0.6} | frame
    axes.add_patch(Rectangle((x, y), side, side, fill=False, **look))


def chart(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with axes in rows, in inches, that have no more ink than they need."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels:
        axes.set_facecolor("none")
        axes.tick_params(labelsize=8, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(MUTED)
        axes.set_axisbelow(True)
    return figure, panels


def heading(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """What a chart is of, and what its axes are."""
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)


def steps(axes: Axes) -> None:
    """Whole numbers, and few of them, along the x axis; faint lines across."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=RULE, linewidth=0.6)


def legend(axes: Axes, **options: Any) -> None:
    """The names of the lines, without a box."""
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, **options)


def inline_svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element of an HTML page that defines --ink, --muted, --rule, --card.

    Text stays text, in the page's font. Names inside are made unique, so that a page can hold
    many figures.

    Args:
      figure: not usable for a page without those four CSS variables.
      description: what it shows, for readers who do not see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zse_jax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg[svg.index(">") + 1 :]
    # A <style> inside would style the whole page; the fonts are the page's.
    for waste in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        svg = re.sub(waste, "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    mark = hashlib.sha256((description + svg).encode()).hexdigest()[:8]
    used = set(re.findall(_REFERENCE, svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="f{mark}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(_REFERENCE, lambda m: m[0].replace("#", f"#f{mark}-"), svg)
    for color, variable in _THEMED.items():
        svg = re.sub(rf"{color}\b", variable, svg, flags=re.IGNORECASE)
    svg = re.sub(r"\s+", " ", svg)
    width, height = figure.get_size_inches() * 72
    label = html.escape(description, quote=True)
    return (
        f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width: {width * 1.75:.0f}px" xmlns:xlink="http://www.w3.org/1999/xlink">{svg}'
    )
