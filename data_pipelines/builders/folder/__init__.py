"""`folder`: a user's own sketches and photos, of any classes.

`layout.py` finds the files, `pairs.py` pairs sketches with photos, `folder.py` is the TFDS builder,
`increments.py` prepares a changed folder again. The folders define the classes.
"""

from data_pipelines.builders.folder.layout import LAYOUT as LAYOUT
from data_pipelines.builders.folder.layout import scan as scan

BY_CONTENT = True
"""Each content of a folder is a prepared data set, see `data_pipelines.versions`."""
