"""Each feature of the page, in one browser that stays open, with one small album.

Skipped without Chromium or Playwright.
"""

import base64
import io
import json
import time
import urllib.parse

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.distorted_sketches import chalk, photographed
from zse_jax.gallery import app, app_backend, index
from zse_jax.gallery.search import Searcher
from zse_jax.retrieval.calibration import Calibration

from .conftest import photo
from .test_sketch_cleaning import ruled
from .visitor import SNOWMAN, Visitor, check_calm

pytestmark = pytest.mark.slow

PHOTOS, SHOWN = 15, 6
TAKEN = 1, 3, 4
"""Photos that are JPEGs, and record that they were taken on this day of June 2021."""

LINE = [(0.2, 0.2), (0.5, 0.45), (0.8, 0.7)]

PAPER = """kind => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 300, height: 200});
  const brush = canvas.getContext("2d");
  brush.fillStyle = "#fff"; brush.fillRect(0, 0, 300, 200);
  brush.strokeRect(60, 40, 150, 100); brush.lineWidth = 6; brush.strokeRect(90, 60, 90, 60);
  canvas.toBlob(blob => {
    const data = new DataTransfer();
    data.items.add(new File([blob], "sketch.png", {type: "image/png"}));
    const given = {bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data};
    const event = kind === "paste" ? new ClipboardEvent(kind, given) : new DragEvent(kind, given);
    document.querySelector(".zse-paper").dispatchEvent(event);
  });
}"""


