"""Self-contained HTML pages: images are embedded, no network, light and dark.

The templates are in `templates/`: `base.html` contains the style and the script, `parts.html` the
macros that pages share. A Content-Security-Policy forbids a page to load anything.
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
from PIL import Image
from tqdm import tqdm

from zse_jax.explain.correspondence import Explainer, Explanation
from zse_jax.explain.synthesis import synthesise

THUMBNAIL, PANEL = 128, 224
"""Longer side of images in a row of photos and in an explanation, in pixels."""

PAIRS_AT_ONCE = 8
"""Pairs that are explained in one call."""


_WEBP: dict[str, Any] = {"quality": 82, "method": 4}


class Photo(NamedTuple):
    """A photo in a ranked row.

    Attributes:
      src: the image as a data URI.
      name: its class or file.
      rank: counted from 1.
      right: whether it is a correct result; None if unknown.
      score: its similarity as text, or "".
    """

    src: str
    name: str
    rank: int
    right: bool | None = None
    score: str = ""


class Panel(NamedTuple):
    """A picture in an explanation: data URI, name, and a description of what it shows."""

    src: str
    name: str
    text: str


class Explained(NamedTuple):
    """Why a photo was found, ready for a page.

    Attributes:
      title: names the photo.
      lines: data URI of the pair with its lines.
      text: alternative text of the lines.
      panels: heat maps and syntheses.
      evidence: describes the matches.
      shown: whether the explanation is unfolded at first.
    """

    title: str
    lines: str
    text: str
    panels: Sequence[Panel]
    evidence: str
    shown: bool = False


class Query(NamedTuple):
    """A sketch with its results.

    Attributes:
      src: the sketch as a data URI.
      name: its class or file.
      note: a remark about the results.
      photos: the first results.
      explanations: explanations of some of them.
    """

    src: str
    name: str
    note: str
    photos: Sequence[Photo]
    explanations: Sequence[Explained] = ()


def render(template: str, **values: Any) -> str:
    """Renders a template; every value is escaped unless it is `markupsafe.Markup`.

    Bytes of a path that are not UTF-8 are written as escapes, so that the page can be written.
    """
    page = environment("zse_jax.explain").get_template(template).render(**values)
    return page.encode("utf-8", "backslashreplace").decode()


@functools.cache
def environment(package: str) -> jinja2.Environment:
    """The templates of a package; values are escaped, and undefined ones are errors."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def image_uri(image: UInt8[np.ndarray, "h w c"], longest: int) -> str:
    """An RGB or RGBA image as a data URI (WebP), scaled down to `longest` pixels if larger."""
    factor = longest / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", **_WEBP)
    return data_uri(buffer.getvalue(), "webp")


def figure_uri(figure: Any, dpi: int = 130) -> str:
    """A figure of matplotlib as a data URI (WebP); its background can be transparent."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=dpi, pil_kwargs=_WEBP)
    return data_uri(buffer.getvalue(), "webp")


def data_uri(encoded: bytes, kind: str) -> str:
    """An encoded image of a MIME subtype such as "jpeg" as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def explanations(
    explainer: Explainer,
    pairs: Sequence[tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]],
    progress: bool = False,
) -> Iterator[tuple[Explanation, int]]:
    """For each pair of sketch and photo, in order, an explanation and the pair's index in it.

    Explains up to `PAIRS_AT_ONCE` pairs in one call. All calls are padded to the same number of
    pairs, so that one compilation is enough.

    Args:
      explainer: the explainer of the system.
      pairs: prepared images.
      progress: show a progress bar.
    """
    batch = min(PAIRS_AT_ONCE, len(pairs))
    with tqdm(total=len(pairs), desc="explaining", unit="pair", disable=not progress) as bar:
        for start in range(0, len(pairs), batch or 1):
            some = pairs[start : start + batch]
            padded = [*some, *[some[-1]] * (batch - len(some))]
            sketches, photos = (np.stack(images) for images in zip(*padded, strict=True))
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
      explanation: an explanation of some pairs.
      pair: the index of this pair in it.
      title: names the photo.
      syntheses: images made of patches, by name; None: one made of this photo's patches.
      shown: unfold the explanation at first.
    """
    from zse_jax.explain import pair_figures  # imports matplotlib, which a search does not need

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
        f"The sketch and the photo, joined by {len(found)} numbered lines; {mutual} of them are "
        "mutual best matches."
        if found
        else "The sketch and the photo; the sketch has no strokes to match."
    )
    lines = figure_uri(pair_figures.lines(sketch, photo, explanation, pair))
    return Explained(title, lines, text, panels, explanation.evidence, shown)


_SYNTHESIS = "each place with strokes replaced by the photo patch that it matches best"
