"""What the page shows: a drawing as the browser sends it goes in, a piece of HTML comes out.

Photos appear as the index's own thumbnails, within the HTML. No file is ever named to the browser,
and none is read but those of the index, to explain a photo.
"""

import base64
import binascii
import io
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines import images
from zse_jax.explain import pages
from zse_jax.explain.correspondence import ink_share
from zse_jax.explain.pair_figures import LINE_STYLES
from zse_jax.gallery.results import Results
from zse_jax.gallery.search import RERANK, Searcher
from zse_jax.retrievers.base import Explainable

LARGEST_DRAWING, LARGEST_SIDE = 4 * 2**20, 2048
"""Characters of a drawing that is looked at, and pixels of its sides."""

MOST_RERANKED = 1000
"""Pairs that are scored for one drawing, at most."""

FEWEST = 20
"""Pairs that are scored unless asked otherwise, on the slowest machine."""

BUDGET, SLOW = 0.3, 0.5
"""Seconds that scoring takes unless asked otherwise; and from which on the order by embedding is
shown until the pairs are scored."""

_PACKAGE = "zse_jax.gallery"

_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,")


class Answer(NamedTuple):
    """What the page shows for a drawing: HTML, and the results in it, or None."""

    html: str
    results: Results | None = None


def decoded(drawing: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """The drawing in a data URL; None where nothing is drawn.

    Raises:
      ValueError: it is no picture, or larger than a drawing needs to be.
    """
    if not drawing:
        return None
    match = _DATA_URL.match(drawing[:40])
    if len(drawing) > LARGEST_DRAWING:
        raise ValueError(
            f"The drawing is too large ({len(drawing) / 2**20:.0f} MiB): save it smaller."
        )
    try:
        if match is None:
            raise ValueError("no data URL of a picture")
        encoded = base64.b64decode(drawing[match.end() :], validate=True)
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "WEBP")) as head:
            size = head.size
    except (ValueError, OSError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError("The drawing is no picture: draw it, or choose a PNG or JPEG.") from error
    if max(size) > LARGEST_SIDE:
        raise ValueError(
            f"The drawing has {size[0]} x {size[1]} pixels: save it with at most {LARGEST_SIDE} "
            "on each side."
        )
    image = images.decode(encoded)
    return image if ink_share(image[None], 1).any() else None


class Answers:
    """Answers the page's questions with one searcher.

    Attributes:
      searcher: the searcher.
      most: pairs that can be scored for a drawing; 0 if the system scores none.
      usual: pairs that are scored unless asked otherwise: as many as take `BUDGET` seconds here.
    """

    def __init__(self, searcher: Searcher, k: int = 24):
        """Shows `k` photos."""
        self.searcher, self._k = searcher, k
        self.most = min(searcher.gallery.photos, MOST_RERANKED) if searcher.reranks else 0
        self.usual = min(RERANK, self.most)
        self._seconds_of_pair = 0.0

    @property
    def pen(self) -> int:
        """Width of the pen in pixels of the paper, whose sides have 512.

        So wide that a drawing is about as dark, once it is scaled to the network's images, as the
        sketches that it was trained on: 17 % of the doodles' pixels are ink, 9 % of Sketchy's.
        """
        return max(9, round(880 / self.searcher.retriever.image_size))

    def warm_up(self) -> None:
        """Compiles what a search needs, and sees how many pairs this machine scores in `BUDGET`."""
        if not self.searcher.gallery.photos:
            return
        drawing = np.full((64, 64, 3), 255, np.uint8)
        drawing[16:48, 30:34] = 0
        for _ in range(2):
            self._seconds_of_pair = self.searcher(drawing, self._k, self.usual).seconds
            self._seconds_of_pair /= max(1, self.usual)
        fast = int(BUDGET / self._seconds_of_pair)
        self.usual = min(self.most, max(FEWEST, fast // 50 * 50))
        self.searcher(drawing, self._k, self.usual)  # reads what the next one needs, too

    def empty(self) -> Answer:
        """What is shown while nothing is drawn."""
        photos = self.searcher.gallery.photos
        if not photos:
            text = "This index holds no photo yet: add some with zse_jax.gallery.index add."
            return Answer(_message(title="No photos", text=text))
        text = f"Draw an object, and the most similar of {photos:,} photos appear here."
        if isinstance(self.searcher.retriever, Explainable):
            text += " Click one to see why it was found."
        return Answer(_message(title="Nothing drawn yet", text=text))

    def search(self, drawing: str | None, rerank: int | float = RERANK) -> Iterator[Answer]:
        """Answers to a drawing, the last of which is final; an earlier one is a first glance.

        Args:
          drawing: data URL.
          rerank: how many pairs to score.
        """
        try:
            sketch = decoded(drawing or "")
            if sketch is None or not self.searcher.gallery.photos:
                yield self.empty()
                return
            wanted = int(min(max(0, rerank or 0), self.most))
            if wanted * self._seconds_of_pair > SLOW:
                yield self._answer(self.searcher(sketch, self._k, 0), 0, unfinished=True)
            results = self.searcher(sketch, self._k, wanted)
        except (ValueError, OSError, FloatingPointError) as error:
            yield Answer(_message(problem=True, text=str(error)))
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
            explains=isinstance(self.searcher.retriever, Explainable),
        )
        return Answer(html, results)

    def explain(self, results: Results | None, photo: str) -> str:
        """Why a photo of the results was found.

        Args:
          results: of the drawing that is shown.
          photo: its id.
        """
        hit = next((hit for hit in results.hits if hit.id == photo), None) if results else None
        if results is None or hit is None:
            return _message(problem=True, text="Draw first, then choose one of the photos found.")
        try:
            part = self.searcher.explain(results.sketch, hit)
        except FileNotFoundError:
            text = "The file of this photo is gone since it was indexed, so nothing can be shown."
            return _message(problem=True, text=text)
        except (ValueError, OSError) as error:
            return _message(problem=True, text=str(error))
        return _template("why.html").render(part=part, line_styles=LINE_STYLES)


def template_text(name: str) -> str:
    """The text of one of the page's own files."""
    environment = pages.environment(_PACKAGE)
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _message(**values: Any) -> str:
    return _template("message.html").render({"problem": False, "title": ""} | values)


def _template(name: str) -> jinja2.Template:
    return pages.environment(_PACKAGE).get_template(name)
