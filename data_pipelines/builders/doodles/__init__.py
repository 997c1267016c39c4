"""`doodles`: the built-in synthetic data set, drawn by a program. No download is needed.

A class is a composition of parts (`nature.py`, `things.py`, `vehicles.py`), built from the
primitives in `parts.py`. An instance has random proportions, optional parts, colours and pose
(`generation.py`). A photo shows the instance filled, lit and textured on a busy background
(`photo.py`). A sketch shows the same instance as an imprecise line drawing (`sketch.py`).
`doodles.py` is the TFDS builder, `classes.py` lists the seen and unseen classes.
"""
