"""The page's backend, and requests that its server rejects."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from absl import flags
from PIL import Image, ImageDraw

from tests.source import ROOT
from zse_jax.gallery import app, app_backend, index, middleware, photos
from zse_jax.gallery.app_backend import Backend
from zse_jax.gallery.photos import identity
from zse_jax.gallery.search import Searcher
from zse_jax.runtime import cli

from .conftest import photo


def data_url(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def paper(size=(512, 512)):
    return Image.new("RGBA", size, "white")


def circle():
    image = paper()
    ImageDraw.Draw(image).ellipse((100, 100, 400, 400), outline="black", width=7)
    return data_url(image)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    for number in range(6):
        photo(folder / f"p{number}.png", number)
    photo(folder / "<b onclick=x>.png", 6)
    return folder


@pytest.fixture(scope="module")
def backend(zse, album, tmp_path_factory):
    """A backend with an index of seven photos."""
    where = tmp_path_factory.mktemp("app") / "index"
    index.build([album], where, zse)
    return Backend(Searcher(index.open(where)), k=5)


def query(drawing, rerank=3, **other):
    return json.dumps({"drawing": drawing, "rerank": rerank, **other})


def final(backend, drawing, rerank=3, **other):
    return backend.search(query(drawing, rerank, patient=True, **other))


def about(drawing, photo_id):
    return json.dumps({"query": {"drawing": drawing}, "photo": photo_id})


@pytest.mark.slow
def test_photos_appear_as_thumbnails_and_nothing_else(backend, album):
    answer = final(backend, circle())
    assert len(answer.results.hits) == 5
    assert answer.html.count("data:image/jpeg;base64,") == 5
    assert len(re.findall('data-photo="[0-9a-f]{24}"', answer.html)) == 5
    assert str(album) not in answer.html
    assert "of 7 photos, 3 of them compared pair by pair" in answer.html
    assert "src=" not in re.sub(r'src="data:image/jpeg;base64,[\w+/=]+"', "", answer.html)
    assert answer.seen.count("data:image/webp;base64,") == 1


@pytest.mark.slow
def test_only_a_page_of_this_machine_has_paths(backend, album, monkeypatch):
    opened = []
    monkeypatch.setattr(app_backend.click, "launch", lambda *given, **_: opened.append(given))
    results = final(backend, circle()).results
    assert "Only a page of this machine" in backend.open_folder(results.hits[0].id)
    assert not opened
    local = Backend(backend.searcher, k=5, local=True)
    assert final(local, circle()).html.count(f'data-path="{album}') == 5
    assert "asked to open the folder" in local.open_folder(results.hits[0].id)
    assert opened == [(str(results.hits[0].file),)]
    for other in ("other", "x' OR 1", "", None, 1, {"a": []}):
        assert "not in the index" in local.open_folder(other)
    assert len(opened) == 1


@pytest.mark.slow
def test_file_names_are_escaped(backend):
    backend = Backend(backend.searcher, k=7)
    html = final(backend, circle()).html
    assert "<b onclick" not in html
    assert "&lt;b onclick=x&gt;" in html


@pytest.mark.slow
def test_the_slider_decides_how_many_are_compared(backend):
    assert backend.most_pairs == backend.default_pairs == 7
    fast = final(backend, circle(), 0)
    assert {hit.stage for hit in fast.results.hits} == {"shortlist"}
    assert "by embedding alone" in fast.html
    exact = final(backend, circle(), 10**9)
    assert {hit.stage for hit in exact.results.hits} == {"rerank"}


def test_the_switch_expands_the_query(backend):
    plain, expanded = final(backend, circle(), 0), final(backend, circle(), 0, expand=True)
    assert "query expanded by 30 photos" in expanded.html
    assert "query expanded" not in plain.html
    asked = [
        hit.similarity for hit in backend.searcher(expanded.results.sketch, 5, 0, expand=30).hits
    ]
    assert [hit.similarity for hit in expanded.results.hits] == pytest.approx(asked)
    assert asked != [hit.similarity for hit in plain.results.hits]


@pytest.mark.slow
def test_slow_scoring_is_preceded_by_a_preview(backend, monkeypatch):
    monkeypatch.setattr(backend, "_seconds_of_pair", 1.0)
    first, last = backend.search(query(circle(), 3)), final(backend, circle(), 3)
    assert "comparing pairs" in first.html
    assert {hit.stage for hit in first.results.hits} == {"shortlist"}
    assert "comparing pairs" not in last.html
    assert (first.unfinished, last.unfinished) == (True, False)
    assert backend._seconds_of_pair < 1


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["{}", query("")], ids=["plain", "empty"])
def test_an_empty_drawing_is_not_an_error(backend, asked):
    answer = backend.search(asked)
    assert answer == backend.empty()
    assert "Draw an object, and the most similar of 7 photos appear here" in answer.html


@pytest.mark.slow
def test_a_blank_drawing_is_named(backend):
    answer = backend.search(query(data_url(paper())))
    assert answer.results is None and "The drawing is blank" in answer.html
    assert 'role="alert"' not in answer.html


def bomb():
    """A PNG of 900 megapixels in some bytes."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk).decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drawing", "problem"),
    [
        ("hello", "not a picture"),
        ("data:text/html;base64,PGI+", "not a picture"),
        ("data:image/png;base64,!!!", "not a picture"),
        ("data:image/png;base64,PGh0bWw+", "not a picture"),
        ("data:image/png;base64," + "A" * app_backend.LARGEST_DRAWING, "too large"),
        ("data:image/png;base64," + bomb(), "not a picture"),
        (data_url(paper((2049, 8))), "2049 x 8 pixels"),
        ("/etc/passwd", "not a picture"),
    ],
)
def test_invalid_drawings_are_reported(backend, drawing, problem):
    answer = final(backend, drawing)
    assert problem in answer.html
    assert 'role="alert"' in answer.html
    assert answer.results is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    ["no json", "[]", "1", "null", '{"page": -1}', '{"page": 1e300}', '{"rerank": NaN}', "[" * 9999,
     '{"drawing": {"a": 1}}', '{"like": "x\' OR 1"}', '{"more": "abc"}', '{"rerank": -5}',
     json.dumps({"fewer": ["a"] * 101}), '{"expand": "maybe"}',
     '{"where": {"after": "soon"}}', "\ud800", "", None, 1, {"drawing": ""}, ["{}"]],
)  # fmt: skip
def test_what_is_no_query_is_reported(backend, asked):
    answer = backend.search(asked)
    assert "not a query: reload the page" in answer.html
    assert answer.results is None
    assert "not a query: reload the page" in backend.explain(asked)


