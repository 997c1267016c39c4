"""From published weights to a drawing on the page, by the commands of a user, on real photos.

The published weights are those of a small network with random values under the publisher's names:
the results are meaningless, but each command reads what the previous one wrote.
"""

import json
import re
import select
import signal
import subprocess
import sys

import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.source import ROOT
from tests.zse_jax import small_systems
from tests.zse_jax.random_weights import drawn
from zse_jax.pretrained import zse_sbir
from zse_jax.retrievers import create

from .visitor import SNOWMAN, Visitor, check_calm

CLASSES = "airplane", "cup", "bell"


def run_command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_line(process, seconds=120):
    """The first line of a program's output."""
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "no output"
    return process.stdout.readline()


@pytest.mark.slow
def test_convert_index_search_and_draw(sketchy_folder, browser, tmp_path):
    images = sketchy_folder / "256x256"
    config = small_systems.config("zse").model
    settings = config.to_dict()
    made = drawn(lambda: create(settings, rngs=nnx.Rngs(params=0, dropout=1)))
    save_file(zse_sbir.export(made), tmp_path / "best.safetensors")

    heads = [f"--config.model.{name}={config[name]}" for name in ("heads", "cross_heads")]
    run, where = tmp_path / "published", tmp_path / "my-index"
    weights = tmp_path / "best.safetensors"
    run_command("zse_jax.convert", "--from=zse_sbir", weights, run, *heads)
    folders = [images / "photo/tx_000000000000_ready" / name for name in CLASSES]
    count = sum(len([*folder.iterdir()]) for folder in folders)
    photos = [f"--photos={folder}" for folder in folders]
    command = "zse_jax.gallery.index", "build", *photos, f"--index={where}", f"--checkpoint={run}"
    assert f"{count:,} photos added" in run_command(*command)
    sketch = min((images / "sketch/tx_000000000000_ready/cup").iterdir())
    output = tmp_path / "found.json"
    command = (
        "zse_jax.gallery.search",
        f"--index={where}",
        f"--sketch={sketch}",
        f"--output={output}",
    )
    assert f"nearest of {count:,} photos" in run_command(*command)
    assert len(json.loads(output.read_text())["hits"]) == 20

    command = [
        sys.executable,
        "-m",
        "zse_jax.gallery.app",
        f"--index={where}",
        "--k=10",
        "--noopen",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as page:
        try:
            line = first_line(page)
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
            visitor = Visitor(browser, address, viewport={"width": 1280, "height": 900})
            for points in SNOWMAN:
                visitor.stroke(points)
            visitor.settle()
            seconds = visitor.page.evaluate("window.answered - window.lifted") / 1000
            print(
                f"\nlast stroke to the last answer: {1000 * seconds:.0f} ms ({count:,} real photos)"
            )
            assert visitor.page.locator(".zse-tile").count() == 10
            visitor.page.locator(".zse-tile").first.click()
            visitor.page.wait_for_selector(".zse-panel img")
            visitor.shot(tmp_path, "whole-path.png")
            check_calm(visitor, address)
            page.send_signal(signal.SIGINT)
            assert page.wait(timeout=30) in (0, 130)
        finally:
            page.kill()
