"""All benchmarks of a CPU, one after the other, with their output in one Markdown file.

    python -m tests.benchmarks.everything [--output results.md] [--only metrics scoring]

Takes about an hour on two cores, which should have nothing else to do. Each program runs in a
separate process; if one fails, that is reported, and the others still run. The comparisons with
PyTorch need `torch` and `efficientnet-lite-pytorch`, and the page needs Chromium. Programs that
read photos or the images of Sketchy need `--albums` or `--sketchy`.
"""

import argparse
import datetime
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.machine import describe
from zse_jax.commands import HUGE_PAGES

COMMANDS = (
    "metrics",
    "scoring --sketches=32 --photos=64 --rounds=3",
    "evaluation --folder=SKETCHY",
    "training",
    "efficientnet",
    "efficient --rounds=3",
    "clip_freezing --rounds=3",
    "loader --folder=SKETCHY",
    "preparation --folder=SKETCHY",
    "expansion cost",
    "gallery shortlist",
    "gallery shortlist --photos=1000000",
    "gallery build --checkpoint=default --rounds=2 --photos-in=ALBUM",
    "gallery start --checkpoint=default --photos-in=ALBUM --rounds=5",
    "gallery scale --sizes=100000 --sketches=50 --output=SCRATCH"
    " --only=half64,half32,pq64,faiss-half64,faiss-pq64,codes,add,reindex",
    "page --photos=100000 --drawings=20",
    "scaling --loop --systems zse --loop-batch=2 --rounds=3",
    "scaling --batch=2",
)
"""Arguments of `python -m tests.benchmarks.`, once for each folder of a name in capital letters."""

PACKAGES = "jax", "flax", "numpy", "pylance", "faiss-cpu"


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmarks; returns the number of those that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results.md"))
    names = sorted({command.split()[0] for command in COMMANDS})
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--albums", nargs="*", default=[], help="folders of photos")
    parser.add_argument("--sketchy", nargs=1, default=[], help="the unpacked images of Sketchy")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:  # `gallery scale` skips what it finds measured
        folders = {"ALBUM": options.albums, "SKETCHY": options.sketchy, "SCRATCH": [scratch]}
        return run(options.only, folders, options.output)


def run(only: Sequence[str], folders: Mapping[str, Sequence[str]], output: Path) -> int:
    """Runs the programs in `only`, and writes what they print to `output`; as `main`."""
    commands = []
    for command in (each for each in COMMANDS if each.split()[0] in only):
        name = next((name for name in folders if name in command), "")
        for folder in folders.get(name, [""]):
            commands.append([word.replace(name, folder) for word in command.split()])
    environment = {**dict([HUGE_PAGES]), **os.environ}
    failed = 0
    with output.open("w") as file:
        file.write(f"{datetime.date.today()}; {describe(*PACKAGES)}\n")
        for command in commands:
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", f"tests.benchmarks.{command[0]}", *command[1:]],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - started
            failed += done.returncode != 0
            end = f"exit status {done.returncode}" if done.returncode else f"{seconds:.0f} s"
            printed = done.stdout + (done.stderr if done.returncode else "")  # else progress bars
            text = textwrap.indent(printed.rstrip(), "    ")
            typed = shlex.join(command)
            file.write(f"\n`python -m tests.benchmarks.{typed}` ({end})\n\n{text}\n")
            file.flush()
            print(f"{typed}: {end}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
