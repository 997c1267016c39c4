"""Lists and removes prepared data sets.

    python -m data_pipelines.prepared list
    python -m data_pipelines.prepared remove animals-1f3a9c2b
    python -m data_pipelines.prepared remove animals-1f3a9c2b:1.0.0 --yes

A data set is prepared when a training or an evaluation first needs it, into ~/tensorflow_datasets
or config.data.data_dir. It contains the images. `list` compares each with the folder that it was
made of, and shows interrupted preparations, which the next start resumes. `remove` deletes a data
set, or one version of it; never the folder that it was made of.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from data_pipelines import paths, prepared, versions
from data_pipelines.suggestions import counted, suggest
from data_pipelines.terminal import OUTPUT_CLOSED, WIDE, allow_any_name, output_is_closed, printable

FEATURES = {"image", "class_name", "instance", "name"}
"""Of the records of our data sets, see `builders.features`."""

_LEFT = re.compile(r"incomplete\..*_(\d+\.\d+\.\d+)|(\d+\.\d+\.\d+)\.unfinished")
"""What an interrupted preparation of a version leaves beside its folder."""

DONE, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes."""


class DataSet(NamedTuple):
    """A prepared data set, or a version of a user's folder.

    Attributes:
      name: that `remove` takes, without the version.
      version: as TFDS writes it.
      folder: its files; does not exist if the preparation was interrupted.
      dataset: the package in `data_pipelines.builders`.
    """

    name: str
    version: str
    folder: Path
    dataset: str

    @property
    def finished(self) -> bool:
        """Whether its preparation has ended."""
        return self.folder.exists()

    @property
    def folders(self) -> list[Path]:
        """Its folder, and what interrupted preparations of this version left."""
        parent, version = self.folder.parent, self.version
        left = [*parent.glob(f"incomplete.*_{version}"), *parent.glob(f"{version}.unfinished")]
        return [folder for folder in (self.folder, *left) if folder.is_dir()]

    @property
    def size(self) -> str:
        """The size of its files on disk, in words."""
        return decimal(sum(file.st_size for folder in self.folders for file in _files(folder)))

    @property
    def images(self) -> int:
        """The number of images."""
        splits = json.loads((self.folder / "dataset_info.json").read_text())["splits"]
        return sum(int(length) for split in splits for length in split["shardLengths"])

    @property
    def date(self) -> str:
        """When it was prepared, in local time."""
        seconds = (self.folder / "dataset_info.json").stat().st_mtime
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))

    @property
    def metadata(self) -> dict[str, Any]:
        """What it stores about its source; empty for a generated data set."""
        return paths.read_json(self.folder / versions.METADATA) or {}


def find(root: Path) -> list[DataSet]:
    """The data sets in `root` that this project prepared or began to, by name and version."""
    known = {name: prepared.builder_package(name) for name in prepared.dataset_names()}
    found, begun = [], list[DataSet]()
    for name, package in known.items():
        if hasattr(package, "CATALOGUE"):  # TFDS's own, which other programs may use
            continue
        for info in (root / name).glob("*/dataset_info.json"):
            found.append(DataSet(name, info.parent.name, info.parent, name))
        if hasattr(package, "BY_CONTENT"):
            for version in versions.find(root / name):
                if version.name:
                    found.append(DataSet(version.name, version.folder.name, version.folder, name))
            for folder in (root / name).glob("[!.]*"):
                begun += _interrupted(folder.name, folder, name)
        begun += _interrupted(name, root / name, name)
    found = [*filter(_is_ours, found), *begun]
    return sorted(found, key=lambda data: (data.name, _number(data.version)))


def _interrupted(name: str, parent: Path, dataset: str) -> list[DataSet]:
    """The versions in `parent` whose preparation was interrupted, or is running."""
    left = (_LEFT.fullmatch(path.name) for path in parent.glob("*"))
    numbers = {match[1] or match[2] for match in left if match}
    every = [DataSet(name, number, parent / number, dataset) for number in sorted(numbers)]
    return [data for data in every if not data.finished]


