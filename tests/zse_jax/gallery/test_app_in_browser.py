"""The page in headless Chromium: somebody draws, finds, asks why, on a desk and on a phone.

Skipped where there is no Chromium, or no Playwright to drive it. Screenshots lie in the test's
temporary folder, or in the folder that $ZSE_SCREENSHOTS names.
"""

import math
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from zse_jax.gallery import answers, app, index
from zse_jax.gallery.search import Searcher

from .conftest import photo

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright, which drives the browser"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)"),
]

PHOTOS = 30

# When the last stroke ended, and when the photos last changed, in the page's own milliseconds.
WATCH = """() => {
  addEventListener("pointerup", () => { window.lifted = performance.now(); }, true);
  new MutationObserver(() => { window.answered = performance.now(); }).observe(
    document.querySelector("#found"),
    {childList: true, subtree: true, characterData: true, attributes: true});
}"""


@pytest.fixture(scope="module")
def address(zse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for number in range(PHOTOS):
        photo(folder / f"album/photo {number}.png", number, (64, 48))
    index.build([folder / "album"], folder / "index", zse)
    asked = answers.Answers(Searcher(index.open(folder / "index")))
    asked.warm_up()
    page = app.create(asked)
    yield app.serve(page)
    page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visitor:
    """Somebody with the page open, and what the page did meanwhile."""

    def __init__(self, browser, address, **context):
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(20_000)
        self.asked, self.problems = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console", lambda said: said.type == "error" and self.problems.append(said.text)
        )
        self.page.goto(address)
        self.page.wait_for_selector("#pad canvas")
        self.page.wait_for_selector(".zse-empty")
        self.page.evaluate(WATCH)

    def at(self, x, y):
        """A place on the paper, 0 to 1, on the page."""
        box = self.page.locator("#pad canvas").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def stroke(self, points):
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for place in points[1:]:
            self.page.mouse.move(*self.at(*place))
        self.page.mouse.up()

    def touch(self, points):
        client = self.page.context.new_cdp_session(self.page)
        kinds = ["touchStart"] + ["touchMove"] * (len(points) - 1)
        for kind, place in zip(kinds, points, strict=True):
            x, y = self.at(*place)
            client.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]}
            )
        client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def ink(self):
        """How much of the paper is dark."""
        return self.page.evaluate(
            """() => { const c = document.querySelector("#pad canvas");
              const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
              let dark = 0;
              for (let i = 0; i < data.length; i += 4) dark += data[i] < 128;
              return dark / (c.width * c.height); }"""
        )

    def settle(self):
        """Waits for photos, and until nothing has changed for a while."""
        self.page.wait_for_selector(".zse-tile")
        self.page.wait_for_function(
            "performance.now() - Math.max(window.lifted, window.answered) > 1200"
        )

    def status(self, wanted):
        """Waits until the line above the photos says something."""
        self.page.locator(".zse-status", has_text=wanted).wait_for()

    def shot(self, folder, name):
        """A screenshot of the whole page; its pixels."""
        file = Path(os.environ.get("ZSE_SCREENSHOTS") or folder) / name
        self.page.screenshot(path=file, full_page=True)
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))


