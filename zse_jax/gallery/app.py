"""A page that searches your photos while you draw.

    python -m zse_jax.gallery.app --index=my-index

Draw with mouse, pen or finger, or upload, paste, drop or photograph a sketch; click a photo to see
why it was found. The page is served only to this machine unless --host is given (--share lets
Gradio publish it for a week), needs no network, and sends only thumbnails of the photos and the
small pictures of explanations, and paths only to this machine. In a notebook:

    from zse_jax.gallery import app
    app.launch("my-index")
"""

import contextlib
import functools
import logging
import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from zse_jax.gallery import album
from zse_jax.gallery import index as indexes
from zse_jax.gallery.app_backend import Backend, template_html, template_text
from zse_jax.gallery.loaded import Checkpoint
from zse_jax.gallery.search import EXPAND, Searcher
from zse_jax.runtime import cli
from zse_jax.runtime.console import say

TITLE = "Find photos by drawing"

SESSIONS = 200
"""Number of open pages of which Gradio keeps a record."""

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Addresses that other machines do not reach."""


@contextlib.contextmanager
def _environment(through_proxy: bool = False) -> Iterator[None]:
    """The environment in which Gradio is imported, and builds and serves a page.

    Gradio asks its own server whether it runs, which a proxy cannot do; and by default it shares
    one temporary folder between all users of a machine.

    Args:
      through_proxy: use the proxy for other machines.
    """
    local = ",".join(LOCAL)
    direct = ",".join(filter(None, [os.environ.get("no_proxy"), local])) if through_proxy else "*"
    changed = {"no_proxy": direct, "NO_PROXY": direct, "GRADIO_TEMP_DIR": _temporary_folder().name}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder that is deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="zse_jax-")


@_environment()
def create(backend: Backend) -> Any:
    """The page as a `gradio.Blocks`, for `serve`."""
    import gradio as gr

    # The browser calls these functions directly: Gradio's events pass through a queue.
    def search(asked: Any) -> dict[str, Any]:
        answer = backend.search(asked)
        return {"html": answer.html, "seen": answer.seen, "unfinished": answer.unfinished}

    def clean(picture: Any) -> dict[str, Any]:
        return backend.clean(picture)._asdict()

    def explain(asked: Any) -> str:
        return backend.explain(asked)

    def open_folder(photo: Any) -> str:
        return backend.open_folder(photo)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Draw with mouse, pen or finger. Results update as you draw.</p>",
            apply_default_css=False,
            elem_classes="zse-head",
        )
        with gr.Row(elem_classes="zse-columns"):
            with gr.Column(scale=2, min_width=300):
                gr.HTML(
                    "",
                    html_template=template_html(
                        "pad.html",
                        most_pairs=backend.most_pairs,
                        expand=EXPAND,
                        choices=backend.choices,
                    ),
                    js_on_load=template_text("pad.js"),
                    server_functions=[search, clean],
                    settings={"pen": backend.pen, "pairs": backend.default_pairs},
                    apply_default_css=False,
                    elem_id="pad",
                )
                gr.HTML(
                    '<div class="zse-prepared"></div>',
                    js_on_load=None,
                    apply_default_css=False,
                    elem_id="seen",
                )
            with gr.Column(scale=3, min_width=300):
                gr.HTML(
                    f'<div class="zse-found">{backend.empty().html}</div>',
                    js_on_load=template_text("found.js"),
                    server_functions=[explain, open_folder],
                    apply_default_css=False,
                    elem_id="found",
                )
    return page


def launch(
    index: str | os.PathLike,
    checkpoint: Checkpoint | None = None,
    *,
    k: int = 24,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    block: bool = False,
    quiet: bool = False,
    show: bool = False,
) -> str:
    """Opens an index and serves its page; returns the page's address.

    Args:
      index: the location of the index.
      checkpoint: of the index: its current location, or the loaded checkpoint; None: the recorded
        location.
      k: number of photos to show.
      host: the address to listen on; 127.0.0.1 is not reachable from other machines.
      port: None: the first free port from 7860.
      share: let Gradio publish the page for a week.
      block: return only after Ctrl-C.
      quiet: print nothing.
      show: open the page in the browser of this machine, if it has a screen.

    Raises:
      FileNotFoundError, ValueError: as `Index` and `Searcher`.
      OSError: the port is in use.
    """
    local = not share and host in LOCAL
    backend = Backend(Searcher(indexes.open(index), checkpoint), k, local)
    backend.warm_up()
    page = create(backend)
    address = serve(page, host=host, port=port, share=share, quiet=quiet)
    if show and _has_screen():
        webbrowser.open(address)
    if block:
        say(f"{TITLE}: {address}  (press Ctrl-C to stop)")
        page.block_thread()
    return address


def _has_screen() -> bool:
    """Whether a browser with windows can be opened: not on a server or in a container."""
    named = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return named or sys.platform in ("darwin", "win32")


def serve(
    page: Any,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    quiet: bool = True,
) -> str:
    """Serves a page of `create` in the background; returns its address. Arguments as `launch`."""
    with _environment(through_proxy=share):
        return _serve(page, host=host, port=port, share=share, quiet=quiet)


def _serve(page: Any, *, host: str, port: int | None, share: bool, quiet: bool) -> str:
    import gradio as gr
    from starlette.middleware import Middleware

    from zse_jax.gallery import middleware

    logging.getLogger("httpx").setLevel(logging.WARNING)
    theme = gr.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400")
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=quiet,
            prevent_thread_lock=True,
            theme=theme,
            css=template_text("app.css"),
            app_kwargs={"middleware": [Middleware(middleware.Guard)]},
            max_file_size=middleware.LARGEST_REQUEST,
            state_session_capacity=SESSIONS,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
        )
    except ImportError as error:  # of httpx, for a SOCKS proxy
        raise ValueError(
            f"The page cannot be shared through the proxy of this machine: {error}"
        ) from error
    except OSError as error:
        raise _unusable(host, port) from error
    return public or local


def _check_place(host: str, port: int | None) -> None:
    """Checks where the page will be served, before photos are indexed for minutes.

    Raises:
      OSError: the port is in use, or this machine does not have the address.
    """
    try:
        [(family, *_), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port or 0))
    except OSError as error:
        raise _unusable(host, port) from error


def _unusable(host: str, port: int | None) -> OSError:
    return OSError(
        f"The page cannot be served at {host}:{port or '7860 and above'}: the port is in use, or "
        "this machine does not have the address. Choose another, such as --port=7900."
    )


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    album.define_flags(options)
    flags.DEFINE_integer("k", 24, "Number of photos to show.", 1, 500, options)
    help_ = "The address to listen on; 0.0.0.0 makes the page reachable from your network."
    flags.DEFINE_string("host", "127.0.0.1", help_, options)
    help_ = "Default: the first free port from 7860."
    flags.DEFINE_integer("port", None, help_, 1, 65535, options)
    help_ = "Open the page in your browser, if this machine has a screen."
    flags.DEFINE_bool("open", True, help_, options)
    flags.DEFINE_bool("share", False, "Let Gradio publish the page for a week.", options)


def main(options: flags.FlagValues) -> None:
    """Serves the page until Ctrl-C."""
    _check_place(options.host, options.port)
    index, checkpoint = album.from_flags(options)
    launch(
        index,
        checkpoint,
        k=options.k,
        host=options.host,
        port=options.port,
        share=options.share,
        block=True,
        quiet=True,
        show=options.open,
    )


if __name__ == "__main__":
    cli.run(main, define_flags)
