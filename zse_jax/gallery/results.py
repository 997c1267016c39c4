"""What a sketch found: as objects, a table, JSON, or a page."""

import base64
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.table import Table

from zse_jax.explain import pages
from zse_jax.explain.pair_figures import LINE_STYLES


@dataclasses.dataclass(frozen=True)
class Hit:
    """A photo that was found.

    Attributes:
      rank: counted from 1.
      id: what the index knows it by.
      path: for people; `file` is what to open.
      file: the photo's file, which may be gone meanwhile.
      similarity: by the ranking of its stage; of different stages, they do not compare.
      stage: "rerank" if the pair was scored, "shortlist" if embeddings were compared.
      thumbnail: JPEG.
      width, height: of the photo, in pixels.
    """

    rank: int
    id: str
    path: str
    file: Path
    similarity: float
    stage: str
    thumbnail: bytes = dataclasses.field(repr=False)
    width: int
    height: int

    @property
    def thumbnail_uri(self) -> str:
        """The thumbnail as a data URI, for pages."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.thumbnail).decode()}"


@dataclasses.dataclass(frozen=True)
class Results:
    """What a sketch found.

    Attributes:
      hits: nearest first.
      sketch: prepared.
      seconds: from the sketch to the hits.
      timings: seconds of its parts, by name.
      rankings: the system's name for the ranking of each stage that took part.
      photos: how many were searched.
      skipped: how many of the shortlist could not be scored, as their files are gone or changed.
      about: what the search was, by name.
    """

    hits: Sequence[Hit]
    sketch: UInt8[np.ndarray, "s s 3"] = dataclasses.field(repr=False)
    seconds: float
    timings: Mapping[str, float]
    rankings: Mapping[str, str]
    photos: int
    skipped: int
    about: Mapping[str, str]

    def table(self) -> Table:
        """For a terminal."""
        folder, names = self._names()
        table = Table(
            title=f"The nearest of {self.photos:,} photos, in {self.seconds * 1000:.0f} ms",
            caption=f"in {_plain(folder)}" if folder else None,
        )
        table.add_column("rank", justify="right")
        table.add_column("similarity", justify="right")
        table.add_column("by")
        table.add_column("photo", overflow="fold")
        for hit, name in zip(self.hits, names, strict=True):
            by, similarity = self.rankings[hit.stage], f"{hit.similarity:#.4g}"
            table.add_row(str(hit.rank), similarity, by, _plain(name))
        return table

    def to_json(self) -> str:
        """As JSON: `hits` without thumbnails, and what the search was."""
        hits = [
            {
                "rank": hit.rank,
                "similarity": hit.similarity,
                "stage": hit.stage,
                "id": hit.id,
                "path": hit.path,
                "width": hit.width,
                "height": hit.height,
            }
            for hit in self.hits
        ]
        contents: dict[str, Any] = {
            **self.about,
            "photos": self.photos,
            "rankings": dict(self.rankings),
            "skipped": self.skipped,
            "seconds": self.seconds,
            "hits": hits,
        }
        return json.dumps(contents, indent=2, ensure_ascii=False)

    def to_html(self, explained: Sequence[pages.Explained] = ()) -> str:
        """A page that opens offline.

        Args:
          explained: what `Searcher.explain` made of some of the hits.
        """
        name = self.about.get("sketch", "the sketch")
        folder, names = self._names()
        row = [
            pages.Photo(hit.thumbnail_uri, shown, hit.rank, None, f"{hit.similarity:#.3g}")
            for hit, shown in zip(self.hits, names, strict=True)
        ]
        note = f"by {self.rankings.get('rerank', self.rankings['shortlist'])}"
        thumbnail = pages.image_uri(self.sketch, pages.THUMBNAIL)
        stem = Path(name).stem
        facts = {**self.about, "photos": folder, "time": f"{self.seconds * 1000:.0f} ms"}
        warnings = (
            [f"{self.skipped:,} photos of the shortlist could not be scored: their files are gone."]
            if self.skipped
            else []
        )
        return pages.render(
            "pair.html",
            title=f"What {Path(name).name} finds",
            lead=f"The nearest of {self.photos:,} photos, with their rank and similarity.",
            warnings=warnings,
            found=pages.Query(thumbnail, stem, note, row, explained),
            facts={name: fact for name, fact in facts.items() if fact},
            line_styles=LINE_STYLES,
        )

    def _names(self) -> tuple[str, list[str]]:
        """The folder that all hits lie in, or "", and their paths from there."""
        folder = os.path.commonpath([Path(hit.path).parent for hit in self.hits] or [Path("/")])
        start = len(folder) + 1 if len(folder) > 1 else 0
        return folder if start else "", [hit.path[start:] for hit in self.hits]


def _plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", "\\[")