def ring(x, y, radius):
    angles = [number * math.pi / 10 for number in range(21)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


SNOWMAN = [
    ring(0.5, 0.72, 0.2), ring(0.5, 0.4, 0.13), ring(0.5, 0.19, 0.08),
    [(0.64, 0.38), (0.82, 0.27)], [(0.36, 0.38), (0.18, 0.27)],
]  # fmt: skip


def check_calm(visitor, address):
    """Nothing went out, nothing went wrong, nothing is wider than the window."""
    host = urlsplit(address).netloc
    outside = [url for url in visitor.asked if urlsplit(url).scheme not in ("data", "blob")]
    assert len(outside) > 3
    assert {urlsplit(url).netloc for url in outside} == {host}
    assert not [url for url in outside if "file=" in url]
    assert visitor.problems == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_draw_find_and_see_why(browser, address, tmp_path):
    visitor = Visitor(browser, address, viewport={"width": 1280, "height": 900})
    page = visitor.page
    place = visitor.at(0, 0)
    for points in SNOWMAN:
        visitor.stroke(points)
    visitor.settle()
    seconds = page.evaluate("window.answered - window.lifted") / 1000
    print(f"\nlast stroke to the last answer: {1000 * seconds:.0f} ms ({PHOTOS} photos)")
    assert seconds > 0
    assert visitor.at(0, 0) == place, "the paper moved under the pen"
    assert 0.01 < visitor.ink() < 0.2
    assert page.locator(".zse-tile").count() == 24
    visitor.status(f"of {PHOTOS} photos")
    page.locator(".zse-tile").nth(2).click()
    page.wait_for_selector(".zse-why")
    assert "Why photo 3" in page.locator(".zse-why h2").inner_text()
    loaded = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(loaded) > 28
    assert all(loaded)
    assert len(np.unique(visitor.shot(tmp_path, "app.png").reshape(-1, 3), axis=0)) > 1000
    visitor.stroke([(0.1, 0.1), (0.9, 0.1)])
    page.locator(".zse-why").wait_for(state="detached")
    check_calm(visitor, address)


def test_on_a_phone_with_a_finger(browser, address, tmp_path):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    visitor = Visitor(browser, address, **phone)
    for points in SNOWMAN[:3]:
        visitor.touch(points)
    visitor.settle()
    assert visitor.ink() > 0.01
    assert visitor.page.evaluate("scrollY") == 0, "the finger drew, and did not scroll"
    first = visitor.page.locator(".zse-tile").first
    assert first.bounding_box()["y"] < 700, "photos are in sight without scrolling"
    first.tap()
    visitor.page.wait_for_selector(".zse-why")
    visitor.page.wait_for_timeout(800)
    assert visitor.page.evaluate("scrollY") > 0, "the explanation came into view"
    assert visitor.shot(tmp_path, "app-phone.png").shape[1] == 390
    check_calm(visitor, address)


def test_rub_out_undo_clear_slide_and_upload(browser, address, tmp_path):
    visitor = Visitor(browser, address, viewport={"width": 1000, "height": 800})
    page = visitor.page
    visitor.stroke(SNOWMAN[0])
    visitor.status("compared pair by pair")
    once = visitor.ink()
    page.locator("[data-tool=erase]").click()
    visitor.stroke(SNOWMAN[0][:8])
    assert 0 < visitor.ink() < once
    page.keyboard.press("Control+z")
    assert visitor.ink() == pytest.approx(once, rel=0.05)
    slider = page.locator("#rerank input[type=range]")
    slider.fill("0")
    visitor.status("by embedding alone")
    page.locator("[data-tool=undo]").click()
    assert visitor.ink() == 0
    page.wait_for_selector(".zse-empty")
    drawing = np.full((300, 200, 3), 255, np.uint8)
    drawing[100:200, 95:105] = 0
    Image.fromarray(drawing).save(tmp_path / "sketch.jpg")
    page.set_input_files("#pad input[type=file]", tmp_path / "sketch.jpg")
    page.wait_for_selector(".zse-tile")
    assert visitor.ink() > 0.01
    (tmp_path / "page.png").write_text("<html>no picture</html>")
    page.set_input_files("#pad input[type=file]", tmp_path / "page.png")
    page.locator(".zse-note", has_text="no picture").wait_for()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(21 * 2**20)
    page.set_input_files("#pad input[type=file]", tmp_path / "huge.png")
    page.locator(".zse-note", has_text="larger than 20 MB").wait_for()
    page.locator("[data-tool=clear]").click()
    page.wait_for_selector(".zse-empty")
    check_calm(visitor, address)
