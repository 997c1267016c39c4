"""Finds the files of a user's own data set.

    <root>/sketch/<class>/**/*             at any depth, of any common image type
    <root>/photo/<class>/**/*
    <root>/pairs.csv                       (optional)

The classes are the folders, the same for sketches and photos: a class without sketches cannot be
asked for, one without photos not be found, and neither can train.

Pairs, for fine-grained retrieval: `pairs.csv` says which sketch was drawn from which photo, one
pair a line below the header `sketch,photo`, as paths relative to the root. Without it, names say
so: sketch/cat/tom.png, tom-1.png and tom_2.png belong to photo/cat/tom.jpg. Where equal names mean
nothing, because both are just numbered, a `pairs.csv` with its header alone says that there are no
pairs.
"""

import dataclasses
import logging
from pathlib import Path

from data_pipelines import splits
from data_pipelines.builders import folders
from data_pipelines.builders.folder import pairs

logger = logging.getLogger(__name__)


def scan(manual_dir: Path) -> folders.Source:
    """Lists sketches and photos below `manual_dir`, with the instances that are known.

    Args:
      manual_dir: the folder that holds `sketch/` and `photo/`, or one above it.

    Raises:
      FileNotFoundError: when `sketch/` or `photo/` is missing; says where it was looked for.
      ValueError: when a class has no sketches or no photos, or `pairs.csv` is wrong.
    """
    root = folders.find_root(manual_dir, "sketch", "photo")
    sketch_folder = folders.find_folder(root / "sketch")
    photo_folder = folders.find_folder(root / "photo")
    _check_classes(sketch_folder, photo_folder)
    sketches, ignored = _list(sketch_folder)
    photos, more = _list(photo_folder)

    photos = [dataclasses.replace(photo, instance=photo.name) for photo in photos]
    table = root / "pairs.csv"
    own = (
        pairs.from_csv(table, sketches, photos)
        if table.is_file()
        else pairs.by_name(sketches, photos)
    )
    sketches = [dataclasses.replace(s, instance=own.get(s.name, "")) for s in sketches]
    if own and len(own) < len(sketches):
        lacking = [file.name for file in sketches if not file.instance]
        logger.warning(
            "%d of %d sketches in %s have no photo of their own, for example %s: they make no "
            "instance pair.",
            len(lacking),
            len(sketches),
            root,
            lacking[0],
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
            parts.append(f"{here} has no folder of a class")
        if only := sorted(ours - theirs):
            near = {name: splits.nearest(name, theirs - ours) for name in only}
            names = ", ".join(n + f" (is it {near[n]} there?)" * bool(near[n]) for n in only)
            parts.append(f"{len(only)} of {len(ours)} in {here} are not in {there}: {names}")
    if parts:
        splits.raise_or_collect(
            ValueError(
                f"Sketches and photos must be of the same classes, but {'; '.join(parts)}. Rename "
                "the folders, or move away what has no counterpart."
            )
        )
