"""The TFDS builder of a user's own images."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from data_pipelines.builders import folders, unpacked
from data_pipelines.builders.folder import layout


class Folder(unpacked.UnpackedImages):
    """A user's own sketches and photos.

    TFDS's own decoder knows PNG, JPEG, BMP and GIF; `data_pipelines` decodes all other types too.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sketches, photos, instance pairs by name or by CSV."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put your images into sketch/<class>/ and photo/<class>/ of one folder, at any depth below a
    class, and give that folder as manual_dir. Which sketch was drawn from which photo is told by
    their names, or by pairs.csv: see data_pipelines/builders/folder/layout.py.
    """

    def scan(self, manual_dir: Path) -> folders.Source:
        """Sketches and photos, with the instances that are known."""
        return layout.scan(manual_dir)
