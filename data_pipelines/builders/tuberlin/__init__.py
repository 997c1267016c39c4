"""`tuberlin`: TU-Berlin Extended, 250 classes, 80 sketches each, and 204,489 photos.

Eitz et al., How Do Humans Sketch Objects?, SIGGRAPH 2012; the photos by Zhang et al., SketchNet,
CVPR 2016. `layout.py` finds the files, `tuberlin.py` is the TFDS builder. The builder's
`MANUAL_DOWNLOAD_INSTRUCTIONS` describe how to get the archives.
"""

from data_pipelines.builders.tuberlin.layout import CLASSES as CLASSES
from data_pipelines.builders.tuberlin.layout import scan as scan
