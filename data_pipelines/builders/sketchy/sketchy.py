"""The TFDS builder of Sketchy Extended."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from data_pipelines.builders import folders, unpacked
from data_pipelines.builders.sketchy import layout


class Sketchy(unpacked.UnpackedImages):
    """Sketchy Extended: 125 classes, sketches drawn from photos, and further photos."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sketches, photos, instance pairs, optional extension."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Sketchy is free for research, but has no address that a program could fetch it from. Get the
    Sketchy Database (256x256 renderings) from its project page, and the extension
    (EXTEND_image_sketchy, optional) from where the zero-shot papers link it, and unpack both into
    one folder, so that it holds 256x256/sketch/, 256x256/photo/ and EXTEND_image_sketchy/. Give
    that folder as manual_dir.
    """
    HOMEPAGE = "https://sketchy.eye.gatech.edu/"
    CITATION = """@article{sangkloy2016sketchy,
  title={The Sketchy Database: Learning to Retrieve Badly Drawn Bunnies},
  author={Sangkloy, Patsorn and Burnell, Nathan and Ham, Cusuh and Hays, James},
  journal={ACM Transactions on Graphics (Proceedings of SIGGRAPH)},
  year={2016}
}"""

    def scan(self, manual_dir: Path) -> folders.Source:
        """Sketches and photos, with their instances."""
        return layout.scan(manual_dir)
