"""The report in headless Chromium: it renders, sorts its tables, and loads nothing.

Skipped without Chromium. Screenshots are written to the test's temporary folder.
"""

import contextlib
import html
import json
import re
import shutil
import socket
import subprocess
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.zse_jax import tiny
from tests.zse_jax.explain import patches
from zse_jax.explain import report
from zse_jax.explain.correspondence import Explainer
from zse_jax.retrieval import protocols

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)"),
]

# Requests that Chromium itself makes despite its flags.
OWN_CALLS = re.compile(r"\w+ (?:http://)?(?!fonts|ajax)[\w.-]+\.(google|googleapis|gvt1)\.com[:/ ]")

QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-domain-reliability", "--no-pings", "--hide-scrollbars",
    "--disable-features=OptimizationHints,MediaRouter,Translate,NetworkTimeServiceQuerying",
]  # fmt: skip

INSPECT = """<script>addEventListener("load", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  const images = [...document.images];
  const sorter = document.querySelector("table.sortable th:nth-child(4) button");
  const order = () => [...document.querySelectorAll("table.sortable tbody tr")]
    .map(row => row.cells[3].dataset.value);
  const orders = [order()];
  for (const _ of [1, 2]) if (sorter) { sorter.click(); orders.push(order()); }
  document.body.dataset.found = JSON.stringify({
    images: images.length, broken: images.filter(image => !image.naturalWidth).length, orders,
    loaded: performance.getEntriesByType("resource").map(x => x.name)
      .filter(x => !x.startsWith("data:")),
    background: getComputedStyle(document.body).backgroundColor });
});</script>"""

# Draws a signal in the upper left corner: its blue value is the width of the window, and it is red
# if the page is wider. The window gets its size only after the page is loaded.
SIGNAL = """<script>
const signal = document.createElement("i");
const show = () => {
  const fits = document.documentElement.scrollWidth <= innerWidth;
  signal.style = "position:fixed;z-index:99;top:0;left:0;width:8px;height:8px;background:" +
    `rgb(${fits ? 0 : 255}, 0, ${innerWidth % 256})`;
};
addEventListener("load", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  document.body.append(signal);
  show();
});
addEventListener("resize", show);
</script>"""


@contextlib.contextmanager
def trap():
    """A proxy that never responds; yields its port and the first line of each request."""
    asked = []

    def listen():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(2)
                    with contextlib.suppress(OSError):
                        asked.append(connection.recv(4096).split(b"\r\n")[0].decode())

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], asked


def opened(page, folder, *flags, width=1280):
    """Opens a file in Chromium; returns what it prints, and its network requests."""
    with trap() as (port, asked):
        done = subprocess.run(
            [
                CHROMIUM, *QUIET, f"--proxy-server=127.0.0.1:{port}",
                "--proxy-bypass-list=<-loopback>", f"--user-data-dir={folder}/profile",
                f"--window-size={width},2400", "--virtual-time-budget=8000", *flags, page.as_uri(),
            ],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
    return done.stdout, [line for line in asked if not OWN_CALLS.match(line)]


def inspected(text, folder, *flags, width=1280):
    """The result of the script on a page with this text, and the network requests."""
    page = folder / "inspected.html"
    page.write_text(text.replace("</body>", INSPECT + "</body>"))
    dom, asked = opened(page, folder, "--dump-dom", *flags, width=width)
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1])), asked


@pytest.fixture(scope="module")
def text():
    def images(count, seed):
        size = count, tiny.SIZE, tiny.SIZE, 3
        return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)

    def batches(pictures, labels):
        label = labels.astype(np.int32)
        return [{"image": pictures, "label": label, "mask": np.ones(len(label), bool)}]

    sketches, photos = images(12, 0), images(24, 1)
    labels = np.arange(12) % 4, np.arange(24) % 4
    retriever = patches.Patches(dtype=jnp.float32, rngs=nnx.Rngs(0))
    evaluation = protocols.zero_shot(
        retriever, batches(sketches, labels[0]), batches(photos, labels[1]), rankings=["token"],
        class_names=("a_class_with_a_very_long_name", "cat", "dog", "eel"), name="Unseen classes",
    )  # fmt: skip
    vectors = np.random.default_rng(0).standard_normal((36, 8)).astype(np.float32)
    made = report.Material(
        sketches=sketches,
        photos=photos,
        explainer=Explainer(retriever),
        embedded=report.Embedded(vectors, np.concatenate(labels), np.arange(36) < 12),
        records=[{"step": i, "train/loss": 1.0} for i in range(3)],
        about={"checkpoint": "a/very/long/path/" * 8},
        config=json.dumps({"a": "long line " * 30}),
    )
    return report.report(evaluation, made)


def test_every_image_loads_and_there_are_no_requests(text, tmp_path):
    found, asked = inspected(text, tmp_path)
    assert found["images"] > 60
    assert found["broken"] == 0
    assert found["loaded"] == []
    assert asked == []


def test_clicks_sort_a_table_in_both_directions(text, tmp_path):
    found, _ = inspected(text, tmp_path)
    initial, falling, rising = (list(map(float, order)) for order in found["orders"])
    assert initial == rising == sorted(rising)
    assert falling == rising[::-1]


def test_the_proxy_catches_requests_of_a_page(text, tmp_path):
    leaky = re.sub(r"<meta http-equiv[^>]*>", "", text).replace(
        "</main>", '<img src="http://nowhere.invalid/x.png" alt=""></main>'
    )
    found, asked = inspected(leaky, tmp_path)
    assert found["broken"] == 1
    assert any("nowhere.invalid" in line for line in asked)


def test_the_page_forbids_requests(text, tmp_path):
    leaky = text.replace("</main>", '<img src="http://nowhere.invalid/x.png" alt=""></main>')
    found, asked = inspected(leaky, tmp_path)
    assert found["broken"] == 1
    assert asked == []


def test_a_dark_page_is_dark(text, tmp_path):
    light, dark = (
        inspected(text, tmp_path, *flags)[0]["background"]
        for flags in ((), ("--blink-settings=preferredColorScheme=0",))
    )
    assert sum(map(int, re.findall(r"\d+", light))) > 600
    assert sum(map(int, re.findall(r"\d+", dark))) < 120


@pytest.mark.parametrize("width", [1280, 390])
def test_a_screenshot_fits_the_window(text, tmp_path, width):
    page, picture = tmp_path / "report.html", tmp_path / f"report-{width}.png"
    page.write_text(text.replace("</body>", SIGNAL + "</body>"))
    _, asked = opened(page, tmp_path, f"--screenshot={picture}", width=width)
    assert asked == []
    with Image.open(picture) as image:
        assert image.size == (width, 2400)
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert pixels[2, 2].tolist() == [0, 0, width % 256]
