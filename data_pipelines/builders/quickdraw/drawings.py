"""Google's Quick, Draw! drawings: strokes, one drawing per line, rendered as sketches.

The format (https://github.com/googlecreativelab/quickdraw-dataset): every line of a .ndjson file is
a JSON object whose `drawing` is a list of strokes [[x0, x1, ...], [y0, y1, ...]], and, in the raw
format, their times [t0, t1, ...]; raw coordinates have any scale.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_pipelines import images
from data_pipelines.builders import folders

SIZE = 256
"""Side of a rendered sketch in pixels, as in the simplified format."""

LINE_WIDTH = 2
"""In OpenCV's units: an anti-aliased line of width 2 covers 4 pixels."""

MARGIN = 12
"""Pixels between the outermost points of a drawing and the edge of the canvas."""

_ENCODING = [
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
]
"""PNG options for line drawings: smaller files, written in a quarter of the time."""

_FRACTION_BITS = 4
"""Coordinates for OpenCV are in sixteenths of a pixel."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing(folders.ImageFile):
    """A line of a .ndjson file, rendered on reading.

    Attributes:
      size: bytes of the line.
      source: path of the file, relative to the root.
      line: line number, from 1.
      offset: byte offset of the line.
    """

    source: str = ""
    line: int = 0
    offset: int = 0

    @property
    def path(self) -> Path:
        """The .ndjson file."""
        return self.root / self.source

    def read(self) -> bytes:
        """The drawing as PNG.

        Raises:
          images.UnreadableImageError: if the line is not a drawing.
          OSError: if the file cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            line = file.read(self.size)
        try:
            sketch = render(strokes(line))
        except ValueError as error:
            raise images.UnreadableImageError(
                f"line {self.line} of {self.source} is not a drawing: {error}"
            ) from error
        return cv2.imencode(".png", sketch, _ENCODING)[1].tobytes()


def list_drawings(
    path: Path, root: Path, class_name: str, *, limit: int | None
) -> tuple[list[Drawing], int, bool]:
    """Lists the recognized drawings of a file, at most `limit`, named by their `key_id`.

    Malformed lines are listed too, named by their line number. Reading them fails, so that they are
    reported with all other unreadable images.

    Returns:
      The drawings in the order of the file; the number of drawings that the game did not recognize,
      up to the last listed one; and whether the file has more drawings.
    """
    found: list[Drawing] = []
    names: set[str] = set()
    source = path.relative_to(root).as_posix()
    unrecognized = end = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            start, end = end, end + len(line)
            if not line.strip():
                continue
            if limit is not None and len(found) == limit:
                return found, unrecognized, True
            key, recognized = _key(line)
            if not recognized:
                unrecognized += 1
                continue
            key = key or f"line_{number}"
            name = f"sketches/{class_name}/{key if key not in names else f'{key}_{number}'}.png"
            names.add(key)
            found.append(Drawing(root, name, class_name, len(line), "", source, number, start))
    return found, unrecognized, False


def _key(line: bytes) -> tuple[str, bool]:
    """The drawing's `key_id`, "" if it has none, and whether the game recognized it."""
    try:
        entry = json.loads(line)
        return str(entry.get("key_id", "")).replace("/", "_"), bool(entry.get("recognized", True))
    except (ValueError, AttributeError):
        return "", True


def strokes(line: bytes) -> list[Float64[np.ndarray, "_ 2"]]:
    """The strokes of one line: points (x, y) of any scale.

    Raises:
      ValueError: if the line is malformed.
    """
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    drawing = entry.get("drawing") if isinstance(entry, dict) else None
    if not isinstance(drawing, list) or not drawing:
        raise ValueError('it has no strokes ("drawing": [[xs, ys], ...])')
    found = []
    for number, stroke in enumerate(drawing, start=1):
        try:
            points = np.array(stroke[:2], np.float64).T
        except (TypeError, ValueError, KeyError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"stroke {number} is not two lists of equally many coordinates")
        if not np.abs(points).max() < 1e9:
            raise ValueError(f"stroke {number} has coordinates that are not finite or exceed 1e9")
        found.append(points)
    return found


def render(drawn: Sequence[Float64[np.ndarray, "_ 2"]]) -> UInt8[np.ndarray, "256 256"]:
    """Draws anti-aliased black lines on a white canvas, centred, scaled to its size.

    Args:
      drawn: strokes of points (x, y), of any scale; a stroke with one point becomes a dot.
    """
    points = np.concatenate(drawn)
    low, high = points.min(axis=0), points.max(axis=0)
    extent = (high - low).max()
    scale = (SIZE - 1 - 2 * MARGIN) / extent if extent > 0 else 1
    canvas = np.full((SIZE, SIZE), 255, np.uint8)
    for stroke in drawn:
        centred = (stroke - (low + high) / 2) * scale + (SIZE - 1) / 2
        fixed = np.rint(centred * 2**_FRACTION_BITS).astype(np.int32)
        if len(fixed) == 1:
            fixed = fixed.repeat(2, axis=0)  # OpenCV does not draw a single point.
        cv2.polylines(canvas, [fixed], False, 0, LINE_WIDTH, cv2.LINE_AA, _FRACTION_BITS)
    return canvas
