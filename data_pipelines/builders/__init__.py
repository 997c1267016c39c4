"""One TFDS builder per data set, each in its own folder.

Importing this package or a builder's class names does not import TFDS or TensorFlow.
"""