@pytest.fixture(scope="module")
def backend(zse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for number in range(PHOTOS):
        place, size = ("album/tall", (48, 64)) if number % 5 == 0 else ("album", (64, 48))
        taken = f"2021:06:0{number} 10:00:00" if number in TAKEN else ""
        name = f"a photo with a long name, {number}.{'jpg' if taken else 'png'}"
        photo(folder / place / name, number, size, taken)
    index.build([folder / "album"], folder / "index", zse)
    made = app_backend.Backend(Searcher(index.open(folder / "index")), k=SHOWN, local=True)
    made.warm_up()
    return made


@pytest.fixture(scope="module")
def opened(chromium, backend):
    page = app.create(backend)
    allowed = ["clipboard-read", "clipboard-write"]
    context = {"viewport": {"width": 1000, "height": 900}, "permissions": allowed}
    visitor = Visitor(chromium, app.serve(page), accept_downloads=True, **context)
    yield visitor
    visitor.page.context.close()
    page.close()


@pytest.fixture
def visitor(opened):
    """The page with nothing drawn; it has reported no error when the test ends."""
    opened.open()
    opened.problems.clear()
    yield opened
    check_calm(opened, opened.address)


def test_clear_is_undone_and_redone(visitor):
    visitor.draw(SNOWMAN[:2])
    drawn = visitor.ink()
    visitor.press("clear")
    visitor.page.wait_for_selector(".zse-empty")
    assert visitor.ink() == 0
    visitor.press("undo")
    visitor.settle()
    assert visitor.ink() == pytest.approx(drawn, rel=0.02)
    visitor.press("undo")
    assert 0 < visitor.ink() < drawn
    visitor.page.keyboard.press("Control+Shift+z")
    assert visitor.ink() == pytest.approx(drawn, rel=0.02)
    visitor.press("redo")
    assert visitor.ink() == 0
    assert visitor.page.locator("[data-tool=redo]").is_disabled()


def test_the_keyboard_draws(visitor):
    keyboard = visitor.page.keyboard
    visitor.page.locator("#pad canvas").focus()
    keyboard.press("Shift+ArrowLeft")
    assert visitor.ink() == 0  # the pen is up
    keyboard.press("Space")
    assert visitor.page.locator(".zse-note").inner_text() == "Pen down."
    dot = visitor.ink()
    for _ in range(8):
        keyboard.press("ArrowRight")
    across = visitor.ink()
    keyboard.down("ArrowRight")
    for _ in range(6):
        keyboard.press("Shift+ArrowDown")
    keyboard.up("ArrowRight")
    assert 0 < dot < across < visitor.ink()
    keyboard.press("Space")
    assert visitor.page.locator(".zse-note").inner_text() == "Pen up."
    drawn = visitor.ink()
    keyboard.press("ArrowLeft")
    assert visitor.ink() == drawn
    visitor.settle()
    left, top, right, bottom = visitor.bounds()
    # From (224, 256): 8 steps of 8 to the right, then one of 8, and 6 of 32 down and right.
    assert (left, top) == pytest.approx((224, 256), abs=16)
    assert (right, bottom) == pytest.approx((224 + 64 + 8 + 192, 256 + 192), abs=16)
    keyboard.press("Control+z")
    assert visitor.ink() == 0


def test_a_line_by_keyboard_ends_where_something_else_begins(visitor):
    """With the mouse, or if the line is undone while the pen is down."""
    keyboard = visitor.page.keyboard
    visitor.page.locator("#pad canvas").focus()
    keyboard.press("Space")
    keyboard.press("Shift+ArrowUp")
    keyboard.press("Control+z")
    keyboard.press("Shift+ArrowUp")
    assert visitor.ink() == 0
    keyboard.press("Space")
    keyboard.press("Shift+ArrowUp")
    visitor.stroke(LINE)
    drawn = visitor.ink()
    keyboard.press("Shift+ArrowUp")
    assert visitor.ink() == drawn
    visitor.settle()


def test_pens_have_sizes(visitor):
    inks = []
    for name in ("Thin", "Normal", "Thick"):
        visitor.page.get_by_role("button", name=f"{name} pen").click()
        visitor.stroke(SNOWMAN[0])
        inks.append(visitor.ink())
        visitor.press("undo")
    assert inks[0] * 1.5 < inks[1] < inks[2] / 1.5


def test_mirror_is_off_at_first_and_draws_both_halves(visitor):
    half = [(0.2, 0.3), (0.3, 0.5), (0.2, 0.7)]
    visitor.stroke(half)
    once = visitor.ink()
    visitor.press("undo")
    visitor.press("mirror")
    visitor.stroke(half)
    assert visitor.ink() == pytest.approx(2 * once, rel=0.02)


def test_the_eraser_end_of_a_stylus_erases(visitor):
    visitor.draw(SNOWMAN[:1])
    drawn = visitor.ink()
    x, y = visitor.at(*SNOWMAN[0][0])
    visitor.page.evaluate(
        """([x, y]) => {
          const canvas = document.querySelector("#pad canvas");
          const pen = (kind, clientY, buttons) => canvas.dispatchEvent(new PointerEvent(kind, {
            clientX: x, clientY, buttons, button: 5, pointerType: "pen", isPrimary: true}));
          pen("pointerdown", y, 32);
          pen("pointermove", y + 9, 32);
          pen("pointerup", y + 9, 0);
        }""",
        [x, y],
    )
    assert 0 < visitor.ink() < drawn
    assert visitor.page.locator("[data-tool=erase]").get_attribute("aria-pressed") == "false"


def house(factor=1.0, width=14):
    """A drawing of a house with a door, 1600 x 1200 pixels times `factor`."""
    pixels = np.full((round(1200 * factor), round(1600 * factor), 3), 255, np.uint8)
    for shape in ([(400, 900), (400, 500), (800, 250), (1200, 500), (1200, 900), (400, 900)],
                  [(700, 900), (700, 650), (880, 650), (880, 900)]):  # fmt: skip
        points = (factor * np.array(shape)).astype(int)
        cv2.polylines(pixels, [points], False, (0, 0, 0), width, cv2.LINE_AA)
    return pixels


def on_transparent(sketch, rng):
    """White lines on a transparent ground."""
    del rng
    return np.dstack([np.full_like(sketch, 255), 255 - sketch[..., 0]])


@pytest.mark.parametrize(
    ("distort", "sketch", "note"),
    [
        (photographed, house(), "the paper was made white"),
        (chalk, house(), "light lines on a dark ground were inverted"),
        (on_transparent, house(), "light lines on a dark ground were inverted"),
        (ruled, house(), "the paper was made white"),
        (None, house(2.5, 3), "thin lines were thickened"),
        (None, house(), ""),
    ],
    ids=["photographed", "chalk", "on transparent", "ruled", "large scan", "clean"],
)
def test_an_uploaded_drawing_is_cleaned(visitor, tmp_path, request, distort, sketch, note):
    pixels = distort(sketch, np.random.default_rng(0)) if distort else sketch
    Image.fromarray(pixels).save(tmp_path / "drawing.png")
    visitor.page.set_input_files("input[type=file]:not([capture])", tmp_path / "drawing.png")
    visitor.settle()
    assert note in visitor.page.locator(".zse-note").inner_text()
    assert 0.005 < visitor.ink() < 0.1, "only the lines are dark"
    wanted = np.array([128, 144, 384, 352])  # those of the house on the canvas
    assert np.abs(np.array(visitor.bounds()) - wanted).max() < 12
    visitor.shot(tmp_path, f"app-{request.node.callspec.id.replace(' ', '-')}.png")


def test_a_blank_upload_says_so(visitor, tmp_path):
    Image.new("RGB", (50, 50), "white").save(tmp_path / "blank.png")
    visitor.page.set_input_files("input[type=file]:not([capture])", tmp_path / "blank.png")
    visitor.page.locator(".zse-note", has_text="choose another picture").wait_for()


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(visitor, kind):
    visitor.page.evaluate(PAPER, kind)
    visitor.settle()
    assert 0.005 < visitor.ink() < 0.2


def test_phones_offer_the_camera_and_fold_the_options(opened, chromium):
    size = {"width": 360, "height": 740}
    phone = Visitor(chromium, opened.address, viewport=size, has_touch=True, is_mobile=True)
    camera = phone.page.locator("input[capture=environment]")
    assert camera.get_attribute("accept") == "image/*"
    assert phone.page.locator(".zse-camera").is_visible()
    switch = phone.page.locator("[data-option=expand]")
    assert not switch.is_visible(), "on a phone the options are folded"
    phone.page.locator(".zse-options > summary").tap()
    assert switch.is_visible()
    phone.page.locator(".zse-options > summary").tap()
    assert not switch.is_visible()
    phone.page.set_viewport_size({"width": 1000, "height": 740})
    switch.wait_for()
    phone.page.context.close()
    assert not opened.page.locator(".zse-camera").is_visible()
    assert opened.page.locator("[data-option=expand]").is_visible()


def test_a_reload_and_a_link_keep_drawing_thumbs_and_options(visitor, chromium, tmp_path):
    visitor.draw(SNOWMAN)
    visitor.act("more", 3)
    visitor.page.wait_for_selector(".zse-said")
    visitor.page.locator("[data-option=expand]").check()
    visitor.status("query expanded")
    drawn, photos, address = visitor.ink(), visitor.photos(), visitor.page.url
    assert len(address) < 4000
    visitor.page.reload()
    visitor.status("query expanded")
    assert visitor.ink() == pytest.approx(drawn, rel=0.02)
    assert visitor.photos() == photos
    assert visitor.page.locator(".zse-said").inner_text().startswith("Marked as right: 1.")
    other = Visitor(chromium, visitor.address)
    other.open(address)
    other.status("query expanded")
    assert other.photos() == photos
    other.page.context.close()


def test_conditions_limit_the_photos_and_survive_a_reload(visitor, backend):
    visitor.draw(SNOWMAN)
    visitor.page.locator(".zse-where summary").click()
    visitor.page.locator("[data-option=orientation]").select_option("portrait")
    visitor.status("3 nearest of 3 photos, portrait")
    tall = visitor.photos()
    visitor.page.reload()
    visitor.status("3 nearest of 3 photos, portrait")
    assert visitor.photos() == tall
    visitor.page.locator("[data-option=orientation]").select_option("")
    visitor.status(f"of {PHOTOS} photos")
    [folder] = [name for name in backend.choices["folders"] if name.endswith("tall")]
    visitor.page.locator("[data-option=folder]").select_option(folder)
    visitor.status("3 nearest of 3 photos, in ")
    assert visitor.photos() == tall
    visitor.page.locator("[data-option=orientation]").select_option("square")
    visitor.page.locator(".zse-empty", has_text="Choose fewer conditions").wait_for()


def test_days_and_file_types_limit_the_photos(visitor):
    visitor.draw(SNOWMAN)
    visitor.page.locator(".zse-where summary").click()
    visitor.page.locator("[data-option=type]").select_option("jpeg")
    visitor.status("3 nearest of 3 photos")
    three = visitor.photos()
    visitor.page.locator("[data-option=after]").fill("2021-06-02")
    visitor.status("2 nearest of 2 photos")
    visitor.page.locator("[data-option=before]").fill("2021-06-04")
    visitor.status("1 nearest of 1 photo")
    assert set(visitor.photos()) < set(three)
    visitor.page.locator("[data-option=type]").select_option("png")
    visitor.page.locator(".zse-empty", has_text="Choose fewer conditions").wait_for()


def test_an_uploaded_picture_survives_a_reload(visitor):
    visitor.page.evaluate(PAPER, "paste")
    visitor.settle()
    drawn = visitor.ink()
    visitor.page.reload()
    visitor.settle()
    assert visitor.ink() == pytest.approx(drawn, rel=0.1)


@pytest.mark.parametrize(
    "text", ["{}", "%ff", '{"parts":[[0,0,1,"x",2]]}', '{"parts":["javascript:alert(1)"]}']
)
def test_a_link_that_is_no_query_says_so(visitor, text):
    visitor.open(f"{visitor.address}#q={urllib.parse.quote(text, safe='%')}")
    visitor.page.locator(".zse-note", has_text="no query that can be read").wait_for()
    visitor.page.wait_for_selector(".zse-empty")
    visitor.draw(SNOWMAN[:2])


def test_a_link_is_copied(visitor):
    visitor.draw(SNOWMAN[:2])
    visitor.act("link")
    visitor.page.get_by_role("button", name="Copied").wait_for()
    assert visitor.page.evaluate("navigator.clipboard.readText()") == visitor.page.url


def test_a_line_says_too_little_and_the_next_stroke_helps(visitor):
    visitor.stroke(LINE)
    visitor.page.locator(".zse-empty", has_text="too little").wait_for()
    visitor.draw([SNOWMAN[0]])
    visitor.press("undo")
    visitor.page.locator(".zse-empty", has_text="too little").wait_for()


def test_a_dot_is_shown_and_says_too_little(visitor):
    visitor.stroke([(0.5, 0.5), (0.5, 0.5)])
    visitor.page.locator(".zse-empty", has_text="too little").wait_for()
    assert visitor.ink() > 0


def test_a_slow_query_is_preceded_by_a_preview(visitor, backend, monkeypatch):
    asked = []
    search = backend.search

    def slow(query):
        monkeypatch.setattr(backend, "_seconds_of_pair", 1.0)
        asked.append(search(query).unfinished)
        return search(query)

    monkeypatch.setattr(backend, "search", slow)
    visitor.draw(SNOWMAN[:2])
    visitor.status("compared pair by pair")
    assert asked[-2:] == [True, False]


def test_the_answer_to_the_last_query_stays(visitor, backend, monkeypatch):
    asked = []
    search = backend.search

    def slow_at_first(query):
        asked.append(query)
        if len(asked) == 1:
            time.sleep(2)
        return search(query)

    monkeypatch.setattr(backend, "search", slow_at_first)
    page = visitor.page
    page.locator("[data-option=rerank]").fill("0")
    for points in SNOWMAN[:4]:  # the first query has no drawing, and its answer comes last
        visitor.stroke(points)
        page.wait_for_timeout(50)
    visitor.settle()
    last = json.loads(asked[-1])
    shown = visitor.photos()
    found = backend.search(json.dumps(last)).results.hits
    assert shown == [hit.id for hit in found]
    page.wait_for_timeout(2500)
    assert visitor.photos() == shown
    assert last["drawing"] == page.evaluate("document.querySelector('#pad canvas').toDataURL()")


def test_what_the_model_sees_is_shown_and_doubt_is_said(visitor):
    visitor.draw(SNOWMAN[:3])
    visitor.page.locator(".zse-seen img").wait_for()
    assert "cut out" in visitor.page.locator(".zse-seen").inner_text()
    seen = "document.querySelector('.zse-seen').checkVisibility({opacityProperty: true})"
    assert visitor.page.evaluate(seen)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    photo_like = Image.fromarray(noise).resize((400, 400), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photo_like.save(buffer, "PNG")
    file = {"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    visitor.page.set_input_files("#pad input[type=file]:not([capture])", file)
    visitor.page.locator(".zse-seen", has_text="Unsure").wait_for()


def test_photos_have_their_full_name_and_a_bar(visitor):
    visitor.draw(SNOWMAN)
    title = visitor.page.locator("[data-act=open]").first.get_attribute("title")
    assert title.endswith(".png")
    assert "a photo with a long name" in title
    wide = visitor.page.locator(".zse-bar i").evaluate_all(
        "bars => bars.map(bar => parseInt(bar.style.width))"
    )
    assert wide == sorted(wide, reverse=True)
    assert wide[0] == 100


def test_probabilities_are_shown_and_no_good_match_is_said(visitor, backend, monkeypatch):
    monkeypatch.setattr(backend.searcher, "_calibration", Calibration(0.0, 1.0))
    visitor.draw(SNOWMAN)
    visitor.status(f"{SHOWN} likely matches among the {SHOWN} nearest of {PHOTOS} photos")
    assert visitor.page.locator(".zse-name i").first.inner_text() == "73 %"
    monkeypatch.setattr(backend.searcher, "_calibration", Calibration(0.0, -3.0))
    visitor.stroke(LINE)
    visitor.status("No good match")
    assert visitor.page.locator(".zse-unlikely").count() == SHOWN


def test_more_like_a_photo_and_back(visitor):
    visitor.draw(SNOWMAN)
    before = visitor.photos()
    visitor.act("like", 2)
    visitor.page.locator(".zse-said", has_text="not like the drawing").wait_for()
    assert visitor.photos()[0] == before[2]
    visitor.act("forget")
    visitor.page.locator(".zse-said").wait_for(state="detached")
    assert visitor.photos() == before


def test_thumbs_refine_and_are_undone(visitor):
    visitor.draw(SNOWMAN)
    before = visitor.photos()
    visitor.act("fewer", 0)
    visitor.page.locator(".zse-said", has_text="Left out as wrong: 1").wait_for()
    assert before[0] not in visitor.photos()
    visitor.settle()
    visitor.act("more", 3)
    visitor.page.locator(".zse-said", has_text="Marked as right: 1").wait_for()
    pressed = visitor.page.locator("[data-act=more][aria-pressed=true]")
    assert pressed.count() == 1
    assert visitor.page.evaluate("document.activeElement.dataset.act") == "more"
    visitor.press("undo")
    visitor.press("undo")
    visitor.page.locator(".zse-said").wait_for(state="detached")
    assert visitor.photos() == before


def test_results_have_pages(visitor):
    visitor.draw(SNOWMAN)
    seen = visitor.photos()
    following = visitor.page.get_by_role("button", name="Next")
    previous = visitor.page.get_by_role("button", name="Previous")
    assert previous.is_disabled()
    for first in (SHOWN + 1, 2 * SHOWN + 1):
        place = following.bounding_box()["x"]
        following.click()
        visitor.status(f"{first} to")
        assert following.bounding_box()["x"] == place
        assert previous.is_enabled()
        seen += visitor.photos()
        inside = "document.querySelector('.zse-status').getBoundingClientRect().top >= 0"
        assert visitor.page.evaluate(inside), "the new page is shown from its beginning"
    assert len(seen) == len(set(seen)) == PHOTOS
    assert following.is_disabled()
    visitor.page.reload()
    visitor.status(f"{2 * SHOWN + 1} to")
    previous.click()
    visitor.status(f"{SHOWN + 1} to")


def test_a_contact_sheet_is_downloaded(visitor, tmp_path):
    visitor.draw(SNOWMAN)
    with visitor.page.expect_download() as waiting:
        visitor.act("sheet")
    waiting.value.save_as(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 10 + 6 * 190
        assert len(set(np.asarray(sheet.convert("L")).ravel().tolist())) > 200


def test_a_path_is_copied_and_a_folder_opened_on_this_machine(visitor, backend, monkeypatch):
    opened = []
    monkeypatch.setattr(
        app_backend.click, "launch", lambda file, locate: opened.append((file, locate)) or 0
    )
    visitor.draw(SNOWMAN)
    visitor.act("open")
    path = visitor.page.locator(".zse-tile").first.get_attribute("data-path")
    visitor.page.locator(".zse-panel img").first.wait_for()
    visitor.act("path")
    visitor.page.get_by_role("button", name="Copied").wait_for()
    assert visitor.page.evaluate("navigator.clipboard.readText()") == path
    visitor.act("folder")
    visitor.page.locator(".zse-panel", has_text="asked to open the folder").wait_for()
    assert visitor.page.locator(".zse-panel img").count() > 3, "the explanation stays"
    assert opened == [(path, True)]


def test_the_keyboard_moves_between_photos_and_closes_a_panel(visitor):
    visitor.draw(SNOWMAN)
    first, second = (visitor.page.locator("[data-act=open]").nth(i) for i in range(2))
    first.focus()
    visitor.page.keyboard.press("ArrowRight")
    assert second.evaluate("node => node === document.activeElement")
    visitor.page.keyboard.press("Enter")
    visitor.page.locator(".zse-panel").wait_for()
    assert second.get_attribute("aria-expanded") == "true"
    visitor.page.locator(".zse-panel img").first.wait_for()
    visitor.page.locator("[data-act=close]").press("Escape")
    assert visitor.page.locator(".zse-panel").count() == 0
    assert second.evaluate("node => node === document.activeElement")


def test_the_drawing_is_black_on_white_in_the_dark(opened, chromium):
    dark = Visitor(chromium, opened.address, color_scheme="dark")
    dark.draw(SNOWMAN[:2])
    assert dark.page.evaluate("document.body.classList.contains('dark')")
    corner, ink = dark.page.evaluate(
        """() => { const brush = document.querySelector("#pad canvas").getContext("2d");
          const at = (x, y) => [...brush.getImageData(x, y, 1, 1).data];
          return [at(2, 2), at(256, 471)]; }"""
    )
    assert (corner[:3], ink[:3]) == ([255] * 3, [0] * 3)
    sent = dark.page.locator(".zse-seen img").get_attribute("src").split(",")[1]
    with Image.open(io.BytesIO(base64.b64decode(sent))) as seen:
        assert seen.convert("L").getpixel((1, 1)) > 200
    dark.page.context.close()


def test_two_pages_do_not_disturb_each_other(opened, chromium):
    pages = [Visitor(chromium, opened.address) for _ in range(2)]
    pages[0].draw(SNOWMAN)
    pages[1].draw([SNOWMAN[3] + SNOWMAN[4][::-1], SNOWMAN[1]])
    first, second = (page.photos() for page in pages)
    for page, shown in zip(pages, (first, second), strict=True):
        assert page.photos() == shown
        page.act("open")
        page.page.wait_for_selector(".zse-panel img")
        assert page.page.locator(".zse-panel").get_attribute("data-photo") == shown[0]
        check_calm(page, opened.address)
        page.page.context.close()


def test_a_server_that_has_stopped_is_reported(chromium, backend):
    page = app.create(backend)
    visitor = Visitor(chromium, app.serve(page))
    visitor.draw(SNOWMAN)
    page.close()
    visitor.act("open")
    problem = visitor.page.locator(".zse-problem", has_text="No answer")
    problem.wait_for()
    visitor.stroke(LINE)
    visitor.page.locator(".zse-note", has_text="No answer").wait_for()
    assert visitor.page.locator(".zse-tile").count() == SHOWN, "the earlier photos stay"
    visitor.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_serious_problem(opened, chromium, scheme, width, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    size = {"width": width, "height": 800}
    visitor = Visitor(chromium, opened.address, viewport=size, color_scheme=scheme)
    visitor.draw(SNOWMAN)
    visitor.act("more", 2)
    visitor.page.wait_for_selector(".zse-said")
    visitor.settle()
    visitor.act("open", 1)
    visitor.page.wait_for_selector(".zse-panel img")
    found = axe.run(visitor.page).response["violations"]
    problems = [
        f"{one['id']}: {[node['html'][:200] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not problems, "\n".join(problems)
    assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visitor.shot(tmp_path, f"app-{scheme}-{width}.png")
    visitor.page.context.close()
