"""Text for a terminal, a log or a page, in which names of files cannot contain commands."""

import io
import os
import select
import sys
import unicodedata

_BIDIRECTIONAL = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
"""Characters that change the order of the text around them."""


def printable(text: str | os.PathLike, keep: str = "") -> str:
    r"""A text for a terminal, a log or a page: names cannot contain commands to a terminal.

    Control characters, line breaks, characters that change the direction of writing, and bytes of a
    file name that are not UTF-8 are written as escapes such as `\x1b`.

    Args:
      text: a text, or a path.
      keep: control characters that are kept, such as a line break.
    """
    text = os.fspath(text)
    if text.isprintable():
        return text
    return "".join(char if char in keep or _is_plain(char) else _escaped(char) for char in text)


def _is_plain(char: str) -> bool:
    return unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"} and char not in _BIDIRECTIONAL


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file name, see PEP 383
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def allow_any_name() -> None:
    """Prints characters that the terminal or UTF-8 cannot encode as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output_is_closed() -> bool:
    """Whether the reader of standard output is gone, as in `... | head`.

    If so, further output is discarded, so that no error follows when the process ends.
    """
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # it is not a file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    if not poll.poll(0):  # only errors are reported
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


WIDE = 10_000
"""Columns of an output that is not a terminal, so that tables are not cut."""

OUTPUT_CLOSED = 141
"""Exit code if the reader of standard output is gone: that of a program ended by SIGPIPE."""
