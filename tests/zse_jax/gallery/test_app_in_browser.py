"""The page in headless Chromium: draw, search and explain, on a desktop and on a phone.

Skipped without Chromium or Playwright. Screenshots are written to the test's temporary folder, or
to the folder $ZSE_SCREENSHOTS.
"""

import numpy as np
import pytest
from PIL import Image

from zse_jax.gallery import app, app_backend, index
from zse_jax.gallery.search import Searcher

from .conftest import photo
from .visitor import SNOWMAN, Visitor, check_calm

pytestmark = pytest.mark.slow

PHOTOS = 30
UPLOAD = "#pad input[type=file]:not([capture])"


@pytest.fixture(scope="module")
def address(zse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for number in range(PHOTOS):
        photo(folder / f"album/photo {number}.png", number, (64, 48))
    index.build([folder / "album"], folder / "index", zse)
    backend = app_backend.Backend(Searcher(index.open(folder / "index")))
    backend.warm_up()
    page = app.create(backend)
    yield app.serve(page)
    page.close()


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
    visitor.act("open", 2)
    page.wait_for_selector(".zse-panel img")
    tile = page.locator(".zse-tile").nth(2)
    assert page.locator(".zse-panel h2").inner_text() == tile.get_attribute("data-name")
    panel, photo = page.locator(".zse-panel").bounding_box(), tile.bounding_box()
    assert 0 <= panel["y"] - (photo["y"] + photo["height"]) < 40, "not beside its photo"
    loaded = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(loaded) > 28
    assert all(loaded)
    assert len(np.unique(visitor.shot(tmp_path, "app.png").reshape(-1, 3), axis=0)) > 1000
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    visitor.stroke([(0.1, 0.1), (0.9, 0.1)])
    page.locator(".zse-panel").wait_for(state="detached")
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
    first.locator("[data-act=open]").tap()
    visitor.page.wait_for_selector(".zse-panel img")
    visitor.page.wait_for_timeout(800)
    assert visitor.page.evaluate("scrollY") > 0, "the explanation came into view"
    assert visitor.shot(tmp_path, "app-phone.png").shape[1] == 390
    check_calm(visitor, address)


def test_rub_out_undo_clear_slide_expand_and_upload(browser, address, tmp_path):
    visitor = Visitor(browser, address, viewport={"width": 1000, "height": 800})
    page = visitor.page
    visitor.stroke(SNOWMAN[0])
    visitor.status("compared pair by pair")
    once = visitor.ink()
    visitor.press("erase")
    visitor.stroke(SNOWMAN[0][:8])
    assert 0 < visitor.ink() < once
    page.keyboard.press("Control+z")
    assert visitor.ink() == pytest.approx(once, rel=0.05)
    slider = page.locator("[data-option=rerank]")
    slider.fill("0")
    visitor.status("by embedding alone")
    switch = page.locator("[data-option=expand]")
    switch.check()
    visitor.status("by embedding alone, query expanded by 30 photos")
    visitor.shot(tmp_path, "app-expanded.png")
    switch.uncheck()
    page.locator(".zse-status", has_text="expanded").wait_for(state="detached")
    visitor.press("undo")
    assert visitor.ink() == 0
    page.wait_for_selector(".zse-empty")
    drawing = np.full((300, 200, 3), 255, np.uint8)
    drawing[100:200, 95:105] = 0
    drawing[145:155, 50:150] = 0
    Image.fromarray(drawing).save(tmp_path / "sketch.jpg")
    page.set_input_files(UPLOAD, tmp_path / "sketch.jpg")
    page.wait_for_selector(".zse-tile")
    assert visitor.ink() > 0.01
    (tmp_path / "page.png").write_text("<html></html>")
    page.set_input_files(UPLOAD, tmp_path / "page.png")
    page.locator(".zse-note", has_text="not a picture").wait_for()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(21 * 2**20)
    page.set_input_files(UPLOAD, tmp_path / "huge.png")
    page.locator(".zse-note", has_text="larger than 20 MB").wait_for()
    visitor.press("clear")
    page.wait_for_selector(".zse-empty")
    check_calm(visitor, address)
