"""Prepared data sets on disk: prepare once, then open for random access, without TensorFlow.

A prepared data set is a TFDS folder of ArrayRecord files with the schema of
`builders.features.record_features`, one TFDS split per modality. If a package of
`data_pipelines.builders` defines `CATALOGUE`, it is instead the folders of two data sets of the
TFDS catalogue (`data_pipelines.catalogue`). An index file of names, classes and instances lies next
to the records, so that items are selected without reading images.
"""

import contextlib
import fcntl
import functools
import importlib
import io
import json
import logging
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tqdm

from data_pipelines import builders, catalogue, class_names, paths
from data_pipelines.files import contents
from data_pipelines.images import Modality
from data_pipelines.suggestions import suggest

logger = logging.getLogger(__name__)

_INDEX_FORMAT = 1
"""Increase it when the content of the index changes, so that old files are rewritten."""


class Records:
    """Encoded images of one TFDS split, by row; thread-safe and picklable."""

    def __init__(self, source: Any):
        """`source`: random access to serialized examples with a feature "image"."""
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> bytes:
        """The encoded image of one row."""
        return self._features(row)["image"].bytes_list.value[0]

    def texts(self, row: int, *keys: str) -> tuple[str, ...]:
        """The text features `keys` of one row."""
        features = self._features(row)
        return tuple(features[key].bytes_list.value[0].decode() for key in keys)

    def label(self, row: int) -> int:
        """The class label of one row."""
        return self._features(row)["label"].int64_list.value[0]

    def _features(self, row: int) -> Any:
        # Parsing the tf.train.Example with protobuf alone is faster than TFDS's decoders.
        return _example_class().FromString(self._source[row]).features.feature


@functools.cache
def _example_class() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


class Index(NamedTuple):
    """Metadata of all records, sorted by name."""

    rows: Sequence[int]
    names: Sequence[str]
    class_names: Sequence[str]
    instances: Sequence[str]


def open_split(folder: Path, modality: Modality) -> tuple[Records, Index]:
    """Opens one modality of the prepared data set in `folder`, the result of `prepare`.

    Raises:
      FileNotFoundError: if files of the data set are missing.
    """
    import tensorflow_datasets as tfds

    if (package := _catalogue_package(folder.name)) is not None:
        dataset = package.CATALOGUE[modality]
        opened = catalogue.open_dataset(dataset, folder.parent)
        _check_files(opened.folder, opened.files)
        records = Records(opened.source)

        def texts(row: int) -> tuple[str, ...]:
            class_name = opened.class_names[records.label(row)]
            return f"{dataset}/{class_name}/{row:06}", class_name, ""

        path = opened.folder / f"index_{modality}.json"
        return records, _normalised(_index(path, len(records), texts))

    builder = tfds.builder_from_directory(folder)
    instructions = builder.info.splits[modality].file_instructions
    _check_files(folder, [instruction.filename for instruction in instructions])
    from array_record.python import array_record_data_source

    stored = Records(array_record_data_source.ArrayRecordDataSource(instructions))
    keys = ("name", "class_name", "instance")
    path = folder / f"index_{modality}.json"
    return stored, _normalised(_index(path, len(stored), lambda row: stored.texts(row, *keys)))


def _normalised(index: Index) -> Index:
    """The index with normal class names: earlier versions stored the names of the folders."""
    return index._replace(class_names=[*map(class_names.normal, index.class_names)])


def _check_files(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not Path(name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} files of the prepared data set in {folder} are "
            f"missing, the first is {missing[0]}. Delete the folder to prepare it again."
        )


def _index(path: Path, count: int, texts: Callable[[int], tuple[str, ...]]) -> Index:
    """Reads the index at `path`; builds it from the records if it is missing or outdated."""
    stored = paths.read_json(path) or {}
    if stored.pop("format", None) == _INDEX_FORMAT and len(stored.get("rows", ())) == count:
        return Index(**stored)
    rows = tqdm.trange(count, desc=f"Indexing {path.parent}", unit=" images")
    index = sorted_index([texts(row) for row in rows])
    try:
        write_index(path, index)
    except OSError as error:  # The data set is on a read-only disk.
        logger.warning(
            "Cannot write the index %s (%s). The next start builds it again.", path, error
        )
    return index


def sorted_index(texts: Sequence[tuple[str, ...]]) -> Index:
    """The index of records; `texts` is the (name, class name, instance) of each row."""
    rows = sorted(range(len(texts)), key=texts.__getitem__)
    return Index(rows, *map(list, zip(*(texts[row] for row in rows), strict=True)))


def write_index(path: Path, index: Index) -> None:
    """Writes the index to `path`; `open_split` reads it from `index_<modality>.json`."""
    paths.replace(path, json.dumps({"format": _INDEX_FORMAT, **index._asdict()}))


