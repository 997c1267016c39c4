"""Prepared data sets on disk: prepare once, then open and read at random, without TensorFlow.

A prepared data set is a TFDS folder of ArrayRecord files with the schema of
`builders.features.record_features`, one TFDS split per modality; or, where a package of
`data_pipelines.builders` names them in `CATALOGUE`, the folders of two data sets of TFDS's own
catalogue (`data_pipelines.catalogue`). Beside the records lies an index of names, classes and
instances, so that choosing items never reads an image.
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
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tqdm

from data_pipelines import builders, catalogue
from data_pipelines.images import Modality

logger = logging.getLogger(__name__)

_INDEX_FORMAT = 1
"""Raised when the index's content changes, so that older files are written anew."""


class Records:
    """Encoded images of one TFDS split, by row; safe to share with threads and to pickle."""

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
    """Opens one modality of the prepared data set in `folder`, which `prepare` returned.

    Raises:
      FileNotFoundError: when the data set's files are not all there.
    """
    import tensorflow_datasets as tfds

    if (package := _catalogued(folder.name)) is not None:
        dataset = package.CATALOGUE[modality]
        opened = catalogue.open_dataset(dataset, folder.parent)
        _check_files(opened.folder, opened.files)
        records = Records(opened.source)

        def texts(row: int) -> tuple[str, ...]:
            class_name = opened.class_names[records.label(row)]
            return f"{dataset}/{class_name}/{row:06}", class_name, ""

        return records, _index(opened.folder / f"index_{modality}.json", len(records), texts)

    builder = tfds.builder_from_directory(folder)
    instructions = builder.info.splits[modality].file_instructions
    _check_files(folder, [instruction.filename for instruction in instructions])
    from array_record.python import array_record_data_source

    stored = Records(array_record_data_source.ArrayRecordDataSource(instructions))
    keys = ("name", "class_name", "instance")
    path = folder / f"index_{modality}.json"
    return stored, _index(path, len(stored), lambda row: stored.texts(row, *keys))


def _check_files(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not Path(name).exists()]
    if missing:
        raise FileNotFoundError(
            f"The prepared data set in {folder} lacks {len(missing)} of {len(names)} files, "
            f"the first {missing[0]}. Delete the folder, so that it is prepared again."
        )


def _index(path: Path, count: int, texts: Callable[[int], tuple[str, ...]]) -> Index:
    """The index at `path`; made from the name, class and instance of each record if need be."""
    if path.exists():
        stored = json.loads(path.read_text())
        if stored.pop("format") == _INDEX_FORMAT and len(stored["rows"]) == count:
            return Index(**stored)
    rows = tqdm.trange(count, desc=f"Indexing {path.parent}", unit=" images")
    index = sorted_index([texts(row) for row in rows])
    try:
        write_index(path, index)
    except OSError as error:  # A data set on a read-only disk: works, but scans each time.
        logger.warning("Cannot keep the index %s (%s); the next start scans again.", path, error)
    return index


def sorted_index(texts: Sequence[tuple[str, ...]]) -> Index:
    """The index of records whose (name, class name, instance) are given by row."""
    rows = sorted(range(len(texts)), key=texts.__getitem__)
    return Index(rows, *map(list, zip(*(texts[row] for row in rows), strict=True)))


