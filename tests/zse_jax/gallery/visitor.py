"""A visitor of the page in headless Chromium, on a desktop or on a phone."""

import math
import os
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

# When the last stroke ended and when the photos last changed, in milliseconds of the page.
WATCH = """() => {
  addEventListener("pointerup", () => { window.lifted = performance.now(); }, true);
  new MutationObserver(() => { window.answered = performance.now(); }).observe(
    document.querySelector("#found"),
    {childList: true, subtree: true, characterData: true, attributes: true});
}"""


class Visitor:
    """An open page, with a log of its requests and errors."""

    def __init__(self, browser, address, **context):
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(60_000)
        self.asked, self.problems = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console", lambda line: line.type == "error" and self.problems.append(line.text)
        )
        self.address = address
        self.open()

    def open(self, address=None):
        """Loads the page, at its own address or at that of a query."""
        self.page.goto("about:blank")
        self.page.goto(address or self.address)
        self.page.wait_for_selector("#pad canvas")
        self.page.wait_for_selector("#found p, .zse-empty")
        self.page.evaluate(WATCH)

    def draw(self, strokes):
        """Draws, and waits for the photos."""
        for points in strokes:
            self.stroke(points)
        self.settle()

    def press(self, name):
        """Presses a button of the tools."""
        self.page.locator(f"[data-tool={name}]").click()

    def act(self, name, place=0):
        """Presses a button of the results, that of one photo if there are several."""
        self.page.locator(f"[data-act={name}]").nth(place).click()

    def photos(self):
        """The ids of the photos that are shown."""
        tiles = self.page.locator(".zse-tile")
        return tiles.evaluate_all("tiles => tiles.map(tile => tile.dataset.photo)")

    def at(self, x, y):
        """The page coordinates of a point on the canvas, given from 0 to 1."""
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
        """The share of dark pixels on the canvas."""
        return self.page.evaluate(
            """() => { const c = document.querySelector("#pad canvas");
              const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
              let dark = 0;
              for (let i = 0; i < data.length; i += 4) dark += data[i] < 128;
              return dark / (c.width * c.height); }"""
        )

    def bounds(self):
        """Left, top, right and bottom of the dark pixels, in pixels of the canvas."""
        return self.page.evaluate(
            """() => { const c = document.querySelector("#pad canvas");
              const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
              let found = [c.width, c.height, 0, 0];
              for (let i = 0; i < data.length; i += 4) {
                if (data[i] > 127) continue;
                const x = i / 4 % c.width, y = Math.floor(i / 4 / c.width);
                found = [Math.min(found[0], x), Math.min(found[1], y),
                         Math.max(found[2], x), Math.max(found[3], y)];
              }
              return found; }"""
        )

    def settle(self):
        """Waits until the photos of the last query are shown."""
        self.page.wait_for_selector("#found[aria-busy=false] .zse-tile")

    def status(self, wanted):
        """Waits until the line above the photos contains `wanted`."""
        self.page.locator(".zse-status", has_text=wanted).wait_for()

    def shot(self, folder, name):
        """Takes a screenshot of the whole page; returns its pixels."""
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
    """No request to another host, no error, nothing wider than the window."""
    host = urlsplit(address).netloc
    outside = [url for url in visitor.asked if urlsplit(url).scheme not in ("data", "blob")]
    assert len(outside) > 3
    assert {urlsplit(url).netloc for url in outside} == {host}
    assert not [url for url in outside if "file=" in url]
    assert visitor.problems == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
