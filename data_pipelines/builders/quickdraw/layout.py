"""Finds the files of QuickDraw Extended, and of Google's own drawings.

    <root>/sketches/<class>/*.png          or QuickDraw_sketches_final/, as in the archive
    <root>/images/<class>/*.jpg            or QuickDraw_images_final/

Instead of the sketches, Google's drawings, one file per class, simplified or raw:

    <root>/ndjson/<class>.ndjson           or sketches/<class>.ndjson

Google's class names ("The Eiffel Tower" for "eiffel tower", "crocodile" for "crocodilian") and the
prefix "full_simplified_" of files from its website are recognized. Google's other classes are
ignored. Google has more than 100,000 drawings per class, the benchmark 3,000. By default, the first
3,000 drawings of each file that the game recognized are used. They may differ from those of the
benchmark: use its sketches for results that are comparable with papers.

The sketches were not drawn from the photos, so there are no instances.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import splits
from data_pipelines.builders import folders
from data_pipelines.builders.quickdraw import drawings
from data_pipelines.files import is_system
from data_pipelines.suggestions import suggest

logger = logging.getLogger(__name__)

CLASSES = splits.SPLITS["quickdraw"].classes

DRAWINGS_PER_CLASS = 3000
"""330,000 sketches of 110 classes (Dey et al., CVPR 2019)."""

_CLASS_OF = {splits.canonical(name): name for name in CLASSES}


def scan(
    manual_dir: Path, *, drawings_per_class: int | None = DRAWINGS_PER_CLASS
) -> folders.Source:
    """Lists sketches and photos below `manual_dir`.

    Args:
      manual_dir: the folder that contains `images/` and `sketches/` or `ndjson/`, or its parent.
      drawings_per_class: largest number of recognized drawings per .ndjson file; None: all.

    Raises:
      FileNotFoundError: if a folder of the layout is missing; lists the expected paths.
      ValueError: if classes are unknown, empty or duplicated, or if there are both
        drawings and images of sketches.
    """
    sketch_names = ("sketches", "QuickDraw_sketches_final")
    photo_names = ("images", "QuickDraw_images_final")
    root = folders.find_root(manual_dir, *sketch_names, "ndjson", *photo_names)
    photo_folder = folders.find_folder(*(root / name for name in photo_names))
    ndjson = sorted(
        path
        for pattern in ("sketches/*.ndjson", "ndjson/*.ndjson")
        for path in root.glob(pattern)
        if not is_system(path.name)
    )
    if ndjson:
        for folder in (root / name for name in sketch_names):
            if folder.is_dir() and folders.class_folders(folder):
                raise ValueError(
                    f"The sketches are ambiguous: there are drawings ({ndjson[0]} and "
                    f"{len(ndjson) - 1} more) and folders of images ({folder}). Remove one of them."
                )
        sketches, ignored = _list_drawings(ndjson, root, drawings_per_class)
    else:
        sketch_folder = folders.find_folder(*(root / name for name in sketch_names))
        sketches, ignored = folders.list_images(sketch_folder, root, CLASSES)
    photos, more = folders.list_images(photo_folder, root, CLASSES)
    return folders.Source(root, {"sketch": sketches, "photo": photos}, ignored + more)


def _list_drawings(
    ndjson: Sequence[Path], root: Path, limit: int | None
) -> tuple[list[folders.ImageFile], list[str]]:
    """The drawings of every class, sorted by name, and the names of the files of other classes."""
    file_of: dict[str, Path] = {}
    ignored: dict[str, str] = {}  # Google's class name -> file.
    for path in ndjson:
        word = re.sub(r"^full[_-](simplified|raw)[_-]", "", path.stem)
        class_name = _CLASS_OF.get(splits.canonical(word))
        if class_name is None:
            ignored[word] = path.relative_to(root).as_posix()
        elif class_name in file_of:
            raise ValueError(
                f"Both {file_of[class_name]} and {path} contain drawings of {class_name!r}. Remove "
                "one of them."
            )
        else:
            file_of[class_name] = path
    if missing := [name for name in CLASSES if name not in file_of]:
        logger.warning(
            "%d of %d classes have no .ndjson file in %s, so they can neither be trained on nor "
            "evaluated: %s.",
            len(missing),
            len(CLASSES),
            ndjson[0].parent,
            ", ".join(name + suggest(name, ignored) for name in missing),
        )

    found: list[folders.ImageFile] = []
    unrecognized = truncated = 0
    empty: list[str] = []
    for class_name, path in file_of.items():
        listed, skipped, more = drawings.list_drawings(path, root, class_name, limit=limit)
        found += listed
        unrecognized += skipped
        truncated += more
        if not listed:
            empty.append(str(path))
    if empty:
        splits.raise_or_collect(
            ValueError(f"No recognized drawings in {', '.join(empty)}. Download the files again.")
        )
    if unrecognized or truncated:
        logger.warning(
            "Using %d drawings in %s. Skipped: %d that the game did not recognize and, in %d of %d "
            "files, all after the first %s recognized.",
            len(found),
            root,
            unrecognized,
            truncated,
            len(file_of),
            limit,
        )
    return sorted(found, key=lambda file: file.name), list(ignored.values())
