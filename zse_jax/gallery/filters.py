"""Which photos of an index a search may find: by folder, date, orientation and file type.

A filter is a condition in SQL, which the database applies together with the search: the photos that
pass it are ranked, and the others are not looked at.
"""

import collections
import contextlib
import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from absl import flags

from data_pipelines.suggestions import counted, suggest
from data_pipelines.terminal import printable
from zse_jax.gallery.photos import absolute
from zse_jax.gallery.tables import Tables

ORIENTATIONS: Mapping[str, str] = {
    "landscape": "width > height",
    "portrait": "width < height",
    "square": "width = height",
}
"""The orientations, and their conditions."""

SPELLINGS = {"jpg": "jpeg", "tif": "tiff", "heic": "heif", "jp2": "jpeg2000"}
"""Other names of file types."""


@dataclasses.dataclass(frozen=True)
class Filter:
    """A condition on photos. Without arguments, every photo passes, and the filter is false.

    Attributes:
      folders: absolute paths, as `Hit.path` shows them; photos in them and below them pass.
      after: photos taken on this day or later pass.
      before: photos taken before this day pass.
      orientation: one of `ORIENTATIONS`, or "".
      types: file types, as `Choices.types` lists them; a photo of any of them passes.
    """

    folders: tuple[str, ...] = ()
    after: datetime.date | None = None
    before: datetime.date | None = None
    orientation: str = ""
    types: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is a condition."""
        return bool(self.sql)

    @property
    def sql(self) -> str:
        """The condition on the table of photos; "" if there is none."""
        folders = " OR ".join(
            f"starts_with(path, {_quoted(folder.rstrip('/') + '/')})" for folder in self.folders
        )
        parts = [
            f"({folders})" if folders else "",
            f"taken >= timestamp '{self.after} 00:00:00'" if self.after else "",
            f"taken < timestamp '{self.before} 00:00:00'" if self.before else "",
            ORIENTATIONS[self.orientation] if self.orientation else "",
            f"format IN ({', '.join(map(_quoted, self.types))})" if self.types else "",
        ]
        return " AND ".join(filter(None, parts))

    def __str__(self) -> str:
        """The condition, for display."""
        parts = [
            " or ".join(f"in {folder}" for folder in self.folders),
            f"taken from {self.after}" if self.after else "",
            f"taken before {self.before}" if self.before else "",
            self.orientation,
            " or ".join(self.types),
        ]
        return ", ".join(filter(None, parts))


EVERYTHING = Filter()
"""Every photo passes."""


class Choices(NamedTuple):
    """The values that filters of one index can have.

    Attributes:
      folders: list of folders of photos, sorted, each with the number of photos in and below it.
      types: list of file types, the most frequent one first.
      first, last: the first and the last day on which a photo was taken, or None.
    """

    folders: list[tuple[str, int]]
    types: list[str]
    first: datetime.date | None
    last: datetime.date | None


def parse(
    folders: Sequence[str | os.PathLike] = (),
    after: str = "",
    before: str = "",
    orientation: str = "",
    types: Sequence[str] = (),
) -> Filter:
    """A filter from what a user wrote.

    Args:
      folders: paths, relative ones from the current folder.
      after, before: days as YYYY-MM-DD; YYYY and YYYY-MM are their first days. "": no limit.
      orientation: one of `ORIENTATIONS`, or "".
      types: file types, in any case and with or without a dot.

    Raises:
      ValueError: a date or an orientation is wrong, or no date is between the limits.
    """
    first, end = _day(after, "--after"), _day(before, "--before")
    if first and end and first >= end:
        raise ValueError(
            f"No photo was taken from {first} on and before {end}: give --before a later day than "
            "--after."
        )
    orientation = orientation.lower()
    if orientation and orientation not in ORIENTATIONS:
        raise ValueError(
            f"--orientation={orientation}{suggest(orientation, ORIENTATIONS)}: choose one of "
            f"{', '.join(ORIENTATIONS)}."
        )
    names = [kind.lower().removeprefix(".") for kind in types]
    return Filter(
        tuple(printable(str(absolute(folder))) for folder in folders),
        first,
        end,
        orientation,
        tuple(SPELLINGS.get(name, name) for name in names),
    )


def define_flags(options: flags.FlagValues) -> None:
    """The flags of a program that searches, for `from_flags`."""
    help_ = "Search only the photos in this folder and below it; can be repeated."
    flags.DEFINE_multi_string("folder", [], help_, options)
    help_ = "Search only photos taken on this day or later: YYYY-MM-DD, YYYY-MM or YYYY."
    flags.DEFINE_string("after", "", help_, options)
    flags.DEFINE_string("before", "", "Search only photos taken before this day.", options)
    help_ = f"Search only photos of this orientation: {', '.join(ORIENTATIONS)}."
    flags.DEFINE_string("orientation", "", help_, options)
    help_ = "Search only photos of this file type, such as jpeg, heif or png; can be repeated."
    flags.DEFINE_multi_string("type", [], help_, options)


def from_flags(options: flags.FlagValues) -> Filter:
    """The filter that the flags of `define_flags` describe.

    Raises:
      ValueError: as `parse`.
    """
    types: list[str] = options["type"].value or []
    return parse(options.folder, options.after, options.before, options.orientation, types)


def check(where: Filter, tables: Tables) -> int:
    """The number of photos that pass a filter.

    Raises:
      ValueError: the index does not record what the filter needs, or has no photo of a type.
    """
    needed = bool(where.types or where.after or where.before)
    missing = "format IS NULL" if tables.is_described else ""
    if needed and (count := tables.count(where=missing)):
        raise ValueError(
            f"The index {tables.uri} was made by an earlier version and does not record the date "
            f"and the type of {counted(count, 'photo', 'photos')}. Run `python -m "
            f"zse_jax.gallery.index sync --index={tables.uri} --photos=...` with the folder of the "
            "photos: it adds them, and encodes nothing again."
        )
    passing = tables.count(where=where.sql)
    if where.types and not passing:
        known = _types(tables)
        if unknown := next((kind for kind in where.types if kind not in known), ""):
            raise ValueError(
                f"The index {tables.uri} has no photo of the type {unknown!r}"
                f"{suggest(unknown, known)}. Its types are {', '.join(known) or 'none'}."
            )
    return passing


def choices(tables: Tables) -> Choices:
    """The values that filters of an index can have; no types and dates if it records none."""
    parents = collections.Counter(
        os.path.dirname(path)  # noqa: PTH120 - much faster than Path, for many photos
        for path in tables.columns("path")["path"].to_pylist()
    )
    below: collections.Counter[str] = collections.Counter()
    top = os.path.commonpath(parents) if parents else ""
    for folder, count in parents.items():
        for one in (PurePath(folder), *PurePath(folder).parents):
            below[str(one)] += count
            if str(one) == top:
                break
    folders = sorted(below.items())
    if not tables.is_described:
        return Choices(folders, [], None, None)
    taken = tables.columns("taken")["taken"].drop_null().to_numpy().astype("datetime64[D]")
    first, last = (taken.min().item(), taken.max().item()) if len(taken) else (None, None)
    return Choices(folders, _types(tables), first, last)


def _types(tables: Tables) -> list[str]:
    found = collections.Counter(tables.columns("format")["format"].to_pylist())
    return [name for name, _ in found.most_common() if name]


def _day(text: str, flag: str) -> datetime.date | None:
    for rest in ("", "-01", "-01-01") if text else ():
        with contextlib.suppress(ValueError):
            return datetime.date.fromisoformat(text + rest)
    if text:
        raise ValueError(
            f"{flag}={text} is not a day: write YYYY-MM-DD, or YYYY-MM or YYYY for the first day "
            "of a month or a year."
        )
    return None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
