"""The style of figures: colours that are safe for colour-blind readers, text, and axes.

Right and wrong differ in colour (bluish green and vermilion; Okabe and Ito, 2008), in the line of
the frame (solid, dashed) and in a mark (check, cross). Heat maps are orange for positive and purple
for negative values (ColorBrewer's PuOr). Figures are built without pyplot: they need no display and
no global state, and are freed like other objects. Their background is white, for print and dark
pages; in an HTML page, `inline_svg` makes them use the colours of the page.
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
from matplotlib.text import Text
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
"""Colours for items that also have a number or name next to them."""

# CSS variables for the colours that change on a dark page.
_THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--card)"}

_REFERENCE = r"(?:href=\"|url\()#([\w.-]+)"


@runtime_checkable
class Images(Protocol):
    """Images by index: an array, a list, a dict of some of them, or a lazy source."""

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "h w 3"]:
        """The image at `index`."""


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """The display name of a class; its label if there are no names."""
    return str(label) if class_names is None else class_names[label].replace("_", " ")


class _Figure(Figure):
    """A figure in which a dollar sign in a name is a dollar sign, not the start of a formula."""

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        super().draw(renderer)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one axes that fills it, in inches from the upper left corner."""
    figure = _Figure(figsize=(width, height), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    return figure, axes


def picture(
    axes: Axes, image: UInt8[np.ndarray, "h w 3"], x: float, y: float, side: float, **frame: Any
) -> None:
    """Draws an image with a frame on a canvas, as a square with its upper left corner at (x, y).

    Args:
      axes: the axes of a `canvas`.
      image: an image of any size.
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
    """A figure with a grid of plain axes; width and height in inches."""
    figure = _Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels:
        axes.set_facecolor("none")
        axes.tick_params(labelsize=8, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(MUTED)
        axes.set_axisbelow(True)
    return figure, panels


def heading(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Sets the title and the axis labels of a chart."""
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)


def steps(axes: Axes) -> None:
    """Sets a few integer ticks on the x axis, and faint horizontal grid lines."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=RULE, linewidth=0.6)


def legend(axes: Axes, **options: Any) -> None:
    """Draws the legend without a box."""
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, **options)


def inline_svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element of an HTML page that defines --ink, --muted, --rule, --card.

    Text stays text, in the page's font. Ids are made unique, so that a page can contain many
    figures.

    Args:
      figure: the figure.
      description: alternative text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zse_jax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg[svg.index(">") + 1 :]
    # A <style> element inside would apply to the whole page.
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
