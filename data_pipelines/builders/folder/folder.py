"""The TFDS builder of a user's own images."""

from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_pipelines import versions
from data_pipelines.builders import folders, packing, unpacked
from data_pipelines.builders.folder import increments, layout


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

    def __init__(
        self,
        *,
        source: folders.Source | None = None,
        previous: tuple[versions.Version, versions.Changes] | None = None,
        **kwargs: Any,
    ):
        """Arguments besides those of the base class.

        Args:
          source: the images, if they are already listed.
          previous: a version with the same name, and how `source` differs from it.
          kwargs: of the base class.
        """
        self._source, self._previous = source, previous
        super().__init__(**kwargs)

    def scan(self, manual_dir: Path) -> folders.Source:
        """The sketches and photos below `manual_dir`."""
        return self._source or layout.scan(manual_dir)

    def reused(self, source: folders.Source) -> packing.Reused:
        """What the folder has in common with the previous version."""
        if self._previous is None:
            return super().reused(source)
        version, changes = self._previous
        return increments.reused(source, version, changes.same)
