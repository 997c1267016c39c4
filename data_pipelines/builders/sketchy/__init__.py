"""`sketchy`: Sketchy Extended, 125 classes, sketches drawn from photos, and extension photos.

Sangkloy et al., The Sketchy Database, SIGGRAPH 2016; the extension by Liu et al., Deep Sketch
Hashing, CVPR 2017. `layout.py` finds and pairs the files, `sketchy.py` is the TFDS builder. The
builder's `MANUAL_DOWNLOAD_INSTRUCTIONS` describe how to get the archives.
"""

from data_pipelines.builders.sketchy.layout import CLASSES as CLASSES
from data_pipelines.builders.sketchy.layout import scan as scan
