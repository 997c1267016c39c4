"""Numbers of images in the published file lists, that is, in a complete copy.

The lists are those that the code of ZSE, SAKE and Doodle-to-Search shares. Their test lists contain
every image of the unseen classes. Their training lists omit some sketches (TU-Berlin: 10 of each
class's 80), so that a complete copy has more.
"""

from typing import NamedTuple

from data_pipelines.images import Modality


class Listed(NamedTuple):
    """Numbers of images in the published lists of one split; None if not published."""

    seen: int | None
    unseen: int


LISTED: dict[str, dict[Modality, Listed]] = {
    "sketchy_split1": {"sketch": Listed(55252, 15229), "photo": Listed(68401, 17101)},
    "sketchy_split2": {"sketch": Listed(57587, 12694), "photo": Listed(72949, 12553)},
    "tuberlin": {"sketch": Listed(15400, 2400), "photo": Listed(None, 27989)},
    "quickdraw": {"sketch": Listed(None, 92291), "photo": Listed(None, 54151)},
}
"""For each split of a manually downloaded data set. Photos include extensions."""

SKETCHES_PER_CLASS = {"tuberlin": 80}
"""Eitz et al., How Do Humans Sketch Objects?, SIGGRAPH 2012: 250 classes of 80 sketches."""

DRAWN_PHOTOS_PER_CLASS = {"sketchy": 100}
"""Sangkloy et al., The Sketchy Database, SIGGRAPH 2016: 125 classes of 100 photos, each drawn
several times."""

REPEATS_DRAWN_PHOTOS = {"sketchy"}
"""Data sets whose extension photos (without an instance) repeat drawn photos on purpose."""
