"""One TFDS builder per data set, each in its own folder.

Importing this package, or the class names a builder exports, imports neither TFDS nor TensorFlow.
"""
