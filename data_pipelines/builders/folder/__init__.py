"""`folder`: a user's own sketches and photos, of whatever classes.

`layout.py` finds the files, `pairs.py` ties sketches to their own photos, `folder.py` is the TFDS
builder. There is no fixed list of classes: they are the folders.
"""

from data_pipelines.builders.folder.layout import scan as scan