def prepare(
    name: str,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    skip_unreadable: bool = False,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> Path:
    """The folder of the prepared data set `name`. Prepares the data set if it does not exist.

    Preparation uses all cores of this machine, or Apache Beam. If it is interrupted, the next call
    resumes it.

    Args:
      name: name of a package in `data_pipelines.builders`.
      data_dir: folder of prepared data sets; TFDS's default (~/tensorflow_datasets) if None.
      manual_dir: folder of the unpacked data set. Required to prepare a data set that must be
        downloaded by hand. Later it is optional, and is compared with the prepared data set.
      skip_unreadable: skip and report unreadable images instead of raising an error.
      beam_runner: "DirectRunner", "FlinkRunner", ...: prepares an unpacked data set with Apache
        Beam. Its workers need `data_dir` and `manual_dir` at the same paths as this machine.
      beam_options: Beam options as on a command line: "--direct_num_workers=4".

    Raises:
      ValueError: for an unknown name, unreadable images, or a manual_dir that does not match the
        prepared data set.
      FileNotFoundError: if the data set is not prepared and not found in manual_dir.
      ConnectionError: if the data set must be downloaded and its server cannot be reached.
      ModuleNotFoundError: if Beam is requested but not installed.
    """
    import tensorflow_datasets as tfds

    package = _builder_package(name)
    root = paths.local(data_dir or tfds.core.constants.DATA_DIR, "config.data.data_dir")
    if not hasattr(package, "scan"):
        for option, given in (("manual_dir", manual_dir), ("beam_runner", beam_runner)):
            if given is not None:
                raise ValueError(
                    f"The data set {name!r} is generated or downloaded and does not use {option}, "
                    f"but got {given}. Set config.data.{option}=None."
                )
        return _prepare_automatic(package, name, root)
    if manual_dir is not None:
        manual_dir = paths.local(manual_dir, "config.data.manual_dir")
        if not manual_dir.is_dir() or not contents(manual_dir):
            raise FileNotFoundError(
                f"manual_dir {manual_dir} is empty or missing. Set config.data.manual_dir to "
                f"the folder of the unpacked data set {name!r}."
            )
    beam = _beam(beam_runner, beam_options)
    builder = _builder(package, name, root, skip_unreadable=skip_unreadable)
    folder = Path(builder.data_dir)
    if not folder.exists():
        if manual_dir is None:
            raise FileNotFoundError(
                f"The data set {name!r} is not prepared in {root} and must be downloaded by hand. "
                "Unpack it and set its folder: "
                f"--config.data.manual_dir=DIR.\n{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        _build(builder, name, root, tfds.download.DownloadConfig(manual_dir=manual_dir, **beam))
    elif manual_dir is not None:
        _check_source(folder, package.scan, manual_dir)
    return folder


def _prepare_automatic(package: ModuleType, name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig()
    if not hasattr(package, "CATALOGUE"):
        builder = _builder(package, name, root)
        if not Path(builder.data_dir).exists():
            _build(builder, name, root, config)
        return Path(builder.data_dir)
    datasets = package.CATALOGUE.values()
    if not catalogue.is_prepared(datasets, root):
        with _lock(root, name):
            catalogue.prepare(datasets, package.HOMEPAGE, root, config)
    return root / name


def _builder(package: ModuleType, name: str, root: Path, **options: Any) -> Any:
    import tensorflow_datasets as tfds

    importlib.import_module(f"{package.__name__}.{name}")  # Registers the builder with TFDS.
    return tfds.builder_cls(name)(data_dir=root, file_format="array_record", **options)


def _build(builder: Any, name: str, root: Path, config: Any) -> None:
    folder = Path(builder.data_dir)
    with _lock(root, name):
        if folder.exists():  # Another process prepared it while this one waited.
            return
        for left in folder.parent.glob(f"incomplete.*_{folder.name}"):  # Left by a killed process.
            shutil.rmtree(left)
        print(f"Preparing the data set {name!r} in {folder}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # Hides TFDS's messages about a download.
            builder.download_and_prepare(download_config=config)


def _beam(runner: str | None, options: Sequence[str]) -> dict[str, Any]:
    """The fields of TFDS's `DownloadConfig` that select Beam."""
    if runner is None:
        if options:
            raise ValueError(f"beam_options {list(options)} need a beam_runner.")
        return {}
    try:
        from apache_beam.options import pipeline_options  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"beam_runner {runner!r} needs Apache Beam, which is not installed. Install it (pip "
            "install apache-beam), or omit beam_runner to use all cores of this machine."
        ) from error
    return {"beam_runner": runner, "beam_options": pipeline_options.PipelineOptions(list(options))}


def _catalogue_package(name: str) -> ModuleType | None:
    """The builder package `name`, if its data set is in the TFDS catalogue."""
    if name not in _dataset_names():
        return None
    package = _builder_package(name)
    return package if hasattr(package, "CATALOGUE") else None


def _dataset_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(builders.__path__) if module.ispkg]


def _builder_package(name: str) -> ModuleType:
    known = _dataset_names()
    if name not in known:
        raise ValueError(
            f"There is no data set {name!r}{suggest(name, known)}. Set config.data.name to one of "
            f"{', '.join(known)}."
        )
    return importlib.import_module(f"{builders.__name__}.{name}")


@functools.cache  # Once per process and folder: listing 100,000 files takes seconds.
def _check_source(folder: Path, scan: Callable[[Path], Any], manual_dir: Path) -> None:
    """Checks that the data set was prepared from the files in `manual_dir`."""
    source = scan(manual_dir)
    prepared = json.loads((folder / "metadata.json").read_text())
    if prepared["fingerprint"] != source.fingerprint:
        raise ValueError(
            f"The prepared data set in {folder} was made from {prepared['source']} "
            f"({prepared['file_count']} images) and does not match {source.root} "
            f"({source.file_count} images; their names, sizes or pairs differ). Delete {folder} to "
            "prepare it again, set another config.data.data_dir, or omit config.data.manual_dir to "
            "use the prepared data set."
        )


@contextlib.contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    """Lets one process of this machine prepare a data set while the others wait."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise PermissionError(
            f"Cannot prepare data set {name!r} in {root} ({error}). Set a writable folder: "
            "--config.data.data_dir=DIR."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The system releases it when the process ends.
        yield
