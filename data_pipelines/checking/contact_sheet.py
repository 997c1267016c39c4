"""An overview image of a data set: a few sketches and photos of each class.

Sketches are preprocessed as for the network (cropped to their ink and padded), so that wrong crops
are visible. Photos keep their aspect ratio.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_pipelines import images
from data_pipelines.builders import folders
from data_pipelines.checking.findings import DataSet
from data_pipelines.suggestions import counted

PER_MODALITY = 3
"""Number of sketches, and of photos, shown for each class."""

MAX_CLASSES = 400
"""With more classes, only the first are shown, unseen before seen; the title says so."""

_COLOURS = {"unseen": "#b3541e", "seen": "#2f5d8a", "not in the split": "#8a1f3d"}
_MARGIN, _STRIP, _TITLE = 6, 17, 44


class _Cell(NamedTuple):
    """One class: its name, side of the split, number of files, and the files shown."""

    name: str
    side: str
    counts: str
    shown: Mapping[images.Modality, Sequence[folders.ImageFile]]


def contact_sheet(data: DataSet) -> Image.Image:
    """The RGB image, about square, at most about 4,000 pixels on a side."""
    cells, total = _cells(data)
    thumb = 72 if len(cells) <= 150 else 56
    cell_width = 2 * PER_MODALITY * thumb + _MARGIN
    cell_height = thumb + _STRIP + _MARGIN
    columns = max(1, min(len(cells), round(math.sqrt(len(cells) * cell_height / cell_width))))
    rows = math.ceil(len(cells) / columns)
    size = (max(columns * cell_width, 640) + _MARGIN, rows * cell_height + _TITLE + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    _draw_title(sheet, data, len(cells), total)
    for position, cell in enumerate(tqdm.tqdm(cells, desc="Contact sheet", unit=" classes")):
        row, column = divmod(position, columns)
        corner = (_MARGIN + column * cell_width, _TITLE + row * cell_height)
        _draw_cell(sheet, cell, corner, thumb)
    return sheet


def _cells(data: DataSet) -> tuple[list[_Cell], int]:
    """The classes shown, unseen before seen, and the number of all classes."""
    by_class: dict[str, dict[images.Modality, list[folders.ImageFile]]] = {}
    for modality, files in data.source.images.items():
        for file in files:
            by_class.setdefault(file.class_name, {}).setdefault(modality, []).append(file)
    sides = dict.fromkeys(sorted(by_class), "not in the split")
    sides |= dict.fromkeys(data.split.unseen, "unseen") | dict.fromkeys(data.split.seen, "seen")
    order = sorted(sides, key=lambda name: (list(_COLOURS).index(sides[name]), name))
    cells = []
    for name in order[:MAX_CLASSES]:
        files = by_class.get(name, {})
        counts = ", ".join(
            f"{modality} {len(files.get(modality, ()))}" for modality in data.source.images
        )
        shown = {modality: _spread(files.get(modality, ())) for modality in data.source.images}
        cells.append(_Cell(name, sides[name], counts, shown))
    return cells, len(order)


def _spread(files: Sequence[folders.ImageFile]) -> list[folders.ImageFile]:
    """Evenly spaced files, including the first and the last."""
    chosen = np.linspace(0, len(files) - 1, min(PER_MODALITY, len(files)))
    return [files[round(position)] for position in chosen]


def _draw_title(sheet: Image.Image, data: DataSet, shown: int, total: int) -> None:
    canvas = ImageDraw.Draw(sheet)
    classes = counted(total, "class", "classes")
    classes = classes if shown == total else f"{shown} of {classes}"
    setting = data.split_name or data.split.dataset
    canvas.text((_MARGIN, 3), f"{setting}: {classes}", "black", _font(18))
    x = float(_MARGIN)
    for side, colour in _COLOURS.items():
        canvas.text((x, 26), side, colour, _font(13))
        x += canvas.textlength(side, _font(13)) + 14
    note = f"per class: {PER_MODALITY} preprocessed sketches, {PER_MODALITY} photos"
    canvas.text((x, 26), note, "#555555", _font(13))


def _draw_cell(sheet: Image.Image, cell: _Cell, corner: tuple[int, int], thumb: int) -> None:
    canvas = ImageDraw.Draw(sheet)
    (left, top), width = corner, 2 * PER_MODALITY * thumb
    canvas.rectangle((left, top, left + width - 1, top + _STRIP - 2), _COLOURS[cell.side])
    counts_width = canvas.textlength(cell.counts, _font(11))
    name = _shortened(cell.name, width - counts_width - 16)
    canvas.text((left + 3, top + 7), name, "white", _font(12), anchor="lm")
    canvas.text((left + width - 3, top + 7), cell.counts, "#e8e8e8", _font(11), anchor="rm")
    for block, (modality, files) in enumerate(cell.shown.items()):
        for i in range(PER_MODALITY):
            x = left + (block * PER_MODALITY + i) * thumb
            if i < len(files):
                sheet.paste(_thumbnail(files[i], modality, thumb - 2), (x + 1, top + _STRIP))
            elif i == 0:
                middle = (x + PER_MODALITY * thumb // 2, top + _STRIP + thumb // 2)
                canvas.text(middle, f"no {modality}", "#b00020", _font(13), anchor="mm")


def _thumbnail(file: folders.ImageFile, modality: images.Modality, size: int) -> Image.Image:
    try:
        rgb = images.decode(file.read())
    except (images.UnreadableImageError, OSError):
        broken = Image.new("RGB", (size, size), "#f6d5d5")
        middle = (size // 2, size // 2)
        ImageDraw.Draw(broken).text(middle, "unreadable", "#b00020", _font(10), anchor="mm")
        return broken
    if modality == "sketch":
        square = Image.fromarray(images.prepare_sketch(rgb))
        return square.resize((size, size), Image.Resampling.BOX)  # Keeps thin lines.
    return ImageOps.pad(Image.fromarray(rgb), (size, size), color="#eeeeee")


def _shortened(text: str, width: float) -> str:
    short = text
    while text and _font(12).getlength(short) > width:
        text, short = text[:-1], f"{text[:-1]}…"
    return short


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager  # slow to import

    # Part of matplotlib; covers more alphabets than Pillow's font.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
