"""Pairs of sketches and photos, from their names or from a CSV file."""

import codecs
import csv
import io
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from data_pipelines import splits
from data_pipelines.builders.folders import ImageFile
from data_pipelines.suggestions import counted, suggest

logger = logging.getLogger(__name__)

_MAX_WRONG = 20
"""Number of wrong lines after which reading stops."""


def by_name(sketches: Sequence[ImageFile], photos: Sequence[ImageFile]) -> dict[str, str]:
    """Sketch -> the photo of its class with the same name, ignoring a number at the end.

    Names are compared first with their folders below the class, then without; first with the
    number, then without. If several photos match, the sketch is not paired, with a warning.
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
            "%s the name of several photos and no pair, for example %s: %s. List the pairs in "
            "pairs.csv, with the header sketch,photo.",
            counted(len(ambiguous), "sketch has", "sketches have"),
            example,
            ", ".join(same),
        )
    return found


def from_csv(
    path: Path, sketches: Sequence[ImageFile], photos: Sequence[ImageFile]
) -> dict[str, str]:
    """Sketch -> photo from a CSV file with header `sketch,photo` and paths relative to its folder.

    Raises:
      ValueError: lists the first 20 wrong lines.
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
                    f"{sketch.name} has class {sketch.class_name!r}, but its photo {photo.name} "
                    f"has class {photo.class_name!r}"
                )
            if found.setdefault(sketch.name, photo.name) != photo.name:
                raise ValueError(
                    f"{sketch.name} is paired with {photo.name}, but in line "
                    f"{first_line[sketch.name]} with {found[sketch.name]}"
                )
            first_line.setdefault(sketch.name, number)
        except ValueError as error:
            wrong.append(f"\n  line {number}: {error}")
    if wrong:
        splits.raise_or_collect(
            ValueError(
                f"{path} has wrong lines (at most {_MAX_WRONG} are listed). Correct them, or "
                f"remove the file to pair by name:{''.join(wrong)}"
            )
        )
    return found


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and content of each non-empty line; commas, semicolons or tabs separate columns.

    Spreadsheets write semicolons where the comma is the decimal mark, a byte order mark, or UTF-16.
    """
    encoded = path.read_bytes()
    utf16 = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = encoded.decode("utf-16" if utf16 else "utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = next((mark for mark in ",;\t" if mark in first), ",")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not {"sketch", "photo"} <= set(header):
        raise ValueError(
            f"The first line of {path} must be sketch,photo, but is {','.join(header)!r}."
        )
    return rows


def _find(kind: str, row: Mapping[str, str | None], files: Mapping[str, ImageFile]) -> ImageFile:
    name = (row[kind] or "").strip()
    if not name:
        raise ValueError(f"the {kind} is missing")
    root = next(iter(files.values())).root if files else Path()
    path = _relative(name, root)
    if path not in files:
        path = _relative(name.replace("\\", "/"), root)  # Windows
    if path not in files:
        folder = path.rpartition("/")[0]
        hint = suggest(path, [f for f in files if f.rpartition("/")[0] == folder])
        raise ValueError(f"there is no {kind} {name!r}{hint}")
    return files[path]


def _relative(name: str, root: Path) -> str:
    """A path of the table as in `ImageFile.name`; absolute ones must be below the root."""
    path = PurePosixPath(name)
    return _normal((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())


def _by_path(files: Sequence[ImageFile]) -> dict[str, ImageFile]:
    return {_normal(file.name): file for file in files}


def _group(
    photos: Sequence[ImageFile], key: Callable[[ImageFile], str]
) -> dict[tuple[str, str], list[str]]:
    """(class, key) -> names of the photos with this class and key."""
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
    """Normalises Unicode: macOS and other systems encode accented letters differently."""
    return unicodedata.normalize("NFC", name)
