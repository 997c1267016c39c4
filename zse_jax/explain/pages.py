"""HTML pages that need nothing but themselves: images inside, no network, light and dark.

The templates are in `templates/`: `base.html` has the style and the few lines of script,
`parts.html` what pages share. A page forbids its browser to load anything (by a
Content-Security-Policy), so that what it shows is what is in the file.
"""

import base64
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from zse_jax.explain import pair_figures
from zse_jax.explain.correspondence import Explainer, Explanation
from zse_jax.explain.synthesis import synthesise

THUMBNAIL, PANEL = 128, 224
"""Longest sides of images in a row of photos and in an explanation, in pixels."""

PAIRS_AT_ONCE = 8
"""Pairs that are explained in one call; the last ones are filled up, for a single compilation."""


class Photo(NamedTuple):
    """A photo in a ranked row.

    Attributes:
      src: the image, as a data URI.
      name: its class or file.
      rank: counted from 1.
      right: whether it is what was sought; None where that is not known.
      score: its similarity as text, or "".
    """

    src: str
    name: str
    rank: int
    right: bool | None = None
    score: str = ""


class Panel(NamedTuple):
    """A picture within an explanation: its data URI, name, and what it shows."""

    src: str
    name: str
    text: str


class Explained(NamedTuple):
    """Why a photo was found, ready for a page.

    Attributes:
      title: which photo.
      lines: data URI of the pair with its lines.
      text: what the lines show, for readers who do not see them.
      panels: heat maps and syntheses.
      evidence: what all of it is.
      shown: whether it is unfolded at first.
    """

    title: str
    lines: str
    text: str
    panels: Sequence[Panel]
    evidence: str
    shown: bool = False


class Query(NamedTuple):
    """A sketch with what was found for it.

    Attributes:
      src: the sketch, as a data URI.
      name: its class or file.
      note: how well it went.
      photos: the first ones.
      explanations: of some of them.
    """

    src: str
    name: str
    note: str
    photos: Sequence[Photo]
    explanations: Sequence[Explained] = ()


def render(template: str, **values: Any) -> str:
    """A page of one of the templates; every value is escaped unless it is `markupsafe.Markup`."""
    return environment("zse_jax.explain").get_template(template).render(**values)


@functools.cache
def environment(package: str) -> jinja2.Environment:
    """The templates of a package, in which values are escaped, and a missing one is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def image_uri(image: UInt8[np.ndarray, "h w c"], longest: int, quality: int = 82) -> str:
    """An RGB or RGBA image as a data URI (WebP), scaled down to `longest` pixels if it is larger.

    Small images stay small: the page scales them up.
    """
    factor = longest / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure_uri(figure: Figure, dpi: int = 130) -> str:
    """A figure as a data URI, with its own background, which may be transparent."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=dpi)
    width, height = (round(x * dpi) for x in figure.get_size_inches())
    pixels = np.frombuffer(buffer.getvalue(), np.uint8)
    if pixels.size != width * height * 4:  # matplotlib rounds sizes down
        width, height = (int(x * dpi) for x in figure.get_size_inches())
    return image_uri(pixels.reshape(height, width, 4), width)


def explanations(
    explainer: Explainer,
    pairs: Sequence[tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]],
    progress: bool = False,
) -> Iterator[tuple[Explanation, int]]:
    """For each pair of sketch and photo, in order, its explanation and its place therein.

    Args:
      explainer: of the system.
      pairs: prepared images.
      progress: show how far it is.
    """
    with tqdm(total=len(pairs), desc="explaining", unit="pair", disable=not progress) as bar:
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            some = pairs[start : start + PAIRS_AT_ONCE]
            filled = [*some, *[some[-1]] * (PAIRS_AT_ONCE - len(some))]
            sketches, photos = (np.stack(images) for images in zip(*filled, strict=True))
            found = explainer(sketches, photos)
            for pair in range(len(some)):
                yield found, pair
                bar.update()


def explained(
    sketch: UInt8[np.ndarray, "h w 3"],
    photo: UInt8[np.ndarray, "h w 3"],
    explanation: Explanation,
    pair: int,
    *,
    title: str,
    syntheses: Mapping[str, UInt8[np.ndarray, "h w 3"]] | None = None,
    shown: bool = False,
) -> Explained:
    """An explanation ready for a page.

    Args:
      sketch, photo: prepared.
      explanation: of some pairs.
      pair: which of them this is.
      title: which photo it is.
      syntheses: images made of patches, by name; None: the one of this photo's patches.
      shown: unfold it at first.
    """
    found = pair_figures.matched_places(explanation, pair)
    if syntheses is None:
        match, ink = explanation.match[pair], explanation.ink[pair]
        syntheses = {"synthesis": synthesise(sketch, photo, match, ink, blend=True)}
    panels = [
        Panel(image_uri(heat.image, PANEL), f"{heat.name}, {heat.side}", heat.text)
        for heat in pair_figures.heat_maps(sketch, photo, explanation, pair)
    ]
    panels += [
        Panel(image_uri(pair_figures.enlarged(image), PANEL), name, _SYNTHESIS)
        for name, image in syntheses.items()
    ]
    mutual = sum(line.mutual for line in found)
    text = (
        f"The sketch beside the photo, joined by {len(found)} numbered lines; {mutual} of them are "
        "mutual best matches."
        if found
        else "The sketch beside the photo; the sketch has no strokes to match."
    )
    lines = figure_uri(pair_figures.lines(sketch, photo, explanation, pair))
    return Explained(title, lines, text, panels, explanation.evidence, shown)


_SYNTHESIS = "each place with strokes replaced by the photo patch that it matches best"
