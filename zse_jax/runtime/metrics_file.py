"""The metrics of a run, one JSON object a line: WORKDIR/metrics.jsonl."""

import json
import os
from typing import Any

from etils import epath

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    lines = epath.Path(path).read_text().splitlines()
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise ValueError(
                    f"{path}: line {number + 1} is no JSON ({line[:60]!r}): repair or delete it."
                ) from None
    return found


def keep_until(path: str | os.PathLike, step: int) -> None:
    """Removes the lines of a `metrics.jsonl` that are later than `step`."""
    path = epath.Path(path)
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    partial = path.with_name(path.name + ".tmp")  # a kill in between leaves the old file whole
    partial.write_text(text)
    partial.replace(path)
