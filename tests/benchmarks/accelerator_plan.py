"""A list of measurements in the order of their worth, run while time is left.

Each row of the result is kept as soon as it is known, so that a killed run keeps what it has.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

Row = dict[str, Any]
"""One measured, skipped or failed item: `name`, `dtype`, `status`, `seconds`, and its values."""

Clock = Callable[[], float]

Run = Callable[[int], None]
"""Calls a program so many times and waits for the last result."""


class Measurement(NamedTuple):
    """One item of the plan.

    Attributes:
      name: what is measured.
      dtype: of activations.
      seconds: estimated cost without compilation; 0 for what limits its own time.
      run: measures; its argument returns the seconds that are left, and it returns values.
      builds: name -> what compiles a program that `run` uses.
    """

    name: str
    dtype: str
    seconds: float
    run: Callable[[Clock], Row]
    builds: Mapping[str, Callable[[], Any]] = MappingProxyType({})


def execute(
    plan: Sequence[Measurement], seconds: float, clock: Clock, began: float
) -> Iterator[Row]:
    """Runs what fits into `seconds` after `began`, and yields a row for each item of the plan.

    Estimates are scaled by the ratio of measured to estimated cost so far. A measurement that fails
    does not stop the others.
    """

    def left() -> float:
        return seconds - (clock() - began)

    estimated = spent = 0.0
    for item in plan:
        row: Row = {"name": item.name, "dtype": item.dtype}
        cost = item.seconds * (spent / estimated if estimated else 1.0)
        if cost > left():
            needed = f"needs about {cost:.0f} s, {max(0.0, left()):.0f} s were left"
            yield row | {"status": f"skipped: {needed}", "seconds": 0.0}
            continue
        started = clock()
        try:
            values = item.run(left)
            row |= {"status": "measured"} | values
        except TimeoutError as error:
            row["status"] = f"skipped: {error}"
        except Exception as error:  # the others are still worth their time
            row["status"] = f"failed: {type(error).__name__}: {str(error)[:500]}"
        row["seconds"] = clock() - started
        if item.seconds:
            estimated, spent = estimated + item.seconds, spent + row["seconds"]
        yield row


def table(rows: Sequence[Row]) -> str:
    """A line for each row: rate, share of the matrix rate, and ratio to PyTorch."""
    head = f"{'what':32}{'dtype':10}{'rate':>12} {'unit':10}{'share':>7}{'PyTorch':>12}{'ratio':>7}"
    lines = [head]
    for row in rows:
        line = f"{row['name']:32}{row['dtype']:10}"
        if row["status"] != "measured":
            lines.append(f"{line}  {row['status'].splitlines()[0][:80]}")
            continue
        if "rate" not in row:
            lines.append(f"{line}  {row.get('note', 'done')}")
            continue
        share = f"{row['share']:.1%}" if "share" in row else "-"
        torch = f"{row['torch']:,.4g}" if "torch" in row else "-"
        ratio = f"{row['rate'] / row['torch']:.2f}" if "torch" in row else "-"
        line += f"{row['rate']:12,.4g} {row['unit']:10}{share:>7}{torch:>12}{ratio:>7}"
        lines.append(f"{line}  {row.get('note', '')}".rstrip())
    return "\n".join(lines)


def seconds_of(runs: Mapping[str, Run], rounds: int, least: float) -> dict[str, float]:
    """Median seconds per call, in turn; each measurement lasts about `least` seconds."""
    calls = {}
    for name, run in runs.items():
        run(1)
        began = time.perf_counter()
        run(1)
        calls[name] = max(1, round(least / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(calls[name])
            times[name].append((time.perf_counter() - began) / calls[name])
    return {name: sorted(found)[len(found) // 2] for name, found in times.items()}
