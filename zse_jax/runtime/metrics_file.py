"""The metrics files in a workdir: metrics.jsonl (one JSON object per line) and metrics.json."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from data_pipelines import paths

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; skips a last line that a kill left incomplete.

    Raises:
      ValueError: another line is damaged.
    """
    lines = epath.Path(path).read_bytes().splitlines()
    found = []
    for number, line in enumerate(lines):
        try:
            content = json.loads(line)
        except ValueError:  # also of bytes that are not text
            content = None
        if isinstance(content, dict):
            found.append(content)
        elif number != len(lines) - 1:
            raise ValueError(
                f"{path}: line {number + 1} is not JSON ({line[:60]!r}): repair or delete it."
            )
    return found


def keep_until(path: str | os.PathLike, step: int) -> None:
    """Removes the lines of a `metrics.jsonl` that are later than `step`."""
    path = epath.Path(path)
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        paths.replace(path, "".join(json.dumps(line) + "\n" for line in kept))


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes `content` to the file `path` and creates its folder. Only process 0 writes."""
    if jax.process_index() == 0:
        paths.replace(path, json.dumps(content, indent=2) + "\n")
        print(f"wrote {path}")
