"""The TFDS builder of Sketchy Extended: checks the unpacked archives, then packs their files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_pipelines.builders import features, folders
from data_pipelines.builders.sketchy import layout


class Sketchy(tfds.core.GeneratorBasedBuilder):
    """Sketchy Extended, original encoded bytes; TFDS splits `sketch` and `photo`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sketches, photos, instance pairs, optional extension."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Sketchy is free for research, but has no address that a program could fetch it from. Get the
    Sketchy Database (256x256 renderings) from its project page, and the extension
    (EXTEND_image_sketchy, optional) from where the zero-shot papers link it, and unpack both into
    one folder, so that it holds 256x256/sketch/, 256x256/photo/ and EXTEND_image_sketchy/. Give
    that folder as manual_dir.
    """

    def __init__(self, *, skip_unreadable: bool = False, **kwargs: Any):
        """`skip_unreadable`: leave unreadable images out, named in the metadata, and go on."""
        self._skip_unreadable = skip_unreadable
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=layout.__doc__,
            features=features.record_features(),
            homepage="https://sketchy.eye.gatech.edu/",
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # Read at random anyway; files stay in the order of names.
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        source = layout.scan(Path(dl_manager.manual_dir))
        unreadable = folders.check(source, skip_unreadable=self._skip_unreadable)
        self.info.metadata.update(folders.describe(source, unreadable))
        return {
            modality: self._generate_examples([f for f in files if f.name not in unreadable])
            for modality, files in source.images.items()
        }

    def _generate_examples(
        self, files: Sequence[folders.ImageFile]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from folders.records(files)


_CITATION = """@article{sangkloy2016sketchy,
  title={The Sketchy Database: Learning to Retrieve Badly Drawn Bunnies},
  author={Sangkloy, Patsorn and Burnell, Nathan and Ham, Cusuh and Hays, James},
  journal={ACM Transactions on Graphics (Proceedings of SIGGRAPH)},
  year={2016}
}"""
