"""Text for the terminal: lines, tables, durations and short error messages."""

import logging
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipelines.terminal import WIDE, printable


def say(text: str, *, error: bool = False, keep: str = "") -> None:
    """Prints one line, in which control characters of file names are written as escapes.

    Args:
      text: the line.
      error: print to standard error instead of standard output.
      keep: control characters that are printed as they are, such as a line break.
    """
    print(printable(text, keep), file=sys.stderr if error else sys.stdout, flush=True)


def show(table: Table) -> None:
    """Prints a table: at least 80 columns wide on a terminal, uncut in a file or a pipe.

    Brackets and colons in names have no meaning.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, 80) if console.is_terminal else WIDE
    console.print(table)


def duration(seconds: float) -> str:
    """A readable time: "42s", "3m12s", "5h07m", "2d04h"."""
    seconds = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02d}{smaller}"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"


def escape_logs() -> None:
    """Writes control characters of names as escapes in every log record of this process."""
    logging.setLogRecordFactory(_Escaped)


class _Escaped(logging.LogRecord):
    """A log record whose arguments cannot contain commands to a terminal, or further lines."""

    def getMessage(self) -> str:  # noqa: N802 - overrides a method of logging
        own = self.name.startswith(("zse_jax", "data_pipelines"))
        if own and isinstance(self.args, tuple):
            self.args = tuple(map(_argument, self.args))
        return printable(super().getMessage(), keep="\n\t")


def _argument(value: Any) -> Any:
    if isinstance(value, str | os.PathLike | BaseException):
        return printable(str(value))
    return value