def write_index(path: Path, index: Index) -> None:
    """Keeps the index where `open_split` looks for it: `index_<modality>.json`."""
    _write_atomically(path, json.dumps({"format": _INDEX_FORMAT, **index._asdict()}))


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
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> Path:
    """The folder of the prepared data set `name`; prepares it first when it is not there.

    Preparing uses all cores of this machine, or the runner of Apache Beam that is asked for. When
    it is stopped, the next start goes on from there.

    Args:
      name: of a package in `data_pipelines.builders`.
      data_dir: where prepared data sets lie; TFDS's default (~/tensorflow_datasets) if None.
      manual_dir: where the user unpacked the data set. Needed to prepare one that cannot be
        downloaded; afterwards optional, and then checked against what was prepared.
      skip_unreadable: leave unreadable images out (counted and named) instead of stopping.
      beam_runner: "DirectRunner", "FlinkRunner", ...: whose workers prepare a data set that the
        user unpacked. They must see `data_dir` and `manual_dir` at the same paths as this machine.
      beam_options: Beam's own, as on a command line: "--direct_num_workers=4".

    Raises:
      ValueError: for an unknown name, unreadable images, or a manual_dir whose files are not those
        that were prepared.
      FileNotFoundError: when the data set is neither prepared nor found in manual_dir.
      ConnectionError: when it downloads itself and its server cannot be reached.
      ModuleNotFoundError: when Beam is asked for and not installed.
    """
    import tensorflow_datasets as tfds

    package = _builder_package(name)
    # TFDS would warn that the folder is not there yet; it is made where it can be.
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser().absolute()
    if not hasattr(package, "scan"):
        for option, given in (("manual_dir", manual_dir), ("beam_runner", beam_runner)):
            if given is not None:
                raise ValueError(
                    f"The data set {name!r} is made by a program and reads no {option}, but is "
                    f"given {given}. Leave it out: config.data.{option}=None."
                )
        return _prepare_by_program(package, name, root)
    if manual_dir is not None:
        manual_dir = Path(manual_dir).expanduser().absolute()
        if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
            raise FileNotFoundError(
                f"There is nothing in manual_dir {manual_dir}. Set config.data.manual_dir to the "
                f"folder in which {name!r} is unpacked."
            )
    beam = _beam(beam_runner, beam_options)
    builder = _builder(package, name, root, skip_unreadable=skip_unreadable)
    folder = Path(builder.data_dir)
    if not folder.exists():
        if manual_dir is None:
            raise FileNotFoundError(
                f"The data set {name!r} is not prepared in {root}, and cannot be downloaded by a "
                "program. Unpack it and give its folder: "
                f"--config.data.manual_dir=DIR.\n{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        _build(builder, name, root, tfds.download.DownloadConfig(manual_dir=manual_dir, **beam))
    elif manual_dir is not None:
        _check_source(folder, package.scan, manual_dir)
    return folder


def _prepare_by_program(package: ModuleType, name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig()
    if not hasattr(package, "CATALOGUE"):
        builder = _builder(package, name, root)
        if not Path(builder.data_dir).exists():
            _build(builder, name, root, config)
        return Path(builder.data_dir)
    datasets = package.CATALOGUE.values()
    if not catalogue.is_prepared(datasets, root):
        with _only_process(root, name):
            catalogue.prepare(datasets, package.HOMEPAGE, root, config)
    return root / name


def _builder(package: ModuleType, name: str, root: Path, **options: Any) -> Any:
    import tensorflow_datasets as tfds

    importlib.import_module(f"{package.__name__}.{name}")  # Registers the builder with TFDS.
    return tfds.builder_cls(name)(data_dir=root, file_format="array_record", **options)


def _build(builder: Any, name: str, root: Path, config: Any) -> None:
    folder = Path(builder.data_dir)
    with _only_process(root, name):
        if folder.exists():  # Another process prepared it while this one waited.
            return
        for left in folder.parent.glob(f"incomplete.*_{folder.name}"):  # Of one that was killed.
            shutil.rmtree(left)
        print(f"Preparing the data set {name!r}, this once, in {folder}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download.
            builder.download_and_prepare(download_config=config)


def _beam(runner: str | None, options: Sequence[str]) -> dict[str, Any]:
    """What switches TFDS to Beam: the fields of its `DownloadConfig`."""
    if runner is None:
        if options:
            raise ValueError(f"There is no beam_runner for beam_options {list(options)}.")
        return {}
    try:
        from apache_beam.options import pipeline_options  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"beam_runner {runner!r} needs Apache Beam, which is not installed. Install it (pip "
            "install apache-beam), or leave beam_runner out: all cores of this machine do the work."
        ) from error
    return {
        "beam_runner": runner,
        "beam_options": pipeline_options.PipelineOptions(list(options)),
    }


def _catalogued(name: str) -> ModuleType | None:
    """The package of a data set of TFDS's catalogue, whose folder has the same name."""
    if name not in _known():
        return None
    package = _builder_package(name)
    return package if hasattr(package, "CATALOGUE") else None


def _known() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(builders.__path__) if module.ispkg]


def _builder_package(name: str) -> ModuleType:
    known = _known()
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
            f"({source.file_count} images; their names, sizes or pairs differ). Delete {folder} to "
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