@pytest.mark.slow
def test_a_dot_says_too_little_and_a_photo_that_is_gone_is_reported(backend):
    dot = paper()
    ImageDraw.Draw(dot).ellipse((100, 100, 110, 110), fill="black")
    assert "says too little" in final(backend, data_url(dot)).html
    assert "not in the index any more" in final(backend, circle(), like="0" * 24).html


@pytest.mark.slow
def test_only_a_page_of_this_machine_lets_choose_folders(zse, tmp_path):
    for name in ("a", "b"):
        photo(tmp_path / f"album/{name}/{name}.png", ord(name))
    index.build([tmp_path / "album"], tmp_path / "index", zse)
    searcher = Searcher(index.open(tmp_path / "index"))
    near, far = (Backend(searcher, local=local) for local in (True, False))
    folder = str(tmp_path / "album/a")
    assert folder in near.choices["folders"] and not far.choices["folders"]
    assert [*near.choices["labels"].values()] == ["album", "album/a", "album/b"]
    found = final(near, circle(), 0, where={"folder": folder})
    assert [hit.path for hit in found.results.hits] == [f"{folder}/a.png"]
    for backend, where in (
        (far, {"folder": folder}),
        (near, {"type": "gif"}),
        (near, {"orientation": "round"}),
    ):
        answer = final(backend, circle(), 0, where=where)
        assert answer.results is None and "does not offer" in answer.html
    nobody = final(near, circle(), 0, where={"folder": folder, "orientation": "portrait"})
    assert nobody.results is None and "Choose fewer conditions" in nobody.html


@pytest.mark.slow
def test_the_page_after_the_last_photo_is_empty(backend):
    assert [hit.rank for hit in final(backend, circle(), 0, page=1).results.hits] == [6, 7]
    answer = final(backend, circle(), 0, page=10**6)
    assert "no more photos" in answer.html
    assert answer.results is None


@pytest.mark.slow
def test_a_photo_that_was_found_is_explained(backend):
    results = final(backend, circle()).results
    html = backend.explain(about(circle(), results.hits[1].id))
    assert html.count("<img") > 3
    assert "src=" not in re.sub(r'src="data:image/webp;base64,[\w+/=]+"', "", html)


