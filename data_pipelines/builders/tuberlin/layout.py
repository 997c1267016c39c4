"""Finds the files of TU-Berlin Extended in its published layouts.

    <root>/png[_ready]/<class>/<n>.png
    <root>/ImageResized[_ready]/<class>/*.JPEG|*.jpg

Class names contain spaces, parentheses and hyphens: "car (sedan)", "hot-dog". The sketches were not
drawn from the photos, so there are no instances.
"""

from pathlib import Path

from data_pipelines import splits
from data_pipelines.builders import folders

CLASSES = splits.SPLITS["tuberlin"].classes


def scan(manual_dir: Path) -> folders.Source:
    """Lists sketches and photos below `manual_dir`.

    Args:
      manual_dir: the folder that contains `png/` and `ImageResized/`, or its parent.

    Raises:
      FileNotFoundError: if a folder of the layout is missing; lists the expected paths.
      ValueError: if classes are unknown or empty.
    """
    root = folders.find_root(manual_dir, "png_ready", "png", "ImageResized_ready", "ImageResized")
    sketch_folder = folders.find_folder(*folders.spellings(root / "png"))
    photo_folder = folders.find_folder(*folders.spellings(root / "ImageResized"))
    sketches, ignored = folders.list_images(sketch_folder, root, CLASSES)
    photos, more = folders.list_images(photo_folder, root, CLASSES)
    return folders.Source(root, {"sketch": sketches, "photo": photos}, ignored + more)
