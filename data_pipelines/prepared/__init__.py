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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tqdm

from data_pipelines import builders, catalogue, class_names, paths, versions
from data_pipelines.files import contents, nothing_in
from data_pipelines.images import Modality
from data_pipelines.suggestions import counted, suggest
from data_pipelines.terminal import printable

logger = logging.getLogger(__name__)

_INDEX_FORMAT = 1
"""Increase it when the content of the index changes, so that old files are rewritten."""

PRESENT = "present"
"""As `content` of `prepare`: what the folder contains now."""


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


def record_files(folder: Path, modality: Modality) -> list[tuple[str, int]]:
    """The path and the number of records of each file of a data set that was prepared by us."""
    import tensorflow_datasets as tfds

    split = tfds.builder_from_directory(folder).info.splits[modality]
    return [(part.filename, part.examples_in_shard) for part in split.file_instructions]


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


def root_of(data_dir: str | Path | None) -> Path:
    """The folder of prepared data sets: TFDS's default (~/tensorflow_datasets) if None.

    Raises:
      ValueError: as `paths.local`.
    """
    import tensorflow_datasets as tfds

    return paths.local(data_dir or tfds.core.constants.DATA_DIR, "config.data.data_dir")


def prepare(
    name: str,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    name_as: str | None = None,
    content: str | None = None,
    skip_unreadable: bool = False,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> Path:
    """The folder of the prepared data set `name`. Prepares the data set if it does not exist.

    Preparation uses all cores of this machine, or Apache Beam. If it is interrupted, the next call
    resumes it.

    Of `folder`, a user's own images, every folder and every content of it is a data set. A changed
    folder is prepared again from its last version; `data_pipelines.versions` says how changes are
    found, and what this costs. It is compared once in a process, so that a run reads one content.

    Args:
      name: name of a package in `data_pipelines.builders`.
      data_dir: folder of prepared data sets; TFDS's default (~/tensorflow_datasets) if None.
      manual_dir: folder of the unpacked data set. Required to prepare a data set that must be
        downloaded by hand. Later it is optional, and is compared with the prepared data set.
      name_as: of `folder`, the name of the images: letters, digits, `_` and `-`. If None, it is
        made of the path of manual_dir.
      content: of `folder`, which content, as `content_of` returns it, prepared earlier or present
        in manual_dir; None or `PRESENT`: that of manual_dir, or the last one if manual_dir is None.
      skip_unreadable: skip and report unreadable images instead of raising an error.
      beam_runner: "DirectRunner", "FlinkRunner", ...: prepares an unpacked data set with Apache
        Beam. Its workers need `data_dir` and `manual_dir` at the same paths as this machine.
      beam_options: Beam options as on a command line: "--direct_num_workers=4".

    Raises:
      ValueError: for an unknown or invalid name, unreadable images, a manual_dir that does not
        match the prepared data set, content that does not exist, or a choice between folders.
      FileNotFoundError: if the data set is not prepared and not found in manual_dir.
      ConnectionError: if the data set must be downloaded and its server cannot be reached.
      ModuleNotFoundError: if Beam is requested but not installed.
    """
    import tensorflow_datasets as tfds

    package, root = builder_package(name), root_of(data_dir)
    by_content = hasattr(package, "BY_CONTENT")
    for option, text in (("name_as", name_as), ("content", content)):
        if text is not None and not by_content:
            raise ValueError(
                f"config.data.{option} is for a user's own images, config.data.name='folder', not "
                f"for the data set {name!r}. Omit it."
            )
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
    if by_content:
        wanted = None if content in (None, "", PRESENT) else content
        options = skip_unreadable, beam_runner, tuple(beam_options)
        found = _folder_version(name, root, manual_dir, name_as, wanted, *options)
        if not found.is_dir():  # It was removed since.
            _folder_version.cache_clear()
            found = _folder_version(name, root, manual_dir, name_as, wanted, *options)
        return found
    if manual_dir is not None and (problem := nothing_in(manual_dir)):
        raise FileNotFoundError(
            f"manual_dir {manual_dir} {problem}. Set config.data.manual_dir to the folder of the "
            f"unpacked data set {name!r}."
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


def is_by_content(name: str) -> bool:
    """Whether each content of a folder is a data set of its own: a user's own images."""
    return hasattr(builder_package(name), "BY_CONTENT")


def content_of(folder: Path) -> str:
    """Identifies the content of a prepared `folder` data set, see `versions.Version.content`."""
    return versions.Version(folder, "", 0).content


@functools.cache
def _folder_version(
    name: str,
    root: Path,
    manual_dir: Path | None,
    name_as: str | None,
    content: str | None,
    skip_unreadable: bool,
    beam_runner: str | None,
    beam_options: tuple[str, ...],
) -> Path:
    """The folder of the version that `prepare` returns for a user's own images."""
    if name_as is not None:
        versions.check_name(name_as)
    known = versions.find(root / name)
    if found := [version for version in known if version.content == content]:
        last = ([version for version in found if version.name == name_as] or found)[-1]
        if any(v.name == last.name and v.number > last.number for v in known):
            logger.warning(
                "These images have changed since: %s. To use what the folder contains now, set "
                "--config.data.content=%s.",
                versions.summary(last),
                PRESENT,
            )
        return last.folder
    if manual_dir is None or not manual_dir.is_dir() or not contents(manual_dir):
        if content is not None:
            raise FileNotFoundError(_missing_content(content, root, known, manual_dir))
        layout = builder_package(name).LAYOUT
        return _last_version(known, root, manual_dir, name_as, layout).folder
    source = builder_package(name).scan(manual_dir)
    own_name = name_as or versions.automatic_name(source.root)

    def match() -> tuple[Path | None, list[versions.Version]]:
        own = [v for v in versions.find(root / name) if v.name == own_name]
        old = [] if name_as else [v for v in known if not v.name]
        return next(
            (v.folder for v in [*own[::-1], *old] if versions.matches(source, v)), None
        ), own

    folder, own = match()
    if folder is None:
        beam = _beam(beam_runner, beam_options)
        with lock(root, f"{name}-{own_name}"):
            folder, own = match()  # Another process may have prepared it while this one waited.
            if folder is None:
                last_own = own[-1] if own else None
                folder = _build_version(
                    name, root, source, own_name, last_own, skip_unreadable, beam
                )
    if content is not None and content_of(folder) != content:
        raise ValueError(_missing_content(content, root, versions.find(root / name), source.root))
    return folder


def _build_version(
    name: str,
    root: Path,
    source: Any,
    own_name: str,
    last: versions.Version | None,
    skip_unreadable: bool,
    beam: Mapping[str, Any],
) -> Path:
    """Prepares `source` as the version after `last`, with what is unchanged of it."""
    import tensorflow_datasets as tfds

    changes = versions.compare(source, last) if last else None
    config = tfds.core.BuilderConfig(name=own_name, version=f"1.0.{last.number + 1 if last else 0}")
    builder = _builder(
        builder_package(name),
        name,
        root,
        config=config,
        source=source,
        previous=(last, changes) if changes is not None else None,
        skip_unreadable=skip_unreadable,
    )
    message = f"Preparing {source.root} as {own_name} in {builder.data_dir}"
    if last and changes is not None:
        same = counted(len(changes.same), "image", "images")
        message += f": {changes}; {same} unchanged, taken from the version of {last.date}"
    download = tfds.download.DownloadConfig(manual_dir=source.root, **beam)
    _download_and_prepare(builder, message, download)
    return Path(builder.data_dir)


def _last_version(
    known: Sequence[versions.Version],
    root: Path,
    manual_dir: Path | None,
    name_as: str | None,
    layout: str,
) -> versions.Version:
    """The last version that was prepared, for a folder that is not given or does not exist."""
    found = [v for v in known if name_as is None or v.name == name_as]
    if manual_dir is not None and not name_as:
        found = [v for v in found if manual_dir.resolve() in (v.source, v.source.parent)]
    if not found:
        called = f" called {name_as!r}" if name_as else ""
        problem = f"No folder of images{called} is prepared in {root}"
        if manual_dir is not None:
            problem = f"manual_dir {manual_dir} {nothing_in(manual_dir)}"
        raise FileNotFoundError(
            f"{problem}. Set --config.data.manual_dir to the folder that contains your images: "
            f"{layout}.{'' if manual_dir else _choices(known)}"
        )
    if len({v.name for v in found}) > 1:
        raise ValueError(
            f"Several folders are prepared in {root}. Set config.data.manual_dir to one, or "
            f"config.data.name_as to its name.{_choices(found)}"
        )
    if manual_dir is not None:
        logger.warning("%s is missing: using %s.", manual_dir, versions.summary(found[-1]))
    return found[-1]


def _missing_content(
    content: str, root: Path, known: Sequence[versions.Version], manual_dir: Path | None
) -> str:
    place = f"{manual_dir} does not contain them now" if manual_dir else "no manual_dir is given"
    return (
        f"The images that this config names (config.data.content={content}) are not prepared in "
        f"{root}, and {place}. Set config.data.manual_dir to a folder with exactly these images, "
        "or config.data.data_dir to the folder where they are prepared. To use what the folder "
        f"contains now, set --config.data.content={PRESENT}: results are then of other images."
        f"{_choices(known)}"
    )


def _choices(known: Sequence[versions.Version]) -> str:
    """The last version of each name, for messages."""
    last = {v.name: v for v in known}
    lines = [f"\n  {name or '(without a name)'}: {versions.summary(v)}" for name, v in last.items()]
    return " Prepared:" + ";".join(lines) + "." if lines else ""


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
        with lock(root, name):
            catalogue.prepare(datasets, package.HOMEPAGE, root, config)
    return root / name


def _builder(package: ModuleType, name: str, root: Path, **options: Any) -> Any:
    import tensorflow_datasets as tfds

    importlib.import_module(f"{package.__name__}.{name}")  # Registers the builder with TFDS.
    return tfds.builder_cls(name)(data_dir=root, file_format="array_record", **options)


def _build(builder: Any, name: str, root: Path, config: Any) -> None:
    folder = Path(builder.data_dir)
    with lock(root, name):
        if folder.exists():  # Another process prepared it while this one waited.
            return
        _download_and_prepare(builder, f"Preparing the data set {name!r} in {folder}", config)


def _download_and_prepare(builder: Any, message: str, config: Any) -> None:
    folder = Path(builder.data_dir)
    for left in folder.parent.glob(f"incomplete.*_{folder.name}"):  # Left by a killed process.
        shutil.rmtree(left)
    print(printable(message), flush=True)
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
    if name not in dataset_names():
        return None
    package = builder_package(name)
    return package if hasattr(package, "CATALOGUE") else None


def dataset_names() -> list[str]:
    """The names of all data sets."""
    return [module.name for module in pkgutil.iter_modules(builders.__path__) if module.ispkg]


def builder_package(name: str) -> ModuleType:
    """The package of the data set `name` in `data_pipelines.builders`.

    Raises:
      ValueError: there is none; suggests the nearest name.
    """
    known = dataset_names()
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
def lock(root: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Lets one process of this machine prepare or remove a data set while the others wait.

    Args:
      root: the folder of prepared data sets.
      name: of what is locked.
      wait: whether to wait for another process that has the lock.

    Raises:
      PermissionError: `root` is not writable.
      BlockingIOError: another process has the lock, and `wait` is false.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise PermissionError(
            f"Cannot prepare data set {name!r} in {root} ({error}). Set a writable folder: "
            "--config.data.data_dir=DIR."
        ) from error
    with file:  # The system releases the lock when the process ends.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"The data set {name!r} is being prepared in {root} by another process. Retry when "
                "it has ended."
            ) from error
        yield
