"""`quickdraw`: QuickDraw Extended, 110 classes, sketches by the players of a game, and photos.

Dey et al., Doodle to Search, CVPR 2019; the drawings are Google's (Quick, Draw!, CC BY 4.0), whose
.ndjson files can be used too. `layout.py` finds the files, `drawings.py` renders strokes,
`quickdraw.py` is the TFDS builder. The builder's `MANUAL_DOWNLOAD_INSTRUCTIONS` describe how to get
the archives.
"""

from data_pipelines.builders.quickdraw.layout import CLASSES as CLASSES
from data_pipelines.builders.quickdraw.layout import scan as scan
