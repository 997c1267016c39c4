"""Measures the drawing page with many photos, in Chromium: answers, memory, and first paint.

    python -m tests.benchmarks.page [--photos=100000] [--checkpoint=default] [--drawings=20]

Builds an index of a few pictures of noise with the checkpoint, and adds synthetic rows (embeddings
as in `gallery.py`, with the thumbnails of the pictures). Then it serves the page in a process of
its own. A drawing has five strokes; its time is from the moment at which the pen is lifted to the
one at which the photos are shown. First paint is that of a page that is loaded again.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.gallery import clusters, drawn
from tests.benchmarks.machine import describe

PICTURES, CHUNK = 20, 20_000


def add_synthetic(index: Path, photos: int) -> None:
    """Adds rows until the index has `photos` photos, and prepares it for search."""
    import pyarrow as pa

    from zse_jax.gallery.index import prepare
    from zse_jax.gallery.tables import Tables

    tables = Tables(index)
    known = tables.columns("thumbnail", "size", "modified", "width", "height", "format", "file")
    known = known.to_pylist()
    centres = clusters(photos, tables.width)
    for start in range(len(known), photos, CHUNK):
        numbers = range(start, min(start + CHUNK, photos))
        some = drawn(centres, len(numbers), start)
        rows = [known[number % len(known)] for number in numbers]
        names = [f"/album/{number // 1000}/{number}.png" for number in numbers]
        columns: dict[str, Any] = {
            "id": pa.array([f"{number:024}" for number in numbers]),
            "path": pa.array(names),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(some.ravel()), tables.width),
        }
        for name, kind in (("size", pa.int64()), ("modified", pa.int64()), ("width", pa.int32()),
                           ("height", pa.int32()), ("thumbnail", pa.binary()),
                           ("format", pa.string()), ("file", pa.binary())):  # fmt: skip
            columns[name] = pa.array([row[name] for row in rows], kind)
        tables.append(columns)
    prepare(tables)


def pictures(folder: Path) -> None:
    """Writes a few pictures of coarse noise."""
    from PIL import Image

    folder.mkdir()
    for number in range(PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        picture = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg")


def served(index: Path, port: int) -> tuple[subprocess.Popen, str]:
    """A process that serves the page, and its address."""
    command = [
        sys.executable,
        "-m",
        "zse_jax.gallery.app",
        f"--index={index}",
        f"--port={port}",
        "--noopen",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return process, line[line.index("http://") :].split()[0]
    raise RuntimeError("The page was not served.")


def answers(visitor: Any, drawings: int) -> Iterator[float]:
    """Milliseconds from the end of each drawing to its photos, after two warm-ups."""
    from tests.zse_jax.gallery.visitor import ring

    for number in range(drawings + 2):
        size = 0.12 + 0.01 * (number % 5)
        strokes = [ring(0.3 + 0.1 * i, 0.5, size) for i in range(5)]
        for points in strokes:
            visitor.stroke(points)
            visitor.page.wait_for_timeout(300)
        visitor.settle()
        if number > 1:
            yield visitor.page.evaluate("answered - lifted")
        visitor.press("clear")
        visitor.page.wait_for_selector(".zse-empty")


def first_paint(visitor: Any) -> float:
    """Milliseconds from the request of the page to its first contentful paint."""
    visitor.page.reload()
    visitor.page.wait_for_selector("#pad canvas")
    return visitor.page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )


def measure(address: str, process: psutil.Process, drawings: int) -> str:
    """The measurements, as lines of text."""
    from playwright.sync_api import sync_playwright

    from tests.zse_jax.gallery.visitor import Visitor

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        visitor = Visitor(browser, address)
        times = sorted(answers(visitor, drawings))
        paints = [first_paint(visitor) for _ in range(7)]
        browser.close()
    memory = process.memory_info().rss / 2**20
    return (
        f"from the last stroke to the photos: median {statistics.median(times):.0f} ms, "
        f"slowest of {len(times)} {times[-1]:.0f} ms\n"
        f"first paint: median {statistics.median(paints):.0f} ms\n"
        f"memory of the server: {memory:,.0f} MB"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--drawings", type=int, default=20)
    parser.add_argument("--port", type=int, default=7950)
    parser.add_argument("--scratch", help="folder for the index, which is deleted at the end")
    options = parser.parse_args()
    print(describe("gradio", "pylance", "jax", "numpy"))

    from zse_jax.gallery import index

    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        pictures(folder / "album")
        index.build([folder / "album"], folder / "index", options.checkpoint)
        add_synthetic(folder / "index", options.photos)
        process, address = served(folder / "index", options.port)
        try:
            print(f"{options.photos:,} photos, {options.checkpoint}", flush=True)
            print(measure(address, psutil.Process(process.pid), options.drawings))
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
