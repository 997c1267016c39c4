"""The TFDS builder of Sketchy Extended."""

from typing import ClassVar

import tensorflow_datasets as tfds

from data_pipelines.builders import unpacked
from data_pipelines.builders.sketchy import layout


class Sketchy(unpacked.UnpackedImages):
    """Sketchy Extended: 125 classes, sketches drawn from photos, and extension photos."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sketches, photos, instance pairs, optional extension."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Sketchy is free for research but cannot be downloaded automatically. Get the Sketchy Database
    (256x256 renderings) from its project page, and the extension (EXTEND_image_sketchy, optional)
    from the links in the zero-shot papers. Unpack both into one folder that then contains
    256x256/sketch/, 256x256/photo/ and EXTEND_image_sketchy/. Set manual_dir to that folder.
    """
    HOMEPAGE = "https://sketchy.eye.gatech.edu/"
    CITATION = """@article{sangkloy2016sketchy,
  title={The Sketchy Database: Learning to Retrieve Badly Drawn Bunnies},
  author={Sangkloy, Patsorn and Burnell, Nathan and Ham, Cusuh and Hays, James},
  journal={ACM Transactions on Graphics (Proceedings of SIGGRAPH)},
  year={2016}
}"""

    scan = staticmethod(layout.scan)
