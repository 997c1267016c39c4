"""The backend of the page: takes a drawing as the browser sends it, returns HTML.

Photos appear as the thumbnails in the index, inside the HTML. The browser never receives a path,
and only files of the index are read, to explain a photo. Errors reach the browser only if they are
about the drawing; others are printed, because their messages name files of this machine.
"""

import base64
import binascii
import re
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8

from data_pipelines import images
from data_pipelines.images import UnreadableImageError
from zse_jax.explain import pages
from zse_jax.explain.correspondence import ink_share
from zse_jax.explain.pair_figures import LINE_STYLES
from zse_jax.gallery.results import Results
from zse_jax.gallery.search import EXPAND, RERANK, Searcher
from zse_jax.gallery.sketch_input import SketchError
from zse_jax.retrievers.base import Explainable
from zse_jax.runtime.console import say

LARGEST_DRAWING, LARGEST_SIDE = 4 * 2**20, 2048
"""Limits of a drawing: characters of its data URL, and pixels of its longer side."""

MOST_RERANKED = 1000
"""Limit of pairs that are scored for one drawing."""

FEWEST = 20
"""Smallest default number of pairs, on slow machines."""

BUDGET, SLOW = 0.3, 0.5
"""Seconds that scoring takes by default, and seconds above which the order by embedding is shown
until the pairs are scored."""

_PACKAGE = "zse_jax.gallery"

_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,")


class Answer(NamedTuple):
    """What the page shows for a drawing: HTML, and the results in it, or None."""

    html: str
    results: Results | None = None


def decoded(drawing: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """The drawing in a data URL; None if nothing is drawn.

    Raises:
      SketchError: it is not a picture, or is too large.
    """
    if not drawing:
        return None
    match = _DATA_URL.match(drawing[:40])
    if len(drawing) > LARGEST_DRAWING:
        raise SketchError(
            f"The drawing is too large ({len(drawing) / 2**20:.0f} MiB): use a smaller one."
        )
    try:
        if match is None:
            raise UnreadableImageError("it is not the data URL of a picture")
        encoded = base64.b64decode(drawing[match.end() :], validate=True)
        with images.opened(encoded, formats=("PNG", "JPEG", "WEBP")) as head:
            size = head.size
        if max(size) > LARGEST_SIDE:
            raise SketchError(
                f"The drawing has {size[0]} x {size[1]} pixels: use one with at most "
                f"{LARGEST_SIDE} on each side."
            )
        image = images.decode(encoded)
    except (UnreadableImageError, binascii.Error) as error:
        raise SketchError("The drawing is not a picture: draw, or upload a PNG or JPEG.") from error
    return image if ink_share(image[None], 1).any() else None


class Backend:
    """Handles the page's requests with one searcher.

    Attributes:
      searcher: the searcher.
      most_pairs: limit of pairs to score for a drawing; 0 if the system does not score pairs.
      default_pairs: pairs that are scored by default: as many as this machine scores in `BUDGET`.
    """

    def __init__(self, searcher: Searcher, k: int = 24):
        """Uses `searcher`, and shows `k` photos."""
        self.searcher, self._k = searcher, k
        self.most_pairs = min(searcher.gallery.photos, MOST_RERANKED) if searcher.reranks else 0
        self.default_pairs = min(RERANK, self.most_pairs)
        self._explains = isinstance(searcher.retriever, Explainable)
        self._seconds_of_pair = 0.0

    @property
    def pen(self) -> int:
        """Width of the pen in pixels of the 512 x 512 canvas.

        Chosen so that drawings, scaled to the network's input size, have about as much ink as the
        training sketches: 17 % of the pixels in the doodles, 9 % in Sketchy.
        """
        return max(9, round(880 / self.searcher.retriever.image_size))

    def warm_up(self) -> None:
        """Compiles a search, and sets `default_pairs` by the speed of this machine."""
        if not self.searcher.gallery.photos:
            return
        drawing = np.full((64, 64, 3), 255, np.uint8)
        drawing[16:48, 30:34] = 0
        for _ in range(2):
            self._seconds_of_pair = self.searcher(drawing, self._k, self.default_pairs).seconds
            self._seconds_of_pair /= max(1, self.default_pairs)
        fast = int(BUDGET / self._seconds_of_pair)
        self.default_pairs = min(self.most_pairs, max(FEWEST, fast // 50 * 50))
        self.searcher(drawing, self._k, self.default_pairs, expand=EXPAND)

    def empty(self) -> Answer:
        """Shown while nothing is drawn."""
        photos = self.searcher.gallery.photos
        if not photos:
            text = "This index contains no photos: add some with zse_jax.gallery.index add."
            return Answer(_message(title="No photos", text=text))
        text = f"Draw an object, and the most similar of {photos:,} photos appear here."
        if self._explains:
            text += " Click one to see why it was found."
        return Answer(_message(title="Nothing drawn yet", text=text))

    def search(
        self, drawing: str | None, rerank: int | float = RERANK, expands: bool = False
    ) -> Iterator[Answer]:
        """Searches with a drawing: yields the final answer, and if it is slow, first a preview.

        Args:
          drawing: data URL.
          rerank: number of pairs to score.
          expands: expand the query by `EXPAND` photos, see `zse_jax.retrieval.expansion`.
        """
        expand = EXPAND if expands else 0
        try:
            sketch = decoded(drawing or "")
            if sketch is None or not self.searcher.gallery.photos:
                yield self.empty()
                return
            wanted = int(min(max(0, rerank or 0), self.most_pairs))
            if wanted * self._seconds_of_pair > SLOW:
                preview = self.searcher(sketch, self._k, 0, expand=expand)
                yield self._answer(preview, 0, unfinished=True)
            results = self.searcher(sketch, self._k, wanted, expand=expand)
        except SketchError as error:
            yield Answer(_message(problem=True, text=str(error)))
            return
        except Exception:
            yield Answer(_failed("The search"))
            return
        if wanted:
            self._seconds_of_pair = results.seconds / wanted
        yield self._answer(results, min(wanted, results.photos) - results.skipped)

    def _answer(self, results: Results, scored: int, unfinished: bool = False) -> Answer:
        html = _template("found.html").render(
            results=results,
            scored=scored,
            unfinished=unfinished,
            names=[PurePath(hit.path).stem for hit in results.hits],
            explains=self._explains,
        )
        return Answer(html, results)

    def explain(self, results: Results | None, photo: str) -> str:
        """Why a photo of the results was found.

        Args:
          results: the current results.
          photo: the photo's id.
        """
        hit = next((hit for hit in results.hits if hit.id == photo), None) if results else None
        if results is None or hit is None:
            return _message(problem=True, text="Draw first, then choose one of the photos.")
        try:
            part = self.searcher.explain(results.sketch, hit)
        except FileNotFoundError:
            text = "The file of this photo no longer exists, so it cannot be explained."
            return _message(problem=True, text=text)
        except Exception:
            return _failed("The explanation")
        return _template("why.html").render(part=part, line_styles=LINE_STYLES)


def template_text(name: str) -> str:
    """The contents of one of the page's templates."""
    environment = pages.environment(_PACKAGE)
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _failed(what: str) -> str:
    """Reports the current exception: in full on standard error, and without a path in the page."""
    say(f"{what} failed.\n{traceback.format_exc()}", error=True, keep="\n\t")
    text = f"{what} failed. The output of the program that serves this page has the reason."
    return _message(problem=True, text=text)


def _message(**values: Any) -> str:
    return _template("message.html").render({"problem": False, "title": ""} | values)


def _template(name: str) -> jinja2.Template:
    return pages.environment(_PACKAGE).get_template(name)
