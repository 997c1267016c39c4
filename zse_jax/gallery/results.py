"""The results of a search: objects, a table, JSON, or a page."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.table import Table

from data_pipelines.suggestions import counted
from zse_jax.explain import pages
from zse_jax.explain.correspondence import LINE_STYLES
from zse_jax.retrieval.calibration import LIKELY
from zse_jax.runtime.console import duration


@dataclasses.dataclass(frozen=True)
class Hit:
    """A photo that was found.

    Attributes:
      rank: counted from 1.
      id: its id in the index.
      path: for display; open `file` instead.
      file: the path of the photo, see `photos.File`, which may have been deleted since.
      similarity: by the ranking of its stage; not comparable between stages.
      stage: "rerank" if the pair was scored, "shortlist" if embeddings were compared.
      thumbnail: JPEG.
      width, height: size of the photo in pixels.
      probability: that it shows what was drawn, 0 to 1, by the calibration of the model; None if
        the model has none, or the query is a photo.
    """

    rank: int
    id: str
    path: str
    file: Any
    similarity: float
    stage: str
    thumbnail: bytes = dataclasses.field(repr=False)
    width: int
    height: int
    probability: float | None = None

    @property
    def thumbnail_uri(self) -> str:
        """The thumbnail as a data URI, for pages."""
        return pages.data_uri(self.thumbnail, "jpeg")

    @property
    def question(self) -> str:
        """The title of an explanation of this photo."""
        return f"Why photo {self.rank} ({Path(self.path).name})?"


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a search.

    Attributes:
      hits: nearest first.
      sketch: prepared.
      seconds: duration of the search.
      timings: duration of its parts in seconds, by name.
      rankings: the system's name for the ranking of each stage that was used.
      photos: number of photos that were searched.
      skipped: number of photos of the shortlist that could not be scored, because their files were
        deleted or changed.
      about: facts about the search, by name.
      changes: what cleaning the sketch did, one short phrase each.
      doubt: a sentence, if the sketch is probably not a line drawing; else "".
    """

    hits: Sequence[Hit]
    sketch: UInt8[np.ndarray, "s s 3"] = dataclasses.field(repr=False)
    seconds: float
    timings: Mapping[str, float]
    rankings: Mapping[str, str]
    photos: int
    skipped: int
    about: Mapping[str, str]
    changes: Sequence[str] = ()
    doubt: str = ""

    @property
    def likely(self) -> int | None:
        """How many of the hits probably show what was drawn; None without probabilities."""
        chances = [hit.probability for hit in self.hits if hit.probability is not None]
        return sum(chance >= LIKELY for chance in chances) if chances else None

    @property
    def match_text(self) -> str:
        """A sentence if no photo is a good match; else "", also without probabilities."""
        return f"No good match: no photo reaches {percent(LIKELY)}." if self.likely == 0 else ""

    @property
    def skipped_text(self) -> str:
        """A sentence about `skipped`."""
        photos = counted(self.skipped, "photo", "photos")
        return f"{photos} could not be scored, because files were deleted or changed."

    def table(self) -> Table:
        """The hits as a table for a terminal."""
        folder, names = self._names()
        photos = counted(self.photos, "photo", "photos")
        notes = [f"in {folder}"] if folder else []
        table = Table(
            title=f"The nearest of {photos}, in {_took(self.seconds)}",
            caption="\n".join([*notes, self.match_text]).strip() or None,
        )
        table.add_column("rank", justify="right")
        table.add_column("similarity", justify="right")
        is_calibrated = self.likely is not None
        if is_calibrated:
            table.add_column("probability", justify="right")
        table.add_column("by")
        table.add_column("photo", overflow="fold")
        for hit, name in zip(self.hits, names, strict=True):
            by, similarity = self.rankings[hit.stage], f"{hit.similarity:#.4g}"
            chance = [percent(hit.probability)] if is_calibrated else []
            table.add_row(str(hit.rank), similarity, *chance, by, name)
        return table

    def to_json(self, indent: int | None = 2) -> str:
        """The hits, without thumbnails, and facts about the search as JSON; None: in one line."""
        return json.dumps(self._plain(), indent=indent, ensure_ascii=False)

    def to_html(
        self, explained: Sequence[pages.Explained] = (), warnings: Sequence[str] = ()
    ) -> str:
        """A page that opens offline.

        Args:
          explained: results of `Searcher.explain` for some of the hits.
          warnings: what the reader must know about the results.
        """
        return to_html([(self, explained)], warnings)

    @property
    def _sketch_name(self) -> str:
        return Path(self.about.get("sketch", "the sketch")).name

    def _plain(self) -> dict[str, Any]:
        names = "rank", "similarity", "probability", "stage", "id", "path", "width", "height"
        return {
            **self.about,
            "photos": self.photos,
            "rankings": dict(self.rankings),
            "skipped": self.skipped,
            "seconds": self.seconds,
            "hits": [{name: getattr(hit, name) for name in names} for hit in self.hits],
        }

    def _query(self, explained: Sequence[pages.Explained]) -> pages.Query:
        row = [
            pages.Photo(hit.thumbnail_uri, shown, hit.rank, None, _score(hit))
            for hit, shown in zip(self.hits, self._names()[1], strict=True)
        ]
        note = f"by {self.rankings.get('rerank', self.rankings.get('shortlist'))}"
        thumbnail = pages.image_uri(self.sketch, pages.THUMBNAIL)
        return pages.Query(thumbnail, Path(self._sketch_name).stem, note, row, explained)

    def _names(self) -> tuple[str, list[str]]:
        """The folder that contains all hits, or "", and the paths of the hits relative to it."""
        folder = os.path.commonpath([Path(hit.path).parent for hit in self.hits] or [Path("/")])
        start = len(folder) + 1 if len(folder) > 1 else 0
        return folder if start else "", [hit.path[start:] for hit in self.hits]


