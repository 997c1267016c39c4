"""The TFDS builder of a user's own images."""

from typing import ClassVar

import tensorflow_datasets as tfds

from data_pipelines.builders import unpacked
from data_pipelines.builders.folder import layout


class Folder(unpacked.UnpackedImages):
    """A user's own sketches and photos.

    The TFDS decoder supports PNG, JPEG, BMP and GIF; `data_pipelines` decodes other types as well.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sketches, photos, instance pairs by name or by CSV."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put your images into sketch/<class>/ and photo/<class>/ of one folder, at any depth below a
    class, and set manual_dir to that folder. File names or pairs.csv define which sketch was drawn
    from which photo: see data_pipelines/builders/folder/layout.py.
    """

    scan = staticmethod(layout.scan)
