"""The TFDS builder of TU-Berlin Extended."""

from typing import ClassVar

import tensorflow_datasets as tfds

from data_pipelines.builders import unpacked
from data_pipelines.builders.tuberlin import layout


class Tuberlin(unpacked.UnpackedImages):
    """TU-Berlin Extended: 250 classes, sketches from memory, photos from the web."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sketches and photos."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Get the sketches of TU-Berlin (PNG) from their project page, and the photos (ImageResized) from
    the links in the zero-shot papers. Unpack both into one folder that then contains png/<class>/
    and ImageResized/<class>/. Set manual_dir to that folder.
    """
    HOMEPAGE = "https://cybertron.cg.tu-berlin.de/eitz/projects/classifysketch/"
    CITATION = """@article{eitz2012hdhso,
  title={How Do Humans Sketch Objects?},
  author={Eitz, Mathias and Hays, James and Alexa, Marc},
  journal={ACM Transactions on Graphics (Proceedings of SIGGRAPH)},
  year={2012}
}"""

    scan = staticmethod(layout.scan)
