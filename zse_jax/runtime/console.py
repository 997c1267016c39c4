"""Tables and durations for the terminal."""

from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Prints a table, as wide as it needs to be."""
    console = Console()
    console.print(table, width=max(console.width, 80))


def duration(seconds: float) -> str:
    """A time for people: "42s", "3m12s", "5h07m", "2d04h"."""
    seconds = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02d}{smaller}"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
