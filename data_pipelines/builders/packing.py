"""Packs the files of an unpacked data set into ArrayRecord files: in parallel, and resumable.

Every file is read once: its bytes are decoded, to know that they can be, and written as they are.
The work is cut into parts of about a thousand images, each one ArrayRecord file with a receipt of
what it was made of. Whoever does a part (this process, a pool of them, the workers of Apache Beam)
leaves it in the same folder, so that a run that was killed goes on from the finished parts, and a
part whose files changed since then is done again.

Workers import this module: it must not import TensorFlow.
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
from typing import Any

import tqdm

from data_pipelines import images
from data_pipelines.builders import folders
from data_pipelines.images import Modality

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised when the content of parts changes, so that older ones are packed anew."""

_IMAGES_PER_PART, _MOST_PARTS = 1000, 128
"""A part is what a killed run may lose of each worker; parts stay open while they are read."""

_PARALLEL_FROM = 2000
"""Below this many images, starting processes takes longer than packing."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive images of one modality, and the ArrayRecord file that they become."""

    modality: Modality
    files: Sequence[folders.ImageFile]
    path: Path


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What a finished part holds.

    Attributes:
      source: digest of the part's files, as they were before they were read.
      images: records written.
      size: bytes of all records.
      unreadable: name -> reason of each image that does not decode and was left out.
    """

    source: str
    images: int
    size: int
    unreadable: Mapping[str, str]


Runner = Callable[[Sequence[Part]], Iterable[int]]
"""Packs parts with `pack_part`, in any order; gives the number of images of each one done."""


def pack(
    source: folders.Source, folder: Path, run: Runner | None = None
) -> list[tuple[Part, Receipt]]:
    """Packs all images, behind a progress bar with the time left; goes on where `folder` ends.

    Args:
      source: what to pack.
      folder: of the finished parts; kept when this fails or is killed, for the next try.
      run: who does the work; all cores of this machine if None.

    Returns:
      All parts, in the order of `source`, with their receipts.

    Raises:
      OSError: when a part cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(_cut(source, folder))
    todo = [part for part in parts if not _receipt(part)]
    finished = source.file_count - sum(len(part.files) for part in todo)
    if finished:
        print(
            f"Going on with the preparation that was begun in {folder}: {finished} of "
            f"{source.file_count} images are packed.",
            file=sys.stderr,
            flush=True,
        )
    with tqdm.tqdm(
        desc="Packing", total=source.file_count, initial=finished, unit=" images"
    ) as progress:
        for count in (run or _run_here)(todo):
            progress.update(count)
    receipts = [_receipt(part) for part in parts]
    changed = [
        part.files[0].name for part, receipt in zip(parts, receipts, strict=True) if not receipt
    ]
    if changed:
        raise OSError(
            f"Images below {source.root} changed while they were packed, among them some from "
            f"{changed[0]} on. Start again when nothing writes there; what is done is kept."
        )
    return [(part, receipt) for part, receipt in zip(parts, receipts, strict=True) if receipt]


