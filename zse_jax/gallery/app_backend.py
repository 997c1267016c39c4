"""The backend of the page: takes a query as the browser sends it, returns HTML.

Photos appear as the thumbnails in the index, inside the HTML. Only a browser of this machine gets
paths, and only files of the index are read, to explain a photo. Errors reach the browser only if
they are about the query; others are printed, because their messages name files of this machine.
"""

import base64
import binascii
import datetime
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, NamedTuple

import click
import jinja2
import numpy as np
import pydantic
from jaxtyping import UInt8

from data_pipelines import images
from data_pipelines.images import UnreadableImageError
from data_pipelines.terminal import printable
from zse_jax.explain import pages
from zse_jax.explain.correspondence import LINE_STYLES
from zse_jax.gallery.filters import ORIENTATIONS, Filter
from zse_jax.gallery.photos import path_of
from zse_jax.gallery.results import Results, percent
from zse_jax.gallery.search import EXPAND, RERANK, Feedback, Searcher
from zse_jax.gallery.sketch_cleaning import clean
from zse_jax.gallery.sketch_input import TOO_LITTLE, SketchError, says_too_little
from zse_jax.retrievers.base import Explainable
from zse_jax.runtime.console import say

LARGEST_DRAWING, LARGEST_SIDE = 4 * 2**20, 2048
"""Limits of a drawing: characters of its data URL, and pixels of its longer side."""

MOST_RERANKED = 1000
"""Limit of pairs that are scored for one drawing."""

FEWEST = 20
"""Smallest default number of pairs, on slow machines."""

MOST_THUMBS = 100
"""Limit of the photos that are marked as right, and as wrong, in one query."""

BUDGET, SLOW = 0.3, 0.5
"""Seconds that scoring takes by default, and seconds above which the order by embedding is shown
until the pairs are scored."""

MOST_FOLDERS = 500
"""Limit of the folders among which the page lets choose: those with the most photos."""

SEEN = 160
"""Side of the picture of what the model sees, in pixels."""

NO_QUERY = "The browser sent something that is not a query: reload the page."

BLANK = {
    "title": "The drawing is blank",
    "text": "All of it has the same color: draw an object, or choose another picture.",
}

GONE = "This photo is not in the index any more."

_PACKAGE = "zse_jax.gallery"

_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,")


class Answer(NamedTuple):
    """What the page shows for a query.

    Attributes:
      html: photos, or a message.
      results: those in `html`, or None.
      seen: HTML with what the model sees of the drawing, or "".
      unfinished: pairs are not scored yet: the same query with `patient` has the final answer.
    """

    html: str
    results: Results | None = None
    seen: str = ""
    unfinished: bool = False


class Uploaded(NamedTuple):
    """A picture of a sketch as the page puts it on the paper.

    Attributes:
      picture: its data URL: dark lines on white, or the given picture in doubt; "" if unreadable.
      note: a sentence about what was done, or what is wrong; or "".
      problem: whether the note is about something wrong.
    """

    picture: str = ""
    note: str = ""
    problem: bool = False


Id = Annotated[str, pydantic.Field(pattern=r"^[0-9a-z]{1,64}$")]
Thumbs = Annotated[tuple[Id, ...], pydantic.Field(max_length=MOST_THUMBS)]


class Where(pydantic.BaseModel):
    """Which photos are searched, see `filters.Filter`; "" and None: no condition."""

    model_config = pydantic.ConfigDict(frozen=True)

    folder: str = ""
    after: datetime.date | None = None
    before: datetime.date | None = None
    orientation: str = ""
    type: str = ""


class Query(pydantic.BaseModel):
    """What the browser asks for.

    Attributes:
      drawing: data URL of the drawing; "": nothing is drawn.
      rerank: number of pairs to score.
      expand: expand the query by `EXPAND` photos, see `zse_jax.retrieval.expansion`.
      page: page of the results, counted from 0.
      like, more, fewer: see `search.Feedback`.
      where: which photos are searched.
      patient: wait for pairs that take longer than `SLOW`.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    drawing: str = ""
    rerank: Annotated[int, pydantic.Field(ge=0, le=10**9)] = 0
    expand: bool = False
    page: Annotated[int, pydantic.Field(ge=0, le=10**6)] = 0
    like: Id | Literal[""] = ""
    more: Thumbs = ()
    fewer: Thumbs = ()
    where: Where = Where()
    patient: bool = False

    @property
    def feedback(self) -> Feedback:
        """What the user said about photos."""
        return Feedback(self.like, self.more, self.fewer)


class About(pydantic.BaseModel):
    """A photo of the index that the browser asks about, beside its query."""

    query: Query
    photo: Id


def decoded(drawing: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """The drawing in a data URL; None if there is none, or it is blank.

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
        image = images.decode_file(encoded, sketch=True).rgb
    except (UnreadableImageError, binascii.Error) as error:
        raise SketchError("The drawing is not a picture: draw, or upload a PNG or JPEG.") from error
    return None if image.min() == image.max() else image


