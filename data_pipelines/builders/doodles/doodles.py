"""The TFDS builder of `doodles`: draws the images and stores them as PNG."""

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import tensorflow_datasets as tfds

from data_pipelines.builders import doodles, features
from data_pipelines.builders.doodles import generation


class Doodles(tfds.core.GeneratorBasedBuilder):
    """Drawn objects, 64 x 64, 32 classes; TFDS splits `sketch` and `photo`, paired by instance."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "48 instances of each of 32 classes."}

    def __init__(
        self,
        *,
        seed: int = 0,
        instances_per_class: int = 48,
        workers: int | None = None,
        file_format: str = "array_record",
        **kwargs: Any,
    ):
        """See `generation.generate`. With other values than the defaults, set a `data_dir`."""
        self._generate = functools.partial(
            generation.generate, seed, instances_per_class, workers=workers
        )
        # What other versions of the libraries draw is another data set, in another folder.
        drawn = tfds.core.BuilderConfig(name=generation.content_digest())
        super().__init__(file_format=file_format, config=drawn, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=doodles.__doc__,
            features=features.record_features(),
            disable_shuffling=True,  # The loader shuffles; records stay sorted by name.
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager
        return {modality: self._generate_examples(modality) for modality in generation.MODALITIES}

    def _generate_examples(
        self, modality: generation.Modality
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, doodle in enumerate(self._generate(modality=modality)):
            _, encoded = cv2.imencode(".png", doodle.image[..., ::-1])
            yield (
                key,
                {
                    "image": encoded.tobytes(),
                    "class_name": doodle.class_name,
                    "instance": doodle.instance,
                    "name": doodle.name,
                },
            )
