"""Packs the files of an unpacked data set into ArrayRecord files, in parallel and resumable.

Every file is read once: its bytes are decoded as a check and stored unchanged. The images are split
into shards of about a thousand. Each shard is an ArrayRecord file with a manifest that records its
source files. This process, a process pool or Apache Beam workers write the shards into one folder.
An interrupted run resumes from the finished shards, and packs a shard again if its files changed.
Images that an earlier version of the data set contains are copied from it, without reading their
files.

Workers import this module, so it must not import TensorFlow.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tqdm

from data_pipelines import images, paths, prepared
from data_pipelines.builders import folders
from data_pipelines.images import Modality

logger = logging.getLogger(__name__)

_FORMAT = 2
"""Increase it when the content of shards changes, so that old ones are packed again."""

IMAGES_PER_SHARD, MAX_SHARDS = 1000, 128
"""A killed run loses up to one shard per worker; readers keep all shards open."""

PARALLEL_FROM = 2000
"""With fewer images, starting processes takes longer than packing."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Images of one modality in the ArrayRecord files of an earlier version.

    Attributes:
      records: paths of the ArrayRecord files, in their order.
      images: name -> row in these files, and digest of the image.
    """

    records: Sequence[str] = ()
    images: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive images of one modality, and the path of their ArrayRecord file.

    Those that are `stored` are copied instead of read.
    """

    modality: Modality
    files: Sequence[folders.ImageFile]
    path: Path
    stored: Stored = Stored()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a finished shard.

    Attributes:
      source: digest of the state of the source files before they were read.
      images: number of records.
      size: bytes of all records.
      unreadable: name -> reason of each skipped image that does not decode.
      digests: name -> digest of the bytes of each file; "" if they could not be read.
    """

    source: str
    images: int
    size: int
    unreadable: Mapping[str, str]
    digests: Mapping[str, str]


Runner = Callable[[Sequence[Shard]], Iterable[int]]
"""Packs shards with `pack_shard`, in any order; yields the number of images of each one."""


def pack(
    source: folders.Source,
    folder: Path,
    run: Runner | None = None,
    stored: Mapping[Modality, Stored] = MappingProxyType({}),
) -> list[tuple[Shard, Manifest]]:
    """Packs all images with a progress bar; resumes from the finished shards in `folder`.

    Args:
      source: the images.
      folder: folder of the finished shards; kept if packing fails, to resume later.
      run: packs the shards; all cores of this machine if None.
      stored: images that an earlier version contains.

    Returns:
      All shards with their manifests, in the order of `source`.

    Raises:
      OSError: if a shard cannot be written, or source files changed during packing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(source, folder, stored))
    if not shards:
        return []
    todo = [shard for shard in shards if not _manifest(shard)]
    finished = source.file_count - sum(len(shard.files) for shard in todo)
    if finished:
        print(
            f"Resuming the preparation in {folder}: {finished} of {source.file_count} images are "
            "packed.",
            file=sys.stderr,
            flush=True,
        )
    with tqdm.tqdm(
        desc="Packing", total=source.file_count, initial=finished, unit=" images"
    ) as progress:
        for count in (run or _run_here)(todo):
            progress.update(count)
    packed = []
    for shard in shards:
        if not (manifest := _manifest(shard)):
            raise OSError(
                f"Images below {source.root} changed while they were packed, at or after "
                f"{shard.files[0].name}. Retry when no program writes there; finished shards are "
                "kept."
            )
        packed.append((shard, manifest))
    return packed