def _number(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _is_ours(data: DataSet) -> bool:
    """Whether the files of a folder are those of a data set of this project."""
    info = paths.read_json(data.folder / "dataset_info.json") or {}
    features = (paths.read_json(data.folder / "features.json") or {}).get("featuresDict", {})
    return info.get("name") == data.dataset and set(features.get("features", ())) == FEATURES


def _lock(root: Path, data: DataSet) -> AbstractContextManager[None]:
    """Keeps other processes from preparing a data set; see `prepared.lock` for its errors."""
    is_package = data.folder.parent == root / data.dataset
    name = data.dataset if is_package else f"{data.dataset}-{data.name}"
    return prepared.lock(root, name, wait=False)


def status(root: Path, data: DataSet) -> str:
    """Whether the folder that a data set was made of still has its content."""
    if not data.finished:
        try:
            with _lock(root, data):
                return "interrupted"
        except PermissionError:  # on a read-only disk
            return "interrupted"
        except BlockingIOError:
            return "being prepared"
    if "source" not in data.metadata:
        return "generated"
    source = Path(data.metadata["source"])
    if not source.is_dir():
        return "missing"
    try:
        found = prepared.builder_package(data.dataset).scan(source)
    except (ValueError, OSError) as error:
        return f"not complete: {str(error).splitlines()[0]}"
    changes = versions.compare(found, versions.Version(data.folder, data.name, 0))
    if changes is not None:
        return str(changes)
    same = found.fingerprint == data.metadata["fingerprint"]
    return "unchanged" if same else "changed"


def _files(folder: Path) -> Iterator[os.stat_result]:
    return (path.stat() for path in folder.rglob("*") if path.is_file())


def show(root: Path, console: Console) -> None:
    """Prints the data sets in `root`."""
    found = find(root)
    if not found:
        console.print(Text(printable(f"No data set is prepared in {root}.")))
        return
    table = Table(title=Text(printable(f"Prepared in {root}")))
    for column in ("name", "version", "images", "size", "prepared", "source", "source now"):
        table.add_column(column, justify="right" if column in ("images", "size") else "left")
    sizes: dict[tuple[int, int], int] = {}  # versions share files
    for data in found:
        every = (file for folder in data.folders for file in _files(folder))
        sizes |= {(file.st_dev, file.st_ino): file.st_size for file in every}
        images, date = (f"{data.images:,}", data.date) if data.finished else ("-", "-")
        source = Text(printable(data.metadata.get("source", "-")))
        row = data.name, data.version, images, data.size, date, source
        table.add_row(*row, Text(printable(status(root, data))))
    table.add_section()
    table.add_row("together", "", "", decimal(sum(sizes.values())))
    console.print(table)


def chosen(root: Path, name: str) -> list[DataSet]:
    """The versions that NAME or NAME:VERSION selects.

    Raises:
      ValueError: none; suggests the nearest name.
    """
    found = find(root)
    wanted, _, version = name.partition(":")
    known = sorted({data.name for data in found} | {f"{x.name}:{x.version}" for x in found})
    selected = [x for x in found if x.name == wanted and version in ("", x.version)]
    if not selected:
        raise ValueError(
            f"There is no prepared data set {name!r} in {root}{suggest(name, known)}. "
            + (f"There are: {', '.join(known)}." if known else "Set --data_dir to another folder.")
        )
    if len({data.dataset for data in selected}) > 1:
        raise ValueError(f"The name {name!r} is that of several data sets: remove one by version.")
    return selected


def remove(root: Path, selected: Sequence[DataSet]) -> None:
    """Deletes prepared data sets, and what interrupted preparations of these versions left.

    Raises:
      OSError: one is being prepared, or cannot be deleted.
    """
    for data in selected:
        parent = data.folder.parent
        with _lock(root, data):
            for folder in data.folders:
                shutil.rmtree(folder)
            if not any(parent.iterdir()):
                parent.rmdir()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m data_pipelines.prepared",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser(
        "list",
        help="list the prepared data sets, and whether their sources still match",
        description="Lists name, version, number of images, size on disk, date and source of each "
        "prepared data set, and how the source differs now; an interrupted preparation is marked, "
        "and the next start resumes it. Versions of a folder share files of "
        "unchanged images, so that their sizes together are smaller than the sum.",
    )
    removing = commands.add_parser(
        "remove",
        help="remove a prepared data set, or one version of it",
        description="Deletes a prepared data set. Asks first. The folder that it was made of is "
        "not touched: the data set can be prepared again from it.",
    )
    removing.add_argument("name", metavar="NAME", help="as `list` shows it: NAME or NAME:VERSION")
    removing.add_argument("--yes", action="store_true", help="do not ask")
    for command in (listing, removing):
        command.add_argument(
            "--data_dir", help="folder of prepared data sets (default: ~/tensorflow_datasets)"
        )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the program with the arguments `argv`; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        root = prepared.root_of(options.data_dir)
        if options.command == "list":
            console = Console()
            if not console.is_terminal:
                console.width = WIDE
            show(root, console)
            sys.stdout.flush()
            return DONE
        selected = chosen(root, options.name)
        for data in selected:
            what = counted(data.images, "image", "images") if data.finished else "interrupted"
            print(printable(f"{data.name}:{data.version}, {what}, {data.size}, in {data.folder}"))
        if not options.yes:
            answer = input("Remove? [y/N] ") if sys.stdin.isatty() else ""
            if answer.strip().lower() not in ("y", "yes"):
                print("Nothing was removed. (--yes removes without asking.)")
                return FAILED
        remove(root, selected)
        print("Removed.")
    except BrokenPipeError:
        return OUTPUT_CLOSED if output_is_closed() else FAILED
    except (ValueError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, EOFError):
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    allow_any_name()
    sys.exit(main(sys.argv[1:]))
