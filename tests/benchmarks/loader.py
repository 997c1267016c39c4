"""Images per second that one worker process decodes and prepares, compared with a plain loop.

    python -m tests.benchmarks.loader [--folder ../shared/data/Sketchy]

Real images of Sketchy, resized to 256x256 files if needed (PNG for sketches, JPEG of quality 90 for
photos), are packed as for training and read through the loader with one worker process, in batches
of 224x224 images. The plain loop reads the same files one by one in this process, like the
published code. Prints rates per second of wall time and, for shared machines, of CPU time; the
ratio is that of CPU time.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from absl import flags
from PIL import Image

from data_pipelines import loading
from data_pipelines.builders import sketchy
from tests.benchmarks import machine

TARGETS = {"sketch": 350, "photo": 390}
"""Images per second of the published loader in one process."""

SIDE, SIZE, BATCH = 256, 224, 50


class Seconds(NamedTuple):
    """Wall time and CPU time of a run."""

    wall: float
    cpu: float


def write_files(source: Path, target: Path, per_class: int) -> tuple[int, int]:
    """Copies some images of each class as 256x256 files; returns their old side and number."""
    sides, count = set(), 0
    for files in sketchy.scan(source).images.values():
        taken: dict[str, int] = {}
        for file in files:
            taken[file.class_name] = taken.get(file.class_name, 0) + 1
            if taken[file.class_name] > per_class or file.name.startswith("EXTEND"):
                continue
            image = Image.open(file.path).convert("RGB")
            sides.add(max(image.size))
            path = target / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
            count += 1
    return max(sides), count


def plain_sketch(path: Path) -> np.ndarray:
    """The published preprocessing with OpenCV and numpy."""
    rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    y, x = np.nonzero(np.sum(rgb, axis=2) <= 300)
    rgb = rgb[max(0, y.min() - 10) : y.max() + 10, max(0, x.min() - 10) : x.max() + 10]
    height, width = rgb.shape[:2]
    scale = SIZE / max(height, width)
    rgb = cv2.resize(rgb, (max(1, int(width * scale)), max(1, int(height * scale))))
    below, right = SIZE - rgb.shape[0], SIZE - rgb.shape[1]
    pads = ((below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0))
    return np.pad(rgb, pads, constant_values=rgb.max())


def plain_photo(path: Path) -> np.ndarray:
    """The published preprocessing with Pillow."""
    return np.asarray(Image.open(path).resize((SIZE, SIZE)).convert("RGB"))


def plain_seconds(paths: list[Path], read: Callable[[Path], np.ndarray]) -> Seconds:
    """Reads all files in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    for path in paths:
        read(path)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def loader_seconds(items: loading.Items) -> Seconds:
    """Reads all items but the first batch with one worker process; excludes its start-up time."""
    _, start = run_worker(items.select(range(BATCH)))
    wall, cpu = run_worker(items)
    return Seconds(wall, cpu - start)


def run_worker(items: loading.Items) -> tuple[float, float]:
    """Wall seconds from the first batch to the last, and all CPU seconds of the worker process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    batches = loading.evaluation_batches(items, image_size=SIZE, batch_size=BATCH, workers=1)
    stream = iter(batches)
    next(stream)
    start = time.perf_counter()
    for _ in stream:
        pass
    wall = time.perf_counter() - start
    stream.close()  # Waits for the process; its CPU time is only counted then.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Writes the files, measures both loaders, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("../shared/data/Sketchy"))
    parser.add_argument("--per_class", type=int, default=8, help="images per class and modality")
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of rounds; the best one counts"
    )
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()

    print(machine.describe("numpy", "opencv-python-headless", "pillow", "grain", "array_record"))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        side, count = write_files(options.folder, root / "files", options.per_class)
        print(f"{count} images of {side}x{side}, as {SIDE}x{SIDE} files, to {SIZE}x{SIZE}")
        print(f"load average before: {os.getloadavg()[0]:.1f}")
        print("images per second  loader, 1 worker (CPU s)  plain loop (CPU s)   ratio  target")
        for modality, plain in (("sketch", plain_sketch), ("photo", plain_photo)):
            items = loading.load_items(
                "sketchy",
                modality,
                sketchy.CLASSES,
                data_dir=root / "prepared",
                manual_dir=root / "files",
            )
            paths = [root / "files" / name for name in items.names]
            rounds = [
                (loader_seconds(items), plain_seconds(paths, plain)) for _ in range(options.rounds)
            ]
            # The best round of each: other load on the machine only adds time.
            ours, theirs = (
                Seconds(*map(min, zip(*sides, strict=True))) for sides in zip(*rounds, strict=True)
            )
            n, all_n = len(items) - BATCH, len(items)
            print(
                f"{modality:17}  {n / ours.wall:16.0f} {n / ours.cpu:7.0f}  "
                f"{all_n / theirs.wall:10.0f} {all_n / theirs.cpu:7.0f}  "
                f"{n / ours.cpu / (all_n / theirs.cpu):5.2f}  {TARGETS[modality]:6}"
            )


if __name__ == "__main__":
    main()
