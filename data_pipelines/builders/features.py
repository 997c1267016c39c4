"""What every prepared data set stores of an image: one schema, so one loader reads them all."""

from typing import Any


def record_features() -> Any:
    """The TFDS features shared by all builders, as a `tfds.features.FeaturesDict`.

    - image: the encoded bytes (PNG, JPEG), exactly as given to the builder. Read them with
      `builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})`; without
      the decoder TFDS decodes to uint8 [height, width, 3].
    - class_name: the name, not a number, because a split may choose and order classes freely.
    - instance: the photo id that ties a sketch to the photo it was drawn from, "" where unknown.
    - name: relative path, unique in its TFDS split, e.g. "photo/house/house_0012.png".
    """
    import tensorflow_datasets as tfds  # Slow: only programs that prepare or open a data set pay.

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "class_name": tfds.features.Text(),
            "instance": tfds.features.Text(),
            "name": tfds.features.Text(),
        }
    )
