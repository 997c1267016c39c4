"""The base TFDS builder of manually downloaded data sets: checks and packs their files."""

import abc
import inspect
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from data_pipelines import prepared, versions
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
        source, now = self.scan(Path(dl_manager.manual_dir)), time.time_ns()
        reused = self.reused(source)
        packed = packing.pack(reused.rest, folder, run, reused.stored)
        unreadable = {name: why for _, done in packed for name, why in done.unreadable.items()}
        packing.report_unreadable(source, unreadable, skip_unreadable=self._skip_unreadable)

        files = dict(reused.states)
        digests = {name: digest for _, done in packed for name, digest in done.digests.items()}
        for file in (file for images in source.images.values() for file in images):
            if file.name not in files:
                files[file.name] = versions.state(file, digests[file.name], now)
        self.info.metadata.update(
            packing.describe(source, unreadable) | {"content": versions.content(source, files)}
        )
        splits = []
        for modality, listed in source.images.items():
            whole = reused.shards.get(modality, [])
            new = [(shard, done) for shard, done in packed if shard.modality == modality]
            names = [name for shard in whole for name in shard.names]
            names += [file.name for shard, _ in new for file in shard.files]
            texts = {file.name: (file.name, file.class_name, file.instance) for file in listed}
            index = prepared.sorted_index([texts[x] for x in names if x not in unreadable])
            prepared.write_index(Path(self.data_path) / f"index_{modality}.json", index)
            splits.append(self._put_shards(modality, whole, new))
        self.info.set_splits(tfds.core.SplitDict(splits))
        versions.write_files(Path(self.data_path), files)
        shutil.rmtree(folder)

    def reused(self, source: folders.Source) -> packing.Reused:
        """What of an earlier version is in `source`; nothing, unless a subclass knows one."""
        return packing.Reused(source)

    def _put_shards(
        self,
        modality: str,
        whole: Sequence[packing.WholeShard],
        packed: Sequence[tuple[packing.Shard, packing.Manifest]],
    ) -> tfds.core.SplitInfo:
        """Links the whole shards of an earlier version, and moves the new ones.

        To the paths that TFDS expects.
        """
        template = self._get_filename_template(modality)
        packed = [(shard, done) for shard, done in packed if done.images]
        count = len(whole) + len(packed)
        places = [template.sharded_filepath(shard_index=i, num_shards=count) for i in range(count)]
        for shard, place in zip(whole, places, strict=False):
            try:
                os.link(shard.path, place)
            except OSError:  # not every file system has hard links
                shutil.copyfile(shard.path, place)
        for (shard, _), place in zip(packed, places[len(whole) :], strict=True):
            shard.path.rename(place)
        return tfds.core.SplitInfo(
            name=modality,
            shard_lengths=[
                *(len(shard.names) for shard in whole),
                *(done.images for _, done in packed),
            ],
            num_bytes=sum(shard.path.stat().st_size for shard in whole)
            + sum(done.size for _, done in packed),
            filename_template=template,
        )
