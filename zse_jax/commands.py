"""The command `zse-jax`: every program of the package under one name.

    zse-jax search --photos=album --sketch=cat.png

is the same as `python -m zse_jax.gallery.search --photos=album --sketch=cat.png`, but starts
faster, and on Linux has large buffers in huge pages. It imports nothing but the program that it
starts.
"""

import gc
import os
import runpy
import sys
from typing import NamedTuple

from data_pipelines.suggestions import suggest
from data_pipelines.terminal import OUTPUT_CLOSED, output_is_closed
from zse_jax.version import __version__

HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
"""A variable that glibc reads when a process starts, and the value that places large buffers in
huge pages: small networks run faster on a CPU, because XLA allocates its buffers in every call."""


class Command(NamedTuple):
    """A command: its module, which runs as `python -m` runs it, and what it does."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("zse_jax.main", "Train a system, evaluating it on unseen classes."),
    "evaluate": Command(
        "zse_jax.evaluate", "Evaluate a checkpoint on classes that it has not seen."
    ),
    "compare": Command("zse_jax.compare", "Compare training runs: configs, metrics, curves."),
    "convert": Command("zse_jax.convert", "Convert published weights to a checkpoint, and back."),
    "hashing": Command("zse_jax.hashing", "Learn and measure 64-bit codes of a checkpoint."),
    "explain": Command("zse_jax.explain", "Show which of your photos a sketch finds, and why."),
    "check": Command("data_pipelines.check", "Check the files of an unpacked data set."),
    "prepared": Command("data_pipelines.prepared", "List and remove prepared data sets."),
    "index": Command("zse_jax.gallery.index", "Index your own photos, and keep the index current."),
    "search": Command("zse_jax.gallery.search", "Search your photos with a sketch."),
    "app": Command("zse_jax.gallery.app", "Open a page that searches your photos as you draw."),
}

HELP = "\n".join(
    [
        f"zse_jax {__version__}: zero-shot sketch-based image retrieval",
        "",
        "usage: zse-jax COMMAND [flags]",
        "",
        *(f"  {name:9} {command.summary}" for name, command in COMMANDS.items()),
        "",
        "`zse-jax COMMAND --help` lists the flags. Each command starts a module:",
        "`zse-jax search` is the same as `python -m zse_jax.gallery.search`.",
    ]
)


def restart_with_huge_pages() -> None:
    """On Linux, starts this process again with `HUGE_PAGES`, unless the variable is set."""
    variable, value = HUGE_PAGES
    if sys.platform == "linux" and variable not in os.environ:
        os.environ[variable] = value
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Runs the command that the command line names."""
    name, arguments = next(iter(sys.argv[1:]), "--help"), sys.argv[2:]
    if name in ("--help", "-h", "--helpfull", "help"):
        try:
            print(HELP, flush=True)
        except BrokenPipeError:
            sys.exit(OUTPUT_CLOSED if output_is_closed() else 1)
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        restart_with_huge_pages()
        if not sys.flags.safe_path:
            sys.path[0] = os.getcwd()  # noqa: PTH109 - as text, as `python -m` does
        module = COMMANDS[name].module
        sys.argv = [module, *arguments]  # the name is replaced by the module's file
        if module.startswith("zse_jax."):
            gc.disable()  # imports make no garbage; after them, `cli.run` enables it again
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            gc.enable()
    else:
        sys.exit(
            f"error: there is no command {name!r}{suggest(name, COMMANDS)}. "
            "`zse-jax --help` lists the commands."
        )


if __name__ == "__main__":
    main()