def to_json(found: Sequence[Results]) -> str:
    """Searches as JSON: one as `Results.to_json` gives it, several as a list of such objects."""
    plain = [results._plain() for results in found]
    return json.dumps(plain[0] if len(plain) == 1 else plain, indent=2, ensure_ascii=False)


def to_html(
    found: Sequence[tuple[Results, Sequence[pages.Explained]]], warnings: Sequence[str] = ()
) -> str:
    """A page of searches in the same photos, each with its explanations; opens offline.

    Args:
      found: the searches, at least one, each with results of `Searcher.explain`.
      warnings: what the reader must know about the results.
    """
    searches = [results for results, _ in found]
    first = searches[0]
    names = ", ".join(dict.fromkeys(results._sketch_name for results in searches))
    folders = dict.fromkeys(folder for results in searches if (folder := results._names()[0]))
    facts = {
        **first.about,
        "sketch": ", ".join(dict.fromkeys(r.about.get("sketch", "") for r in searches)),
        "photos": ", ".join(folders),
        "time": _took(sum(results.seconds for results in searches)),
    }
    score = "similarity" if first.likely is None else "the probability that they show the drawing"
    return pages.render(
        "pair.html",
        title=f"What {names} {'finds' if len(searches) == 1 else 'find'}",
        lead=f"The nearest of {counted(first.photos, 'photo', 'photos')}, with rank and {score}.",
        warnings=[*warnings, *filter(None, map(_warning, searches))],
        queries=[results._query(explained) for results, explained in found],
        facts={name: fact for name, fact in facts.items() if fact},
        line_styles=LINE_STYLES,
    )


def _warning(results: Results) -> str:
    """What the reader of a page must know about one search; "" if nothing."""
    cleaned = f"It was cleaned: {', '.join(results.changes)}." if results.changes else ""
    skipped = results.skipped_text if results.skipped else ""
    texts = [results.doubt or cleaned, results.match_text, skipped]
    text = " ".join(filter(None, texts))
    return f"{results._sketch_name}: {text}" if text else ""


def _score(hit: Hit) -> str:
    """The probability of a hit, or its similarity, for display."""
    return percent(hit.probability) or f"{hit.similarity:#.3g}"


def percent(probability: float | None) -> str:
    """A probability for display, rounded down, so that 49.9 % is not shown as 50 %; None: ""."""
    return "" if probability is None else f"{int(100 * probability)} %"


def _took(seconds: float) -> str:
    """A duration, for display."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)
