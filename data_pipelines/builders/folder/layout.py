"""Finds the files of a user's own data set.

    <root>/sketch/<class>/**/*             at any depth, of any common image type
    <root>/photo/<class>/**/*
    <root>/pairs.csv                       (optional)

The class folders must be the same for sketches and photos, because training and evaluation need
both.

Pairs, for fine-grained retrieval: `pairs.csv` lists which sketch was drawn from which photo, one
pair per line below the header `sketch,photo`, as paths relative to the root. Without it, pairs are
found by name: sketch/cat/tom.png, tom-1.png and tom_2.png belong to photo/cat/tom.jpg. If equal
names do not mean pairs, for example because all files are numbered, add a `pairs.csv` that contains
only the header.
"""

import dataclasses
import logging
from pathlib import Path

from data_pipelines import splits
from data_pipelines.builders import folders
from data_pipelines.builders.folder import pairs
from data_pipelines.suggestions import suggest

logger = logging.getLogger(__name__)

LAYOUT = "sketch/CLASS/ and photo/CLASS/, with the same class folders (cat, dog, ...) in both"
"""What the folder must contain, for messages."""


def scan(manual_dir: Path) -> folders.Source:
    """Lists sketches and photos below `manual_dir`, with their instances if known.

    Args:
      manual_dir: the folder that contains `sketch/` and `photo/`, or its parent.

    Raises:
      FileNotFoundError: if `sketch/` or `photo/` is missing; lists the expected paths.
      ValueError: if a class has no sketches or no photos, or `pairs.csv` has errors.
    """
    root = folders.find_root(manual_dir, "sketch", "photo")
    sketch_folder = folders.find_folder(root / "sketch")
    photo_folder = folders.find_folder(root / "photo")
    _check_classes(sketch_folder, photo_folder)
    sketches, ignored = _list(sketch_folder)
    photos, more = _list(photo_folder)

    photos = [dataclasses.replace(photo, instance=photo.name) for photo in photos]
    table = root / "pairs.csv"
    if table.is_file():
        photo_of = pairs.from_csv(table, sketches, photos)
    else:
        photo_of = pairs.by_name(sketches, photos)
    sketches = [dataclasses.replace(s, instance=photo_of.get(s.name, "")) for s in sketches]
    unpaired = [file.name for file in sketches if not file.instance]
    if photo_of and unpaired:
        logger.warning(
            "%d of %d sketches in %s have no paired photo, for example %s.",
            len(unpaired),
            len(sketches),
            root,
            unpaired[0],
        )
    return folders.Source(root, {"sketch": sketches, "photo": photos}, ignored + more)


def _list(folder: Path) -> tuple[list[folders.ImageFile], list[str]]:
    classes = folders.class_folders(folder)
    return folders.list_images(folder, folder.parent, classes, nested=True)


def _check_classes(sketch_folder: Path, photo_folder: Path) -> None:
    parts = []
    for here, there in ((sketch_folder, photo_folder), (photo_folder, sketch_folder)):
        ours, theirs = (set(folders.class_folders(folder)) for folder in (here, there))
        if not ours:
            parts.append(f"{here} has no class folders")
        if only := sorted(ours - theirs):
            names = ", ".join(name + suggest(name, theirs - ours) for name in only)
            parts.append(f"{len(only)} of {len(ours)} in {here} are not in {there}: {names}")
    if parts:
        splits.raise_or_collect(
            ValueError(
                f"Sketches and photos must have the same classes, but {'; '.join(parts)}. Rename "
                "or remove folders so that they match."
            )
        )
