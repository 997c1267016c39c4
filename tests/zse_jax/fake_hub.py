"""A hub on the loopback interface that speaks the protocol of huggingface.co.

It serves the folders FOLDER/owner/name (its default branch) and FOLDER/owner/name@revision. As on
the real hub, large files are redirected to another host, which answers to `Range`, and errors carry
X-Error-Code.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pth", ".pt", ".npz")


class FakeHub:
    """The folders that are served, and what happens to requests.

    Attributes:
      folder: of the repositories.
      requests: method and path of each request, and the headers that matter.
      cuts: how many of the next transfers of large files end half-way.
      gated: repositories whose files need `token`.
      token: the only valid one.
      status: of every answer, if not None, such as 503.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cuts = 0
        self.gated: set[str] = set()
        self.token = "hf_valid"
        self.status: int | None = None

    def add(self, name: str, files: dict[str, bytes]) -> None:
        """Writes the files of the repository "owner/name" or "owner/name@revision"."""
        for file, content in files.items():
            place = self.folder / name / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    def transfers(self) -> list[str]:
        """The paths whose content was requested so far."""
        return [
            path for method, path, _ in self.requests if method == "GET" and "/api/" not in path
        ]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        """Answers HEAD."""
        self._answer()

    def do_GET(self) -> None:
        """Answers GET."""
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        kept = {k: v for k in ("Range", "Authorization") if (v := self.headers.get(k))}
        self.hub.requests.append((self.command, path, kept))
        text = "Invalid credentials in Authorization header"
        if self.hub.status:
            self._send(self.hub.status)
        elif self.headers.get("Authorization", (valid := f"Bearer {self.hub.token}")) != valid:
            self._send(401, {"X-Error-Message": text})
        elif match := re.fullmatch(r"/cdn/(\w{64})", path):
            self._transfer(match[1])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._model(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._send(404)

    def _folder(self, name: str, revision: str | None) -> Path | None:
        """The folder of a revision: a name or a commit. Sends the error and gives None without."""
        owner, _, short = name.partition("/")
        folders = [x for x in self.hub.folder.glob(f"{owner}/*") if x.name.split("@")[0] == short]
        if not folders:
            text = "Invalid username or password."
            self._send(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": text})
            return None
        for folder in folders:
            branch = folder.name.partition("@")[2] or "main"
            if (revision or "main") in (branch, _commit(folder)):
                return folder
        self._send(404, {"X-Error-Code": "RevisionNotFound"})
        return None

    def _model(self, name: str, revision: str | None) -> None:
        if folder := self._folder(name, revision):
            siblings = [{"rfilename": x} for x in _files(folder)]
            about = {"id": name, "sha": _commit(folder), "siblings": siblings}
            self._send(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        folder = self._folder(name, revision)
        if folder is None:
            return
        if name in self.hub.gated and not self.headers.get("Authorization"):
            self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"})
        elif not (folder / file).is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _commit(folder)}
            self._send(404, headers)
        else:
            content = (folder / file).read_bytes()
            headers = {"X-Repo-Commit": _commit(folder)}
            if file.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                cdn = f"http://localhost:{self.server.server_address[1]}/cdn/{digest}"
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
                self._send(302, headers | {"Location": cdn})
            else:
                tag = hashlib.sha1(content).hexdigest()
                self._send(200, headers | {"ETag": f'"{tag}"'}, content)

    def _transfer(self, digest: str) -> None:
        found = (x for x in self.hub.folder.rglob("*") if x.is_file())
        content = next(
            c for x in found if hashlib.sha256(c := x.read_bytes()).hexdigest() == digest
        )
        size, start, headers = len(content), 0, {"Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if self.hub.cuts:
            self.hub.cuts -= 1
            self._send(206 if start else 200, headers, content[start:], cut=True)
        else:
            self._send(206 if start else 200, headers, content[start:])

    def _send(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut


def _files(folder: Path) -> list[str]:
    return sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file())


def _commit(folder: Path) -> str:
    """A commit that changes with the content."""
    digest = hashlib.sha1(folder.name.encode())
    for name in _files(folder):
        digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[FakeHub, str]]:
    """The hub and its address."""
    hub = FakeHub(folder)
    handler = type("Handler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