class Backend:
    """Handles the page's requests with one searcher.

    Attributes:
      searcher: the searcher.
      most_pairs: limit of pairs to score for a drawing; 0 if the system does not score pairs.
      default_pairs: pairs that are scored by default: as many as this machine scores in `BUDGET`.
      choices: values among which the page lets choose the photos that are searched, as they were
        when the page was started.
    """

    def __init__(self, searcher: Searcher, k: int = 24, local: bool = False):
        """Uses `searcher`, and shows `k` photos at a time.

        Args:
          searcher: the searcher.
          k: photos on a page of results.
          local: only browsers of this machine see the page, and may get paths of photos.
        """
        self.searcher, self._k, self._local = searcher, k, local
        self.most_pairs = min(searcher.gallery.photos, MOST_RERANKED) if searcher.reranks else 0
        self.default_pairs = min(RERANK, self.most_pairs)
        self._explains = isinstance(searcher.retriever, Explainable)
        choices = searcher.choices()
        largest = sorted(choices.folders if local else [], key=lambda each: -each[1])
        folders = [name for name, _ in sorted(largest[:MOST_FOLDERS])]
        self.choices: dict[str, Any] = {
            "folders": folders if len(folders) > 1 else [],
            "labels": _relative(folders),
            "types": choices.types if len(choices.types) > 1 else [],
            "orientations": [*ORIENTATIONS],
            "first": choices.first,
            "last": choices.last,
        }
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
            text = (
                "The album contains no photo that can be read. Put some into it and start this "
                "program again, or add others with `zse-jax index add`."
            )
            return Answer(_message(title="No photos", text=text))
        text = f"Draw an object, and the most similar of {photos:,} photos appear here."
        if self._explains:
            text += " Click one to see why it was found."
        return Answer(_message(title="Nothing drawn yet", text=text))

    def search(self, asked: Any) -> Answer:
        """Searches. The answer to a slow query that is not `patient` is a preview.

        Args:
          asked: a `Query` as JSON.
        """
        try:
            query = Query.model_validate_json(asked)
        except pydantic.ValidationError:
            return Answer(_message(problem=True, text=NO_QUERY))
        try:
            sketch = decoded(query.drawing)
            wanted = 0 if any(query.feedback) else min(query.rerank, self.most_pairs)
            unfinished = not query.patient and sketch is not None and self._is_slow(wanted)
            return self._answer(query, sketch, 0 if unfinished else wanted, unfinished)
        except SketchError as error:
            return Answer(_message(problem=True, text=str(error)))
        except KeyError:
            text = "A photo that this query names is not in the index any more: undo, or draw."
            return Answer(_message(problem=True, text=text))
        except Exception:
            return Answer(_failed("The search"))

    def clean(self, picture: Any) -> Uploaded:
        """Cleans an uploaded picture (`sketch_cleaning`) before it is scaled to the paper.

        Args:
          picture: its data URL.
        """
        try:
            pixels = decoded(picture if isinstance(picture, str) else "")
        except SketchError as error:
            return Uploaded(note=str(error), problem=True)
        if pixels is None:
            return Uploaded(note="That picture is blank: choose another picture.", problem=True)
        cleaned, changes, doubt = clean(pixels)
        note = f"The picture was cleaned: {', '.join(changes)}." if changes else doubt
        return Uploaded(pages.image_uri(cleaned, LARGEST_SIDE), note, bool(doubt))

    def _is_slow(self, pairs: int) -> bool:
        return pairs * self._seconds_of_pair > SLOW

    def _answer(
        self,
        query: Query,
        sketch: UInt8[np.ndarray, "h w 3"] | None,
        rerank: int,
        unfinished: bool,
    ) -> Answer:
        """The answer to a query with a drawing; None: there is none, or it is blank."""
        if not query.drawing or not self.searcher.gallery.photos:
            return self.empty()
        if sketch is None:
            return Answer(_message(**BLANK))
        if says_too_little(sketch):
            return Answer(_message(title="This says too little", text=TOO_LITTLE))
        where = query.where
        for kind, value in (
            ("folders", where.folder),
            ("orientations", where.orientation),
            ("types", where.type),
        ):
            if value and value not in self.choices[kind]:
                text = f"This page does not offer {printable(value)} as one of the {kind}."
                return Answer(_message(problem=True, text=text))
        results = self.searcher(
            sketch,
            self._k,
            rerank,
            expand=EXPAND if query.expand else 0,
            skip=query.page * self._k,
            feedback=query.feedback,
            where=Filter(
                (where.folder,) if where.folder else (),
                where.after,
                where.before,
                where.orientation,
                (where.type,) if where.type else (),
            ),
        )
        if rerank:
            self._seconds_of_pair = results.seconds / rerank
        seen = _template("seen.html").render(
            src=pages.image_uri(results.sketch, SEEN),
            changes=results.changes,
            doubt=results.doubt,
        )
        if not results.hits and not query.page and "filter" in results.about:
            text = f"No photo is {results.about['filter']}. Choose fewer conditions."
            return Answer(_message(title="No photos here", text=text), None, seen)
        if not results.hits:
            text = "There are no more photos. Go back with Undo, or draw."
            return Answer(_message(title="No photos here", text=text), None, seen)
        scored = min(rerank, results.photos) - results.skipped
        html = self._shown(query, results, scored, unfinished)
        return Answer(html, results, seen, unfinished)

    def _shown(self, query: Query, results: Results, scored: int, unfinished: bool) -> str:
        """The photos as HTML."""
        hits = results.hits
        chances = [hit.probability for hit in hits if hit.probability is not None]
        best = max(hit.similarity for hit in hits)
        if chances:
            shares = chances
            scores = [percent(chance) for chance in chances]
            values = [f"{score} likely" for score in scores]
        else:
            shares = [max(0.0, hit.similarity) / max(best, 1e-9) for hit in hits]
            scores = [f"{hit.similarity:.2f}" for hit in hits]
            values = [f"similarity {score}" for score in scores]
        return _template("found.html").render(
            results=results,
            query=query,
            scored=scored,
            pairs=self.most_pairs,
            unfinished=unfinished,
            names=[PurePath(hit.path).name for hit in hits],
            likely=results.likely,
            bars=[round(100 * share) for share in shares],
            scores=scores,
            values=values,
            said=self._feedback(query),
            more=hits[-1].rank + len(query.fewer) < results.photos,
            explains=self._explains,
            local=self._local,
        )

    def _feedback(self, query: Query) -> str:
        """What the user said about photos, in words; "" if nothing."""
        parts = []
        if query.like:
            path = self.searcher.gallery.tables.by_id(query.like, ["path"])["path"]
            parts.append(f"Like {printable(PurePath(path).name)}, not like the drawing.")
        if query.more:
            parts.append(f"Marked as right: {len(query.more)}.")
        if query.fewer:
            parts.append(f"Left out as wrong: {len(query.fewer)}.")
        return " ".join(parts)

    def explain(self, asked: Any) -> str:
        """Why a photo was found, as HTML.

        Args:
          asked: an `About` as JSON.
        """
        try:
            about = About.model_validate_json(asked)
        except pydantic.ValidationError:
            return _said(NO_QUERY, problem=True)
        if not self._explains:
            return _said("This system compares whole images and has no local evidence.")
        try:
            sketch = decoded(about.query.drawing)
            if sketch is None:
                return _said("Draw first, then choose one of the photos.", problem=True)
            part = self.searcher.explain(sketch, about.photo)
        except KeyError:
            return _said(GONE, problem=True)
        except SketchError as error:
            return _said(str(error), problem=True)
        except FileNotFoundError:
            text = "The file of this photo no longer exists, so it cannot be explained."
            return _said(text, problem=True)
        except Exception:
            return _said(_reported("The explanation"), problem=True)
        return _template("why.html").render(part=part, line_styles=LINE_STYLES)

    def open_folder(self, photo: Any) -> str:
        """Opens the folder of a photo in the file manager; returns a message as HTML.

        Only for a browser of this machine.

        Args:
          photo: its id.
        """
        if not self._local:
            return _said("Only a page of this machine opens folders.", problem=True)
        try:
            row = self.searcher.gallery.tables.by_id(str(photo), ["path", "file"])
        except KeyError:
            return _said(GONE, problem=True)
        except Exception:
            return _said(_reported("Opening the folder"), problem=True)
        file = path_of(row["file"])
        if not file.exists() or click.launch(os.fspath(file), locate=True):
            text = f"The folder of {printable(row['path'])} cannot be opened on this machine."
            return _said(text, problem=True)
        return _said("The file manager has been asked to open the folder.")


def _relative(folders: Sequence[str]) -> dict[str, str]:
    """The paths of folders relative to the folder above all of them, for display."""
    above = PurePath(os.path.commonpath(folders or ["/"])).parent
    return {folder: os.fspath(PurePath(folder).relative_to(above)) for folder in folders}


def template_text(name: str) -> str:
    """The contents of one of the page's templates."""
    environment = pages.environment(_PACKAGE)
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def template_html(name: str, **values: Any) -> str:
    """A template of the page with values."""
    return _template(name).render(**values)


def _said(text: str, problem: bool = False) -> str:
    return _template("why.html").render(part=None, text=text, problem=problem)


def _failed(what: str) -> str:
    return _message(problem=True, text=_reported(what))


def _reported(what: str) -> str:
    """Prints the current exception on standard error; returns a message without a path."""
    say(f"{what} failed.\n{traceback.format_exc()}", error=True, keep="\n\t")
    return f"{what} failed. The output of the program that serves this page has the reason."


def _message(**values: Any) -> str:
    return _template("message.html").render({"problem": False, "title": ""} | values)


def _template(name: str) -> jinja2.Template:
    return pages.environment(_PACKAGE).get_template(name)
