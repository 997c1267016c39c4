"""A page to draw on, which finds your photos while you draw.

    python -m zse_jax.gallery.app --index=my-index

Draw with mouse, pen or finger, or upload a sketch; click a photo to see why it was found. The page
is served to this machine alone unless --host says otherwise (--share lets Gradio publish it for a
week), needs no network, and hands out nothing but thumbnails of the photos in the index and the
small pictures that explain one. In a notebook:

    from zse_jax.gallery import app
    app.launch("my-index")
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, no_type_check

from absl import flags

from zse_jax.gallery import index as indexes
from zse_jax.gallery.app_backend import Answers, template_text
from zse_jax.gallery.results import Results
from zse_jax.gallery.search import Searcher
from zse_jax.runtime import cli

TITLE = "Find photos by drawing"

SESSIONS = 200
"""Visitors whose last results are kept, for explanations."""


def create(answers: Answers) -> Any:
    """The page, a gradio.Blocks that `launch` serves.

    Args:
      answers: to what is drawn.
    """
    import gradio as gr

    @no_type_check  # Gradio must see that it is a generator function
    def search(
        drawing: str | None, rerank: int | float
    ) -> Iterator[tuple[str, str, Results | None]]:
        for answer in answers.search(drawing, rerank):
            yield answer.html, "", answer.results

    def explain(results: Results | None, event: gr.EventData) -> str:
        return answers.explain(results, str(event._data.get("photo")))

    most = answers.most
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        shown = gr.State(None, time_to_live=3600)
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Draw with mouse, pen or finger; results come while you draw.</p>",
            apply_default_css=False,
            elem_classes="zse-head",
        )
        with gr.Row(elem_classes="zse-columns"):
            with gr.Column(scale=2, min_width=300):
                pad = gr.HTML(
                    "",
                    html_template=template_text("pad.html"),
                    js_on_load=template_text("pad.js"),
                    pen=answers.pen,
                    apply_default_css=False,
                    elem_id="pad",
                )
                rerank = gr.Slider(
                    0,
                    max(1, most),
                    answers.usual,
                    step=1 if most <= 100 else 10,
                    label="Fast to exact",
                    info="Photos compared with the drawing pair by pair; 0 is fastest.",
                    visible=most > 0,
                    elem_id="rerank",
                )
            with gr.Column(scale=3, min_width=300):
                found = gr.HTML(
                    answers.empty().html,
                    js_on_load=template_text("found.js"),
                    apply_default_css=False,
                    elem_id="found",
                )
        why = gr.HTML(
            "", js_on_load=template_text("why.js"), apply_default_css=False, elem_id="why"
        )
        quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked: dict[str, Any] = {
            "fn": search,
            "inputs": [pad, rerank],
            "outputs": [found, why, shown],
            "trigger_mode": "always_last",
            "concurrency_id": "searcher",
            "concurrency_limit": 1,
            **quietly,
        }
        pad.input(**asked)
        rerank.change(**asked)
        waiting = json.dumps(template_text("waiting.html"))
        found.select(None, None, [why], js=f"() => {waiting}", **quietly)
        found.select(
            explain,
            [shown],
            [why],
            concurrency_id="searcher",
            **quietly,
        )
    return page


def launch(
    index: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    *,
    k: int = 24,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool | None = None,
    block: bool = False,
    quiet: bool = False,
) -> str:
    """Opens an index and serves its page; the address.

    Args:
      index: where it is.
      checkpoint: where its checkpoint is now; None: where it was.
      k: photos that are shown.
      host: of the machine's addresses, the one that is listened to; 127.0.0.1: nobody else sees it.
      port: None: the first free one from 7860 on.
      share: let Gradio publish the page for a week; None: only where a notebook needs it.
      block: return when the page is closed (Ctrl-C).
      quiet: print nothing.

    Raises:
      FileNotFoundError, ValueError: as `Index` and `Searcher`.
      OSError: the port is taken.
    """
    answers = Answers(Searcher(indexes.open(index), checkpoint), k)
    answers.warm_up()
    page = create(answers)
    address = serve(page, host=host, port=port, share=share, quiet=quiet)
    if block:
        print(f"{TITLE}: {address}  (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return address


def serve(
    page: Any,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool | None = None,
    quiet: bool = True,
) -> str:
    """Serves a page of `create` in the background; its address. Arguments as `launch`."""
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
    except OSError as error:
        raise OSError(
            f"The page cannot be served at {host}:{port or '7860 and above'}: the port is taken, "
            "or the address is none of this machine's. Name others, such as --port=7900."
        ) from error
    return public or local


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    if any(cli.config_arguments(argv)):
        raise ValueError("The page takes no --config: that of the checkpoint holds. See --help.")
    flags.DEFINE_string("index", None, "A folder, or a place in a bucket.", options)
    help_ = "Where the index's checkpoint is now; by default where it was."
    flags.DEFINE_string("checkpoint", None, help_, options)
    flags.DEFINE_integer("k", 24, "How many photos to show.", 1, 500, options)
    help_ = "The address that is listened to; 0.0.0.0 lets others on your network in."
    flags.DEFINE_string("host", "127.0.0.1", help_, options)
    help_ = "By default the first free one from 7860 on."
    flags.DEFINE_integer("port", None, help_, 1, 65535, options)
    flags.DEFINE_bool("share", False, "Let Gradio publish the page for a week.", options)


def main(options: flags.FlagValues) -> None:
    """Serves what the command line says, until Ctrl-C."""
    if not options.index:
        raise ValueError("--index is missing: say, for example, --index=my-index.")
    launch(
        options.index,
        options.checkpoint,
        k=options.k,
        host=options.host,
        port=options.port,
        share=options.share,
        block=True,
        quiet=True,
    )


if __name__ == "__main__":
    cli.run(main, define_flags)
