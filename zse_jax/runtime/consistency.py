"""Checks that all processes of a run have the same config, code, data, workdir and clock.

Every process runs every check, and every process reports which one differs, and in what.
"""

import collections
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from zse_jax.runtime import distributed
from zse_jax.version import __version__

logger = logging.getLogger(__name__)

SKEW_SECONDS = 5.0
"""The clock difference above which a warning is logged."""


def agree(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same `facts`; warns of clocks that differ.

    Raises:
      ValueError: in every process; lists the processes that differ from the majority, and how.
    """
    if not distributed.together():
        return
    distributed.exchange("")  # so that all read their clocks at about the same moment
    mine = {"host": socket.gethostname(), "time": time.time(), "facts": _plain(facts)}
    everybody = [json.loads(text) for text in distributed.exchange(json.dumps(mine))]
    times = [one["time"] for one in everybody]
    if max(times) - min(times) > SKEW_SECONDS:
        late = times.index(min(times))
        logger.warning(
            "The clocks of the machines differ by %.0f s (process %d on %s is last): log and file "
            "times are not comparable. Synchronise the clocks with NTP.",
            max(times) - min(times),
            late,
            everybody[late]["host"],
        )
    differ: dict[int, list[str]] = collections.defaultdict(list)
    for key in sorted({key for one in everybody for key in one["facts"]}):
        values = [one["facts"].get(key, "-") for one in everybody]
        usual = collections.Counter(values).most_common(1)[0][0]
        for process, value in enumerate(values):
            if value != usual:
                differ[process].append(f"{key} is {value} there and {usual} elsewhere")
    if differ:
        report = "; ".join(
            f"process {process} on {everybody[process]['host']}: {', '.join(texts[:8])}"
            + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")
            for process, texts in differ.items()
        )
        raise ValueError(
            f"The {len(everybody)} processes do not run the same thing. {report}. Start all of "
            "them with the same command, the same version of the code, and the same data."
        )


def _plain(facts: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value, default=str) for key, value in facts.items()}


def code_version() -> dict[str, str]:
    """The versions that results depend on: a digest of this project's files, and jax."""
    files = f"{__version__}, files {code_digest('configs', 'data_pipelines', 'zse_jax')}"
    return {"code version": files, "jax version": jax.__version__}


FEATURE_CODE = ("data_pipelines", "zse_jax/models", "zse_jax/retrievers", "zse_jax/retrieval")
"""What features and scores are computed by: cached ones of other code are not used."""


def code_digest(*folders: str) -> str:
    """A short digest of the Python files in folders of this project."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def digest(names: Iterable[str]) -> str:
    """A short digest of names in their order."""
    found = hashlib.sha256()
    for name in names:
        found.update(name.encode() + b"\0")
    return found.hexdigest()[:12]


def check_shared(folder: str | os.PathLike[str]) -> None:
    """Checks that every process sees in `folder` what process 0 writes there.

    Raises:
      OSError: in every process; lists the processes that do not.
    """
    if not distributed.together() or "://" in os.fspath(folder):
        return
    mark = Path(folder) / f".seen-by-all-{distributed.exchange(os.urandom(8).hex())[0]}"
    if distributed.this_process() == 0:
        mark.touch()
    distributed.exchange("")
    until = time.monotonic() + 15  # network file systems keep folders in a cache for seconds
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(0.5)
        list(Path(folder).iterdir())  # refreshes the cache
    everybody = distributed.exchange("" if seen else socket.gethostname())
    mark.unlink(missing_ok=True)
    if blind := [f"{p} on {host}" for p, host in enumerate(everybody) if host]:
        raise OSError(
            f"--workdir={folder} is not the same folder for all processes: what process 0 writes "
            f"there is not seen by process {', '.join(blind)}. All processes write checkpoints: "
            "choose a folder on a shared disk, or a bucket (gs://...)."
        )
