"""`quickdraw`: QuickDraw Extended, 110 classes, sketches of a game's players, and photos.

Dey et al., Doodle to Search, CVPR 2019; the drawings are Google's (Quick, Draw!, CC BY 4.0), and
may be given as Google publishes them. `layout.py` finds the files, `drawings.py` renders strokes,
`quickdraw.py` is the TFDS builder. The archives need a manual step, which the builder's
`MANUAL_DOWNLOAD_INSTRUCTIONS` describe.
"""

from data_pipelines.builders.quickdraw.layout import CLASSES as CLASSES
from data_pipelines.builders.quickdraw.layout import scan as scan
