"""Prepared data sets on disk: prepare once, then open and read at random, without TensorFlow.

A prepared data set is a TFDS folder of ArrayRecord files with the schema of
`builders.features.record_features`, one TFDS split per modality. Beside the records lies an index
of names, classes and instances, made by one scan, so that choosing items never decodes an image.
"""

import contextlib
import difflib
import fcntl
import functools
import importlib
import io
import json
import logging
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tqdm

from data_pipelines import builders
from data_pipelines.images import Modality

logger = logging.getLogger(__name__)

_INDEX_FORMAT = 1
"""Raised when the index's content changes, so that older files are written anew."""


class Records:
    """Encoded images of one TFDS split, by row; safe to share with threads and to pickle."""

    def __init__(self, file_instructions: Sequence[Any]):
        """`file_instructions`: TFDS's list of files and ranges of one split."""
        from array_record.python import array_record_data_source

        self._source = array_record_data_source.ArrayRecordDataSource(file_instructions)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> bytes:
        """The encoded image of one row."""
        return self._features(row)["image"].bytes_list.value[0]

    def texts(self, row: int, *keys: str) -> tuple[str, ...]:
        """The text features `keys` of one row."""
        features = self._features(row)
        return tuple(features[key].bytes_list.value[0].decode() for key in keys)

    def _features(self, row: int) -> Any:
        # A tf.train.Example, parsed by protobuf alone, which spares TFDS's work per feature.
        return _example_class().FromString(self._source[row]).features.feature


@functools.cache
def _example_class() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


class Index(NamedTuple):
    """What is known of each record without reading it again; sorted by name."""

    rows: Sequence[int]
    names: Sequence[str]
    class_names: Sequence[str]
    instances: Sequence[str]


def open_split(folder: Path, modality: Modality) -> tuple[Records, Index]:
    """Opens one modality of the prepared data set in `folder`.

    Raises:
      FileNotFoundError: when the data set's files are not all there.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    instructions = builder.info.splits[modality].file_instructions
    missing = [i.filename for i in instructions if not Path(i.filename).exists()]
    if missing:
        raise FileNotFoundError(
            f"The prepared data set in {folder} lacks {len(missing)} of {len(instructions)} files, "
            f"the first {missing[0]}. Delete the folder, so that it is prepared again."
        )
    records = Records(instructions)
    return records, _index(folder / f"index_{modality}.json", records)


def _index(path: Path, records: Records) -> Index:
    if path.exists():
        stored = json.loads(path.read_text())
        if stored.pop("format") == _INDEX_FORMAT and len(stored["rows"]) == len(records):
            return Index(**stored)
    texts = [
        records.texts(row, "name", "class_name", "instance")
        for row in tqdm.trange(len(records), desc=f"Indexing {path.parent}", unit=" images")
    ]
    rows = sorted(range(len(texts)), key=texts.__getitem__)
    index = Index(rows, *map(list, zip(*(texts[row] for row in rows), strict=True)))
    try:
        _write_atomically(path, json.dumps({"format": _INDEX_FORMAT, **index._asdict()}))
    except OSError as error:  # A data set on a read-only disk: works, but scans each time.
        logger.warning("Cannot keep the index %s (%s); the next start scans again.", path, error)
    return index


def _write_atomically(path: Path, text: str) -> None:
    """Several processes may write the same file: the last one wins, none sees half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def prepare(
    name: str,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    skip_unreadable: bool = False,
) -> Path:
    """The folder of the prepared data set `name`; prepares it first when it is not there.

    Args:
      name: of a package in `data_pipelines.builders`.
      data_dir: where prepared data sets lie; TFDS's default (~/tensorflow_datasets) if None.
      manual_dir: where the user unpacked the data set. Needed to prepare one that cannot be
        downloaded; afterwards optional, and then checked against what was prepared.
      skip_unreadable: leave unreadable images out (counted and named) instead of stopping.

    Raises:
      ValueError: for an unknown name, unreadable images, or a manual_dir whose files are not those
        that were prepared.
      FileNotFoundError: when the data set is neither prepared nor found in manual_dir.
    """
    import tensorflow_datasets as tfds

    package = _builder_package(name)
    unpacked_by_user = hasattr(package, "scan")
    if manual_dir is not None and not unpacked_by_user:
        raise ValueError(
            f"The data set {name!r} is made by a program and reads no manual_dir, but is given "
            f"{manual_dir}. Set config.data.manual_dir to None."
        )
    if manual_dir is not None:
        manual_dir = Path(manual_dir).expanduser().absolute()
        if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
            raise FileNotFoundError(
                f"There is nothing in manual_dir {manual_dir}. Set config.data.manual_dir to the "
                f"folder in which {name!r} is unpacked."
            )
    importlib.import_module(f"{package.__name__}.{name}")  # Registers the builder with TFDS.
    options = {"skip_unreadable": skip_unreadable} if unpacked_by_user else {}
    # TFDS would warn that the folder is not there yet; it is made where it can be.
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser().absolute()
    builder = tfds.builder_cls(name)(data_dir=root, file_format="array_record", **options)
    folder = Path(builder.data_dir)
    if not folder.exists():
        if manual_dir is None and unpacked_by_user:
            raise FileNotFoundError(
                f"The data set {name!r} is not prepared in {root}, and cannot be downloaded by a "
                "program. Unpack it and give its folder: "
                f"--config.data.manual_dir=DIR.\n{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        with _only_process(root, name):
            if not folder.exists():  # Another process may have prepared it while this one waited.
                print(f"Preparing the data set {name!r}, this once, in {folder}", flush=True)
                config = tfds.download.DownloadConfig(manual_dir=manual_dir)
                with contextlib.redirect_stdout(io.StringIO()):  # It speaks of a download.
                    builder.download_and_prepare(download_config=config)
    elif manual_dir is not None:
        _check_source(folder, package.scan, manual_dir)
    return folder


def _builder_package(name: str) -> ModuleType:
    known = [module.name for module in pkgutil.iter_modules(builders.__path__) if module.ispkg]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"There is no data set {name!r}{hint}. Set config.data.name to one of "
            f"{', '.join(known)}."
        )
    return importlib.import_module(f"{builders.__name__}.{name}")


@functools.cache  # Once per process and folder: listing 100,000 files takes seconds.
def _check_source(folder: Path, scan: Callable[[Path], Any], manual_dir: Path) -> None:
    """Training on data that differs from the manual_dir given would go unnoticed."""
    source = scan(manual_dir)
    prepared = json.loads((folder / "metadata.json").read_text())
    if prepared["fingerprint"] != source.fingerprint:
        raise ValueError(
            f"The prepared data set in {folder} was made from {prepared['source']} "
            f"({prepared['file_count']} images) and does not match {source.root} "
            f"({source.file_count} images; their names or sizes differ). Delete {folder} to "
            "prepare it again, give another config.data.data_dir, or leave config.data.manual_dir "
            "out to use what was prepared."
        )


@contextlib.contextmanager
def _only_process(root: Path, name: str) -> Iterator[None]:
    """Lets one process of this machine prepare a data set, while the others wait."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise PermissionError(
            f"Cannot prepare data set {name!r} in {root} ({error}). Give a folder that can be "
            "written: --config.data.data_dir=DIR."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Released by the system when the process ends.
        yield