@pytest.mark.slow
def test_only_photos_of_the_index_are_explained(backend, album):
    shown = final(backend, circle(), 7).results.hits[0].id
    assert "not in the index" in backend.explain(about(circle(), identity(Path("/etc/passwd"))))
    for other in (str(album / "p0.png"), "None", ""):
        assert "not a query" in backend.explain(about(circle(), other))
    assert "Draw first" in backend.explain(about("", shown))
    assert "not a picture" in backend.explain(about("hello", shown))


@pytest.mark.slow
def test_a_missing_photo_is_reported_without_its_path(zse, tmp_path):
    file = photo(tmp_path / "album/p.png", 0)
    index.build([file], tmp_path / "index", zse)
    backend = Backend(Searcher(index.open(tmp_path / "index")))
    results = final(backend, circle()).results
    file.unlink()
    html = backend.explain(about(circle(), results.hits[0].id))
    assert "no longer exists" in html
    assert str(tmp_path) not in html


@pytest.mark.slow
@pytest.mark.parametrize("error", [PermissionError(13, "no", "/srv/a"), RuntimeError("/srv/a")])
def test_errors_name_no_file_of_this_machine(backend, monkeypatch, capsys, error):
    results = final(backend, circle()).results

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(photos, "prepared", fail)
    monkeypatch.setattr(backend.searcher, "_search", fail)
    asked = about(circle(), results.hits[0].id)
    pages = [final(backend, circle()).html, backend.explain(asked)]
    for what, page in zip(("The search", "The explanation"), pages, strict=True):
        assert f"{what} failed. The output of" in page
        assert "/srv" not in page
        assert str(backend.searcher.gallery.uri) not in page
    assert capsys.readouterr().err.count("/srv/a") >= 2


@pytest.mark.slow
def test_a_system_that_scores_no_pairs_has_no_slider(backend, monkeypatch):
    monkeypatch.setattr(backend.searcher, "reranks", False)
    fast = Backend(backend.searcher)
    fast.warm_up()
    assert fast.most_pairs == fast.default_pairs == 0
    html = final(fast, circle()).html
    assert "nearest" in html and "by embedding alone" not in html


@pytest.fixture(scope="module")
def server(backend):
    """A page, served where the environment names proxies and a folder of another user."""
    proxies = {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**proxies, "GRADIO_SHARE": "True", "no_proxy": "x.org"}.items():
            patch.setenv(name, value)
        patch.setenv("GRADIO_TEMP_DIR", "/proc/1/nobody-can-write-here")
        page = app.create(backend)
        address = app.serve(page)
        assert os.environ["no_proxy"] == "x.org"
        assert os.environ["GRADIO_TEMP_DIR"].startswith("/proc")
    assert page.share is False
    yield urlsplit(address)
    page.close()