def _cut(source: folders.Source, folder: Path) -> Iterator[Part]:
    for modality, files in source.images.items():
        count = min(_MOST_PARTS, -(-len(files) // _IMAGES_PER_PART))
        bounds = [len(files) * i // count for i in range(count + 1)] if count else []
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            path = folder / f"{modality}-{number:03}-of-{count:03}.array_record"
            yield Part(modality, files[start:end], path)


def pack_part(part: Part) -> int:
    """Reads, decodes and writes the images of one part; returns how many there were.

    Images that do not decode are left out and named in the receipt. The receipt comes last, so
    that a part without one is not finished.

    Raises:
      OSError: when the part cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    source, unreadable, count, size = _digest(part.files), {}, 0, 0
    _receipt_path(part).unlink(missing_ok=True)
    unfinished = part.path.with_name(f"{part.path.name}.{os.getpid()}.part")
    try:
        # One record a group is what random access needs; images are compressed already.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
        for file in part.files:
            try:
                encoded = file.read()
                images.decode(encoded)
            except (ValueError, OSError) as error:
                unreadable[file.name] = str(error)
                continue
            record = _record(file, encoded)
            writer.write(record)
            count, size = count + 1, size + len(record)
        writer.close()
        unfinished.replace(part.path)
        _write_receipt(part, Receipt(source, count, size, unreadable))
    except (OSError, RuntimeError) as error:  # The writer's own errors are RuntimeErrors.
        raise OSError(
            f"Cannot write the packed images {part.path}: {error}. Is the disk full? What is done "
            "is kept for the next start."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return len(part.files)


def _record(file: folders.ImageFile, encoded: bytes) -> bytes:
    """The record of `features.record_features`, as TFDS would serialize it."""
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
    """Changes with anything about the files that a look into the folder shows."""
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


def _receipt_path(part: Part) -> Path:
    return part.path.with_suffix(".json")


def _receipt(part: Part) -> Receipt | None:
    """The receipt of a part that is finished and whose files have not changed since."""
    try:
        receipt = Receipt(**json.loads(_receipt_path(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    whole = part.path.exists() and receipt.source == _digest(part.files)
    return receipt if whole else None


def _write_receipt(part: Part, receipt: Receipt) -> None:
    path = _receipt_path(part)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps(dataclasses.asdict(receipt)))
    unfinished.replace(path)


def _run_here(parts: Sequence[Part]) -> Iterator[int]:
    """One process a core; few images are packed by this process."""
    workers = min(_cores(), len(parts))
    if workers < 2 or sum(len(part.files) for part in parts) < _PARALLEL_FROM:
        yield from map(pack_part, parts)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        # Not forked: TensorFlow, which TFDS may have loaded by now, does not survive that.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
    )
    try:
        started = [pool.submit(pack_part, part) for part in parts]
        for future in concurrent.futures.as_completed(started):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed, which would leave it waiting for work forever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def beam_runner(runner: Any, options: Any = None) -> Runner:
    """Packs parts by Apache Beam, on workers that see the same folders as this process.

    Args:
      runner: a Beam runner or its name; None for the one that `options` name.
      options: a Beam `PipelineOptions`.
    """

    def run(parts: Sequence[Part]) -> list[int]:
        import apache_beam  # type: ignore[import-not-found,unused-ignore]

        if parts:
            with apache_beam.Pipeline(runner=runner, options=options) as pipeline:
                spread = pipeline | apache_beam.Create(parts) | apache_beam.Reshuffle()
                _ = spread | apache_beam.Map(pack_part)
        return [len(part.files) for part in parts]

    return run


def report_unreadable(
    source: folders.Source, unreadable: Mapping[str, str], *, skip_unreadable: bool = False
) -> None:
    """Names what is left out of a data set.

    Raises:
      ValueError: listing all images that do not decode, unless `skip_unreadable`.
    """
    if source.ignored:
        logger.warning(
            "%d files below %s are no images (%s) and are left out: %s",
            len(source.ignored),
            source.root,
            ", ".join(folders.IMAGE_SUFFIXES),
            ", ".join(source.ignored),
        )
    if not unreadable:
        return
    listing = "".join(f"\n  {name}: {reason}" for name, reason in unreadable.items())
    count = f"{len(unreadable)} of {source.file_count} images below {source.root}"
    if not skip_unreadable:
        raise ValueError(
            f"{count} cannot be read. Unpack them again, or leave them out with "
            f"skip_unreadable=True (--config.data.skip_unreadable=True):{listing}"
        )
    logger.warning("%s cannot be read and are left out:%s", count, listing)
    for modality, files in source.images.items():
        if all(file.name in unreadable for file in files):
            raise ValueError(f"Not one {modality} below {source.root} can be read.")


def describe(source: folders.Source, unreadable: Mapping[str, str]) -> dict[str, Any]:
    """What the prepared data set remembers of its source, as plain values."""
    return {
        "source": str(source.root.resolve()),
        "file_count": source.file_count,
        "fingerprint": source.fingerprint,
        "unreadable": dict(unreadable),
        "ignored": list(source.ignored),
    }
