"""Time to prepare a data set, to load its items, and until the first batch is on the device.

    python -m tests.benchmarks.preparation [--folder ../shared/data/Sketchy]

Real images of Sketchy, resized to 256x256 files if needed (PNG for sketches, JPEG of quality 90 for
photos), are prepared as for training, on all cores; then four times as many, to show whether memory
grows. The baseline uses the TFDS writer in one process: it decodes each file as a check and passes
it to `tfds.dataset_builders.store_as_tfds_dataset`. Metadata are measured with 100,000 photos in
125 classes. Each number comes from a separate, new process; "from nothing" includes the start of
Python and all imports.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import images, splits
from tests.benchmarks import machine

SPLIT = splits.get("sketchy_split1")
PHOTOS_PER_CLASS = 800


def in_new_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of the function, and the seconds including the start of the process."""
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        result = pool.submit(function, *arguments).result()
        return result, time.perf_counter() - start


def resident() -> float:
    """Current memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak(who: int = resource.RUSAGE_SELF) -> float:
    """Peak memory of this process, or of its largest child, MB."""
    return resource.getrusage(who).ru_maxrss * (1e-6 if sys.platform == "darwin" else 1e-3)


def prepare(source: Path, data_dir: Path) -> tuple[float, float, float, float]:
    """Wall seconds, CPU seconds of all processes, and peak MB of this process and of a worker."""
    from data_pipelines import prepared

    start, cpu = time.perf_counter(), cpu_seconds()
    prepared.prepare("sketchy", data_dir=data_dir, manual_dir=source)
    seconds = time.perf_counter() - start
    return seconds, cpu_seconds() - cpu, peak(), peak(resource.RUSAGE_CHILDREN)


def cpu_seconds() -> float:
    """CPU time of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def prepare_by_tfds(source: Path, data_dir: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the TFDS writer, file by file."""
    import tensorflow_datasets as tfds

    from data_pipelines.builders import features, sketchy

    def records(files: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, file in enumerate(files):
            encoded = file.read()
            images.decode(encoded)
            texts = {"class_name": file.class_name, "instance": file.instance, "name": file.name}
            yield key, {"image": encoded, **texts}

    start, cpu = time.perf_counter(), cpu_seconds()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="baseline",
        version="1.0.0",
        features=features.record_features(),
        split_datasets={m: records(files) for m, files in sketchy.scan(source).images.items()},
        data_dir=data_dir,
        file_format="array_record",
        disable_shuffling=True,
    )
    return time.perf_counter() - start, cpu_seconds() - cpu


def load(data_dir: Path) -> tuple[float, float, int, float]:
    """Seconds and MB to load the unseen classes, their number of items, and seconds of imports."""
    start = time.perf_counter()
    import tensorflow_datasets  # noqa: F401

    from data_pipelines import loading

    imported, before = time.perf_counter(), resident()
    items = loading.load_items("sketchy", "photo", SPLIT.unseen, data_dir=data_dir)
    seconds = time.perf_counter() - imported
    return seconds, max(peak() - before, 0), len(items), imported - start


def first_batch(data_dir: Path, workers: int) -> float:
    """Seconds until a training batch of 60 images of 224x224 is on the device."""
    start = time.perf_counter()
    import jax
    from absl import flags

    from data_pipelines import loading

    flags.FLAGS.mark_as_parsed()
    sketches, photos = (
        loading.load_items("sketchy", modality, SPLIT.seen, data_dir=data_dir)
        for modality in ("sketch", "photo")
    )
    batches = loading.train_batches(
        sketches,
        photos,
        kind="quadruplet",
        image_size=224,
        batch_size=15,
        seed=0,
        workers=workers,
    )
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stream = iter(loading.to_device(batches, sharding))
    jax.block_until_ready(next(stream))
    seconds = time.perf_counter() - start
    stream.close()
    return seconds


def write_copies(source: Path, copies: int) -> None:
    """Adds hard links to every image, keeping pairs: more files, without more disk space."""
    for path in [path for path in source.rglob("*") if path.is_file()]:
        for copy in range(1, copies):
            path.with_name(f"copy{copy}_{path.name}").hardlink_to(path)


def write_many(root: Path) -> int:
    """The layout of Sketchy with 100,000 copies of a small image; returns the number of photos."""
    image = tiny_png()
    for c, class_name in enumerate(SPLIT.classes):
        for kind, count in (("sketch", 1), ("photo", PHOTOS_PER_CLASS)):
            folder = root / f"256x256/{kind}/tx_000000000000_ready" / class_name
            folder.mkdir(parents=True)
            suffix = "-1.png" if kind == "sketch" else ".jpg"
            for number in range(count):
                (folder / f"n{c:08}_{number}{suffix}").write_bytes(image)
    return PHOTOS_PER_CLASS * len(SPLIT.classes)


def tiny_png() -> bytes:
    """One white pixel."""
    import cv2

    return cv2.imencode(".png", np.full((1, 1, 3), 255, np.uint8))[1].tobytes()


def report_preparation(files: Path, scratch: Path, count: int) -> None:
    """Prepares the files, four times as many, and the same with TFDS; prints a table."""
    print("preparation        files   seconds   files/s   files/CPU s   peak MB   of a worker")
    rows = {}
    for label, copies in (("this project", 1), ("this project, 4x", 4)):
        write_copies(files, copies)
        (wall, cpu, own, worker), _ = in_new_process(prepare, files, scratch / f"prepared{copies}")
        n = rows[label] = (count * copies, wall, cpu)
        print(
            f"{label:17} {n[0]:6} {wall:9.1f} {n[0] / wall:9.0f} {n[0] / cpu:13.0f} {own:9.0f} "
            f"{worker:13.0f}"
        )
    n = count * 4
    (wall, cpu), _ = in_new_process(prepare_by_tfds, files, scratch / "tfds")
    print(f"TFDS writer       {n:6} {wall:9.1f} {n / wall:9.0f} {n / cpu:13.0f}")
    _, ours, ours_cpu = rows["this project, 4x"]
    print(f"ratio to the TFDS writer: wall time {wall / ours:.2f}, CPU time {cpu / ours_cpu:.2f}")
    print("target: 1500 files/s on 2 cores; peak memory independent of the number of files")


def main() -> None:
    """Writes the files, measures, prints."""
    from tests.benchmarks import loader  # Not at the top: measured processes import this module.

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("../shared/data/Sketchy"))
    parser.add_argument("--per_class", type=int, default=24, help="images per class and modality")
    options = parser.parse_args()

    print(machine.describe("numpy", "pillow", "array_record", "tensorflow-datasets", "jax"))
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        side, count = loader.write_files(options.folder, scratch / "files", options.per_class)
        print(f"{count} images of {side}x{side}, as {loader.SIDE}x{loader.SIDE} files")
        report_preparation(scratch / "files", scratch, count)

        for workers in (0, 2):
            seconds, total = in_new_process(first_batch, scratch / "prepared1", workers)
            print(
                f"first training batch on the device, {workers} worker processes: {seconds:.1f} s, "
                f"{total:.1f} s from nothing (target 10)"
            )

        many = write_many(scratch / "many")
        in_new_process(prepare, scratch / "many", scratch / "prepared_many")
        (seconds, memory, items, imports), _ = in_new_process(load, scratch / "prepared_many")
        print(
            f"metadata of {many} photos, filtered to {items} of {len(SPLIT.unseen)} classes: "
            f"{seconds:.2f} s, {memory:.0f} MB (targets 2 s, 200 MB); imports {imports:.1f} s"
        )


if __name__ == "__main__":
    main()