def request(server, method, path, body=None, headers=None):
    """Status and body of a request, whose path is sent unchanged."""
    connection = http.client.HTTPConnection(server.hostname, server.port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_only_this_machine_is_served_by_default(server):
    assert server.hostname == "127.0.0.1"
    status, text = request(server, "GET", "/")
    assert status == 200
    assert app.TITLE.encode() in text


@pytest.mark.slow
def test_a_port_in_use_is_reported(server, backend):
    with pytest.raises(OSError, match=f"127.0.0.1:{server.port}: the port is in use.*--port=7900"):
        app.serve(app.create(backend), port=server.port)


def test_a_port_in_use_is_reported_before_photos_are_indexed(tmp_path):
    options = flags.FlagValues()
    app.define_flags(options, [])
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options(["app", f"--photos={tmp_path}", f"--index={tmp_path}/i", f"--port={port}"])
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: the port is in use"):
            app.main(options)
        options(["app", f"--photos={tmp_path}", f"--index={tmp_path}/i", "--host=192.0.2.1"])
        with pytest.raises(OSError, match=r"192\.0\.2\.1:.*does not have the address"):
            app.main(options)
    assert not (tmp_path / "i").exists()


@pytest.mark.slow
def test_no_path_leads_to_a_file(server, album):
    secret = album / "p0.png"
    for file in ("/etc/passwd", str(secret), "../../../../../../etc/passwd", "pyproject.toml"):
        for path in (
            f"/gradio_api/file={file}", f"/file={file}", f"/gradio_api/file/{file}",
            f"//gradio_api//file={file}", f"/gradio_api/file%3D{file}", f"/static/{file}",
            f"/gradio_api/x/../file={file}", f"/assets/{file.replace('.', '%2e')}", f"/{file}",
            f"/gradio_api/proxy=file://{file}", f"/svelte/{file}", f"/theme.css/{file}",
            f"/gradio_api/custom_component/x/client/component/..%2f..%2f{file}",
        ):  # fmt: skip
            status, body = request(server, "GET", path)
            assert status in (400, 403, 404, 405, 422), (path, status)
            assert b"root:" not in body
            assert secret.read_bytes() not in body


@pytest.mark.slow
def test_uploads_and_large_requests_are_rejected(server):
    boundary = b"--b\r\nContent-Disposition: form-data; name=files; filename=a\r\n\r\nx\r\n--b--"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert request(server, "POST", "/gradio_api/upload", boundary, headers)[0] == 404
    for route in ("queue/join", "component_server/"):
        status, text = request(
            server,
            "POST",
            f"/gradio_api/{route}",
            b"x" * (middleware.LARGEST_REQUEST + 1),
            {"Content-Type": "application/json"},
        )
        assert (status, text) == (413, b"The request is larger than a drawing.")
    chunks = iter([b"x" * 2**20] * 9)  # without Content-Length
    with contextlib.suppress(ConnectionError, http.client.HTTPException):  # closed by the server
        assert request(server, "POST", "/gradio_api/queue/join", chunks)[0] >= 400


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/gradio_api/component_server", "//component_server/"])
@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=b", None])
def test_other_sites_cannot_call_the_functions_of_the_page(server, path, kind):
    call = json.dumps({"data": "x", "component_id": 7, "fn_name": "search", "session_hash": "a"})
    headers = {"Origin": "http://other.example"} | ({"Content-Type": kind} if kind else {})
    status, text = request(server, "POST", path, call, headers)
    assert (status, text) == (415, b"The functions of this page accept JSON only.")


@pytest.mark.slow
def test_the_wait_for_another_search_is_not_counted(backend):
    searched = []
    with backend.searcher._lock:
        waiting = threading.Thread(target=lambda: searched.append(final(backend, circle(), 0)))
        waiting.start()
        time.sleep(2)
    waiting.join()
    assert searched[0].results.seconds < 2


def run(*argv):
    options = flags.FlagValues()
    app.define_flags(options, ["app", *argv])
    cli.parse(options, ["app", *argv])
    app.main(options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for the browser")
def test_the_command_indexes_a_folder_and_opens_the_page_in_a_browser(album, zse, tmp_path):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened.part; '
                       f"mv {tmp_path}/opened.part {tmp_path}/opened\n")  # fmt: skip
    browser.chmod(0o755)
    given = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "BROWSER": str(browser)}
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | given
    command = [sys.executable, "-m", "zse_jax.gallery.app", f"--photos={album}"]
    command += [f"--checkpoint={zse}", "--k=2"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            printed = ""
            while "http://" not in printed:
                line = program.stdout.readline()
                assert line, printed
                printed += line
            assert "photos added" in printed
            until = time.monotonic() + 30
            while not (tmp_path / "opened").exists() and time.monotonic() < until:
                time.sleep(0.1)
            address = (tmp_path / "opened").read_text().strip()
            assert address in printed
            with urllib.request.urlopen(address, timeout=30) as page:
                assert app.TITLE in page.read().decode()
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=30) in (0, 130)
        finally:
            program.kill()
    assert [*(tmp_path / "cache/zse_jax/albums").iterdir()], "the index is in the cache folder"


def test_without_a_screen_no_browser_is_opened(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for platform, expected in (("linux", False), ("darwin", True), ("win32", True)):
        monkeypatch.setattr(sys, "platform", platform)
        assert app._has_screen() is expected


def test_errors_on_the_command_line(tmp_path):
    with pytest.raises(ValueError, match="--index=my-index"):
        run()
    with pytest.raises(FileNotFoundError, match="index"):
        run(f"--index={tmp_path / 'none'}")
    with pytest.raises(flags.Error, match="port"):
        run("--index=x", "--port=0")


@pytest.mark.slow
def test_an_empty_index_says_what_to_do(zse, album, tmp_path):
    index.build([album], tmp_path / "index", zse)
    index.remove(tmp_path / "index", [album])
    backend = Backend(Searcher(index.open(tmp_path / "index")))
    backend.warm_up()
    assert "contains no photo that can be read" in final(backend, circle()).html


def test_a_transparent_background_becomes_white():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).line((5, 5, 60, 60), fill="black", width=4)
    drawing = app_backend.decoded(data_url(image))
    assert drawing[0, 60].tolist() == [255, 255, 255]
    assert np.array_equal(drawing[30, 30], [0, 0, 0])
