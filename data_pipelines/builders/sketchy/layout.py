"""Finds the files of Sketchy Extended in the layouts that are in circulation.

    <root>/256x256/sketch/tx_000000000000[_ready]/<class>/<photo id>-<n>.png
    <root>/256x256/photo/tx_000000000000[_ready]/<class>/<photo id>.jpg
    <root>/EXTEND_image_sketchy[_ready]/<class>/*.jpg          (optional: the extension)

A sketch's own photo is its name without `-<n>`: the instance pairs of fine-grained retrieval. The
published photo lists take photo and extension together, although the extension repeats the 12,500
photos that were drawn; so does this, for comparable galleries.
"""

import dataclasses
import logging
import re
from pathlib import Path

from data_pipelines import splits
from data_pipelines.builders import folders

logger = logging.getLogger(__name__)

CLASSES = splits.SPLITS["sketchy_split1"].classes

_SUFFIXES = ("_ready", "")
"""Where both exist, the published file lists name the first."""


def scan(manual_dir: Path) -> folders.Source:
    """Lists sketches and photos below `manual_dir`, with their instances.

    Args:
      manual_dir: the folder that holds `256x256/`, or one above it.

    Raises:
      FileNotFoundError: when a folder of the layout is missing; says where it was looked for.
      ValueError: when a folder lacks classes, holds unknown ones, or a class is empty.
    """
    root = _find_root(manual_dir)
    sketch_folder = _find_folder(root / "256x256" / "sketch", "tx_000000000000")
    photo_folder = _find_folder(root / "256x256" / "photo", "tx_000000000000")
    extension = _first_folder(root, "EXTEND_image_sketchy")

    sketches, ignored = folders.list_images(sketch_folder, root, CLASSES)
    sketches = [_with_instance(file, re.sub(r"-\d+$", "", file.path.stem)) for file in sketches]
    photos, more = folders.list_images(photo_folder, root, CLASSES)
    photos = [_with_instance(file, file.path.stem) for file in photos]
    ignored += more

    drawn = {file.instance for file in photos}
    orphans = [file.name for file in sketches if file.instance not in drawn]
    if orphans:
        logger.warning(
            "%d of %d sketches in %s were drawn from a photo that is not there, for example %s: "
            "they make no instance pair.",
            len(orphans),
            len(sketches),
            root,
            orphans[0],
        )
    if extension is not None:  # Without instances: its copies would make pairs ambiguous.
        extra, more = folders.list_images(extension, root, CLASSES)
        photos += extra
        ignored += more
    return folders.Source(root, {"sketch": sketches, "photo": photos}, ignored)


def _with_instance(file: folders.ImageFile, instance: str) -> folders.ImageFile:
    return dataclasses.replace(file, instance=instance)


def _find_root(manual_dir: Path) -> Path:
    roots = [
        folder
        for folder in (manual_dir, *sorted(manual_dir.iterdir()))
        if (folder / "256x256").is_dir()
    ]
    if len(roots) != 1:
        found = f"several: {', '.join(map(str, roots))}" if roots else "none"
        raise FileNotFoundError(
            f"Looked for Sketchy's folder 256x256/ in {manual_dir} and one below it, and found "
            f"{found}. Give the one folder that holds 256x256/ as manual_dir."
        )
    return roots[0]


def _find_folder(parent: Path, stem: str) -> Path:
    folder = _first_folder(parent, stem)
    if folder is None:
        raise FileNotFoundError(
            f"Sketchy is not complete: neither {parent / stem}_ready nor {parent / stem} is a "
            "folder. Unpack the archive again, sketches and photos both."
        )
    return folder


def _first_folder(parent: Path, stem: str) -> Path | None:
    candidates = (parent / f"{stem}{suffix}" for suffix in _SUFFIXES)
    return next((folder for folder in candidates if folder.is_dir()), None)
