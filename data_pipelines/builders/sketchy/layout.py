"""Finds the files of Sketchy Extended in its published layouts.

    <root>/256x256/sketch/tx_000000000000[_ready]/<class>/<photo id>-<n>.png
    <root>/256x256/photo/tx_000000000000[_ready]/<class>/<photo id>.jpg
    <root>/EXTEND_image_sketchy[_ready]/<class>/*.jpg          (optional: the extension)

The name of a sketch without `-<n>` is its photo; they form the instance pairs of fine-grained
retrieval. As in the published lists, the photos include the extension, although it repeats the
12,500 drawn photos, so that galleries are comparable.
"""

import dataclasses
import logging
import re
from pathlib import Path, PurePosixPath

from data_pipelines import splits
from data_pipelines.builders import folders

logger = logging.getLogger(__name__)

CLASSES = splits.SPLITS["sketchy_split1"].classes


def scan(manual_dir: Path) -> folders.Source:
    """Lists sketches and photos below `manual_dir`, with their instances.

    Args:
      manual_dir: the folder that contains `256x256/`, or its parent.

    Raises:
      FileNotFoundError: if a folder of the layout is missing; lists the expected paths.
      ValueError: if classes are unknown or empty.
    """
    root = folders.find_root(manual_dir, "256x256")
    sketch_folder = folders.find_folder(*folders.spellings(root / "256x256/sketch/tx_000000000000"))
    photo_folder = folders.find_folder(*folders.spellings(root / "256x256/photo/tx_000000000000"))

    sketches, ignored = folders.list_images(sketch_folder, root, CLASSES)
    sketches = [_with_instance(file, r"-\d+$") for file in sketches]
    photos, more = folders.list_images(photo_folder, root, CLASSES)
    photos = [_with_instance(file) for file in photos]
    ignored += more

    drawn = {file.instance for file in photos}
    orphans = [file.name for file in sketches if file.instance not in drawn]
    if orphans:
        logger.warning(
            "%d of %d sketches in %s have no photo and form no instance pair, for example %s.",
            len(orphans),
            len(sketches),
            root,
            orphans[0],
        )
    extension = folders.spellings(root / "EXTEND_image_sketchy")
    if any(folder.is_dir() for folder in extension):
        # Without instances, because copies would make pairs ambiguous.
        extra, more = folders.list_images(
            folders.find_folder(*extension),
            root,
            CLASSES,
            elsewhere={file.class_name for file in photos},
        )
        photos += extra
        ignored += more
    return folders.Source(root, {"sketch": sketches, "photo": photos}, ignored)


def _with_instance(file: folders.ImageFile, suffix: str = "$") -> folders.ImageFile:
    stem = PurePosixPath(file.name).stem
    return dataclasses.replace(file, instance=re.sub(suffix, "", stem))
