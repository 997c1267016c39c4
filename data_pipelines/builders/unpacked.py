"""The base TFDS builder of manually downloaded data sets: checks and packs their files."""

import abc
import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from data_pipelines import prepared
from data_pipelines.builders import features, folders, packing


class UnpackedImages(dataset_builder.FileReaderBuilder, abc.ABC):
    """Stores the original encoded bytes in two TFDS splits, `sketch` and `photo`.

    A subclass defines `scan`, which finds the files, and `MANUAL_DOWNLOAD_INSTRUCTIONS` for users.
    TFDS requires one package per builder.
    """

    HOMEPAGE: ClassVar[str | None] = None
    CITATION: ClassVar[str | None] = None

    def __init__(
        self, *, skip_unreadable: bool = False, file_format: str = "array_record", **kwargs: Any
    ):
        """`skip_unreadable`: skip unreadable images and list them in the metadata."""
        if file_format != "array_record":
            raise ValueError(
                f"{type(self).__name__} is packed as array_record, not as {file_format!r}, because "
                "the loader needs random access."
            )
        self._skip_unreadable = skip_unreadable
        super().__init__(file_format=file_format, **kwargs)

    @abc.abstractmethod
    def scan(self, manual_dir: Path) -> folders.Source:
        """The sketches and photos below `manual_dir`."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.getdoc(type(self)),
            features=features.record_features(),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # The loader shuffles; records stay sorted by name.
        )

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        """TFDS calls this with a `data_path` that it removes on failure."""
        config = download_config or tfds.download.DownloadConfig()
        by_beam = config.beam_runner or config.beam_options
        run = packing.beam_runner(config.beam_runner, config.beam_options) if by_beam else None
        folder = Path(self.data_path).with_name(f"{self.version}.unfinished")
        source = self.scan(Path(dl_manager.manual_dir))
        packed = packing.pack(source, folder, run)
        unreadable = {name: why for _, done in packed for name, why in done.unreadable.items()}
        packing.report_unreadable(source, unreadable, skip_unreadable=self._skip_unreadable)

        self.info.metadata.update(packing.describe(source, unreadable))
        splits = [
            self._move_shards(
                [(shard, done) for shard, done in packed if shard.modality == modality]
            )
            for modality in source.images
        ]
        self.info.set_splits(tfds.core.SplitDict(splits))
        for modality, files in source.images.items():
            kept = [file for file in files if file.name not in unreadable]
            index = prepared.sorted_index([(f.name, f.class_name, f.instance) for f in kept])
            prepared.write_index(Path(self.data_path) / f"index_{modality}.json", index)
        shutil.rmtree(folder)

    def _move_shards(
        self, packed: Sequence[tuple[packing.Shard, packing.Manifest]]
    ) -> tfds.core.SplitInfo:
        """Moves the shards of one modality to the paths that TFDS expects."""
        modality = packed[0][0].modality
        template = self._get_filename_template(modality)
        packed = [(shard, done) for shard, done in packed if done.images]
        for number, (shard, _) in enumerate(packed):
            shard.path.rename(template.sharded_filepath(shard_index=number, num_shards=len(packed)))
        return tfds.core.SplitInfo(
            name=modality,
            shard_lengths=[done.images for _, done in packed],
            num_bytes=sum(done.size for _, done in packed),
            filename_template=template,
        )
