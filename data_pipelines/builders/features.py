"""The record schema that all prepared data sets share, so that one loader reads them all."""

from typing import Any


def record_features() -> Any:
    """The TFDS features shared by all builders, as a `tfds.features.FeaturesDict`.

    - image: the encoded bytes (PNG, JPEG), unchanged. Read them with
      `builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})`; without
      the decoder TFDS decodes to uint8 [height, width, 3].
    - class_name: the name instead of a label, because each split orders classes differently.
    - instance: id of the photo that the image is or was drawn from, "" if unknown.
    - name: relative path, unique in its TFDS split, e.g. "photo/house/house_0012.png".
    """
    import tensorflow_datasets as tfds  # Slow: import it only when it is needed.

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "class_name": tfds.features.Text(),
            "instance": tfds.features.Text(),
            "name": tfds.features.Text(),
        }
    )