def shard_count(images: int) -> int:
    """The number of shards of so many images."""
    return min(MAX_SHARDS, -(-images // IMAGES_PER_SHARD))


def _shards(
    source: folders.Source, folder: Path, stored: Mapping[Modality, Stored]
) -> Iterator[Shard]:
    for modality, files in source.images.items():
        count = shard_count(len(files))
        known = stored.get(modality, Stored())
        bounds = [len(files) * i // count for i in range(count + 1)] if count else []
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            path = folder / f"{modality}-{number:03}-of-{count:03}.array_record"
            names = [file.name for file in files[start:end] if file.name in known.images]
            images = {name: known.images[name] for name in names}
            yield Shard(modality, files[start:end], path, Stored(known.records, images))


def pack_shard(shard: Shard) -> int:
    """Reads, decodes and writes the images of one shard; returns the number of images.

    Images that do not decode are skipped and listed in the manifest. The manifest is written last:
    a shard without one is not finished.

    Raises:
      OSError: if the shard cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    source, unreadable, count, size = _digest(shard.files), dict[str, str](), 0, 0
    digests: dict[str, str] = {}
    earlier = _records(shard.stored)
    _manifest_path(shard).unlink(missing_ok=True)
    unfinished = shard.path.with_name(f"{shard.path.name}.{os.getpid()}.part")
    try:
        # One record per group for random access; images are already compressed.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
        for file in shard.files:
            if file.name in shard.stored.images:
                row, digests[file.name] = shard.stored.images[file.name]
                encoded = earlier[row]
            else:
                digests[file.name] = ""
                try:
                    encoded = file.read()
                    digests[file.name] = folders.content_digest(encoded)
                    images.decode(encoded)
                except (ValueError, OSError) as error:
                    unreadable[file.name] = str(error)
                    continue
            record = serialize(file, encoded)
            writer.write(record)
            count, size = count + 1, size + len(record)
        writer.close()
        unfinished.replace(shard.path)
        manifest = Manifest(source, count, size, unreadable, digests)
        paths.replace(_manifest_path(shard), json.dumps(dataclasses.asdict(manifest)))
    except (OSError, RuntimeError) as error:  # ArrayRecordWriter raises RuntimeError.
        raise OSError(
            f"Cannot write the packed images {shard.path}: {error}. Is the disk full? The next "
            "start resumes from the finished shards."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return len(shard.files)


def _records(stored: Stored) -> prepared.Records:
    from array_record.python import array_record_data_source

    if not stored.images:
        return prepared.Records(())
    return prepared.Records(array_record_data_source.ArrayRecordDataSource([*stored.records]))


def serialize(file: folders.ImageFile, encoded: bytes) -> bytes:
    """A record with the schema `features.record_features`, serialized like TFDS."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for key, value in (
        ("image", encoded),
        ("class_name", file.class_name.encode()),
        ("instance", file.instance.encode()),
        ("name", file.name.encode()),
    ):
        example.features.feature[key].bytes_list.value.append(value)
    return example.SerializeToString()


def _digest(files: Sequence[folders.ImageFile]) -> str:
    """Digest of the names, classes, instances, sizes and modification times of the files."""
    digest = hashlib.sha256(f"{_FORMAT}\n".encode())
    for file in files:
        try:
            state = file.path.stat()
            seen = (state.st_size, state.st_mtime_ns)
        except OSError:
            seen = (-1, -1)
        line = "\t".join(map(str, (file.name, file.class_name, file.instance, file.size, *seen)))
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _manifest_path(shard: Shard) -> Path:
    return shard.path.with_suffix(".json")


def _manifest(shard: Shard) -> Manifest | None:
    """The manifest, if the shard is finished and its source files have not changed."""
    try:
        manifest = Manifest(**json.loads(_manifest_path(shard).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    valid = shard.path.exists() and manifest.source == _digest(shard.files)
    return manifest if valid else None


def _run_here(shards: Sequence[Shard]) -> Iterator[int]:
    """Packs in one process per core, or in this process if there are few images."""
    workers = min(available_cores(), len(shards))
    if workers < 2 or sum(len(shard.files) for shard in shards) < PARALLEL_FROM:
        yield from map(pack_shard, shards)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        # Not fork: TFDS may have loaded TensorFlow, which does not support forking.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
    )
    try:
        started = [pool.submit(pack_shard, shard) for shard in shards]
        for future in concurrent.futures.as_completed(started):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_parent() -> None:
    """Ends this worker if its parent is killed; otherwise it would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def beam_runner(runner: Any, options: Any = None) -> Runner:
    """Packs shards with Apache Beam, on workers that see the same folders as this process.

    Args:
      runner: a Beam runner or its name; None for the runner in `options`.
      options: a Beam `PipelineOptions`.
    """

    def run(shards: Sequence[Shard]) -> list[int]:
        import apache_beam  # type: ignore[import-not-found,unused-ignore]

        if shards:
            with apache_beam.Pipeline(runner=runner, options=options) as pipeline:
                shuffled = pipeline | apache_beam.Create(shards) | apache_beam.Reshuffle()
                _ = shuffled | apache_beam.Map(pack_shard)
        return [len(shard.files) for shard in shards]

    return run


@dataclasses.dataclass(frozen=True)
class WholeShard:
    """An ArrayRecord file of an earlier version that is used as it is: path, and names in order."""

    path: Path
    names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Reused:
    """What of an earlier version a source contains.

    Attributes:
      rest: the images that are not in `shards`.
      shards: the whole shards of each modality.
      stored: images of `rest` that are in other shards, to copy.
      states: name -> state of every image in `shards` and `stored`.
    """

    rest: folders.Source
    shards: Mapping[Modality, Sequence[WholeShard]] = dataclasses.field(default_factory=dict)
    stored: Mapping[Modality, Stored] = dataclasses.field(default_factory=dict)
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def report_unreadable(
    source: folders.Source, unreadable: Mapping[str, str], *, skip_unreadable: bool = False
) -> None:
    """Reports the files that are skipped.

    Raises:
      ValueError: lists all images that do not decode, unless `skip_unreadable`.
    """
    if source.ignored:
        logger.warning(
            "%d files below %s are not images (%s) and are skipped: %s",
            len(source.ignored),
            source.root,
            ", ".join(images.SUFFIXES),
            ", ".join(source.ignored),
        )
    if not unreadable:
        return
    lines = [f"{name}: {reason}" for name, reason in unreadable.items()]
    listing = "".join(f"\n  {line}" for line in lines)
    count = f"{len(unreadable)} of {source.file_count} images below {source.root}"
    if not skip_unreadable:
        raise ValueError(
            f"{count} cannot be read. Unpack them again, or skip them with skip_unreadable=True "
            f"(--config.data.skip_unreadable=True):{listing}"
        )
    logger.warning("%s cannot be read and are skipped:" + "\n  %s" * len(lines), count, *lines)
    for modality, files in source.images.items():
        if all(file.name in unreadable for file in files):
            raise ValueError(f"No {modality} below {source.root} can be read.")


def describe(source: folders.Source, unreadable: Mapping[str, str]) -> dict[str, Any]:
    """The metadata that the prepared data set stores about its source."""
    return {
        "source": str(source.root.resolve()),
        "file_count": source.file_count,
        "fingerprint": source.fingerprint,
        "unreadable": dict(unreadable),
        "ignored": list(source.ignored),
    }
