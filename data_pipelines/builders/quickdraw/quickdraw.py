"""The TFDS builder of QuickDraw Extended."""

import functools
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_pipelines.builders import folders, unpacked
from data_pipelines.builders.quickdraw import layout


class Quickdraw(unpacked.UnpackedImages):
    """QuickDraw Extended: 110 classes, sketches by the players of a game, photos from the web."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sketches, as images or as drawings, and photos."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Get QuickDraw Extended, sketches and photos, from the project page of Doodle to Search. Unpack
    both into one folder that then contains sketches/<class>/ and images/<class>/. Instead of the
    sketches, you can use Google's drawings: the .ndjson files of the 110 classes, simplified or
    raw, from gs://quickdraw_dataset/full/, in ndjson/. Set manual_dir to that folder.
    """
    HOMEPAGE = "https://github.com/sounakdey/doodle2search"
    CITATION = """@inproceedings{dey2019doodle,
  title={Doodle to Search: Practical Zero-Shot Sketch-Based Image Retrieval},
  author={Dey, Sounak and Riba, Pau and Dutta, Anjan and Llados, Josep and Song, Yi-Zhe},
  booktitle={CVPR},
  year={2019}
}"""

    def __init__(
        self, *, drawings_per_class: int | None = layout.DRAWINGS_PER_CLASS, **kwargs: Any
    ):
        """`drawings_per_class`: see `layout.scan`."""
        self._scan = functools.partial(layout.scan, drawings_per_class=drawings_per_class)
        super().__init__(**kwargs)

    def scan(self, manual_dir: Path) -> folders.Source:
        """Sketches and photos, without instances."""
        return self._scan(manual_dir)
