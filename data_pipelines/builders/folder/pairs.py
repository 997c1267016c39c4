"""Which sketch was drawn from which photo: by their names, or by a table."""

import csv
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from data_pipelines import splits
from data_pipelines.builders.folders import ImageFile

logger = logging.getLogger(__name__)

_MAX_WRONG = 20
"""Wrong lines of a table that are named before its reading stops."""


def by_name(sketches: Sequence[ImageFile], photos: Sequence[ImageFile]) -> dict[str, str]:
    """Sketch -> the photo of its class that is called the same but for a number at its end.

    A whole name comes before one without its number, and a name with the folders below the class
    before the name alone. Where several photos are called so, there is no pair, and a warning.
    """
    found: dict[str, str] = {}
    ambiguous: dict[str, list[str]] = {}
    keys: list[Callable[[ImageFile], str]] = [_below_class, _stem]
    tables = [(key, _group(photos, key)) for key in keys]
    for sketch in sketches:
        names = [
            table.get((sketch.class_name, name))
            for key, table in tables
            for name in (key(sketch), re.sub(r"[-_]\d+$", "", key(sketch)))
        ]
        same = next(filter(None, names), [])
        if len(same) == 1:
            found[sketch.name] = same[0]
        elif same:
            ambiguous[sketch.name] = same
    if ambiguous:
        example, same = next(iter(ambiguous.items()))
        logger.warning(
            "%d sketches have the name of several photos and are paired with none, for example %s: "
            "%s. Say which in pairs.csv, with the header sketch,photo.",
            len(ambiguous),
            example,
            ", ".join(same),
        )
    return found


def from_csv(
    path: Path, sketches: Sequence[ImageFile], photos: Sequence[ImageFile]
) -> dict[str, str]:
    """Sketch -> photo as a table has it: header `sketch,photo`, paths relative to its folder.

    Raises:
      ValueError: naming the lines that are wrong, the first twenty.
    """
    by_path = {"sketch": _by_path(sketches), "photo": _by_path(photos)}
    found: dict[str, str] = {}
    first_line: dict[str, int] = {}
    wrong: list[str] = []
    for number, row in _rows(path):
        if len(wrong) == _MAX_WRONG:
            break
        try:
            sketch, photo = (_find(kind, row, by_path[kind]) for kind in ("sketch", "photo"))
            if sketch.class_name != photo.class_name:
                raise ValueError(
                    f"{sketch.name} is of class {sketch.class_name!r}, its photo {photo.name} of "
                    f"{photo.class_name!r}"
                )
            if found.setdefault(sketch.name, photo.name) != photo.name:
                raise ValueError(
                    f"{sketch.name} is drawn from {photo.name}, but in line "
                    f"{first_line[sketch.name]} from {found[sketch.name]}"
                )
            first_line.setdefault(sketch.name, number)
        except ValueError as error:
            wrong.append(f"\n  line {number}: {error}")
    if wrong:
        splits.raise_or_collect(
            ValueError(
                f"{path} has wrong lines, of which at most {_MAX_WRONG} are listed. Correct them, "
                f"or remove the file to pair by name:{''.join(wrong)}"
            )
        )
    return found


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and content of each line that is not empty."""
    try:
        with path.open(
            encoding="utf-8-sig", newline=""
        ) as file:  # Excel writes a mark at its start.
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} is no table of comma-separated values in UTF-8: {error}"
        ) from error
    if not {"sketch", "photo"} <= set(header):
        raise ValueError(
            f"{path} must begin with the line sketch,photo, but its line 1 is {','.join(header)!r}."
        )
    return rows


def _find(kind: str, row: Mapping[str, str | None], files: Mapping[str, ImageFile]) -> ImageFile:
    name = (row[kind] or "").strip()
    if not name:
        raise ValueError(f"it names no {kind}")
    path = _normal(PurePosixPath(name).as_posix())
    if path not in files:
        folder = path.rpartition("/")[0]
        near = splits.nearest(path, [f for f in files if f.rpartition("/")[0] == folder])
        hint = f" (did you mean {near}?)" if near else ""
        raise ValueError(f"there is no {kind} {name!r}{hint}")
    return files[path]


def _by_path(files: Sequence[ImageFile]) -> dict[str, ImageFile]:
    return {_normal(file.name): file for file in files}


def _group(
    photos: Sequence[ImageFile], key: Callable[[ImageFile], str]
) -> dict[tuple[str, str], list[str]]:
    """Names of the photos that have a class and key in common."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for photo in photos:
        grouped.setdefault((photo.class_name, key(photo)), []).append(photo.name)
    return grouped


def _below_class(file: ImageFile) -> str:
    """`a/1` of `sketch/cat/a/1.png`."""
    return _normal(file.name.split("/", 2)[2].rpartition(".")[0])


def _stem(file: ImageFile) -> str:
    """`1` of `sketch/cat/a/1.png`."""
    return _below_class(file).rpartition("/")[2]


def _normal(name: str) -> str:
    """Unicode has several spellings of an accented letter; a Mac writes another than a PC."""
    return unicodedata.normalize("NFC", name)
