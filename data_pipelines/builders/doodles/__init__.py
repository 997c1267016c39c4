"""`doodles`: the embedded data set, drawn by a program. Needs no download and no manual step.

A class is a composition of parts (`nature.py`, `things.py`, `vehicles.py`, made of the primitives
in `parts.py`); an instance has its own proportions, optional parts, colours and pose
(`generation.py`). A photo is the instance filled, lit and textured on a busy background
(`photo.py`); a sketch is the same instance as a wobbly, abbreviating hand remembers it
(`sketch.py`). `doodles.py` is the TFDS builder, `classes.py` names the seen and unseen classes.
"""
