"""Text for the terminal: tables, durations and short error messages."""

from rich.console import Console
from rich.table import Table

WIDE = 10_000
"""Columns of an output that is not a terminal, so that tables take the width that they need."""


def show(table: Table) -> None:
    """Prints a table: at least 80 columns wide on a terminal, uncut in a file or a pipe."""
    console = Console(highlight=False)
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
