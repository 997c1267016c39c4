"""Checks every file of an unpacked data set, and reports whether it is fit for its purpose.

    python -m data_pipelines.check --dataset=sketchy --manual_dir=DIR --contact_sheet=sheet.png
    python -m data_pipelines.check --dataset=sketchy --manual_dir=DIR --for=evaluate

Reads the folder that you set as config.data.manual_dir; the data set need not be prepared yet.
Training needs the seen and the unseen classes, evaluation only the unseen ones. Preparation and
loading apply the same rules.
"""

import argparse
import collections
import dataclasses
import importlib
import io
import json
import logging
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipelines import builders, class_names, paths, splits
from data_pipelines.builders import folders
from data_pipelines.checking import contact_sheet, findings, inspection
from data_pipelines.files import nothing_in
from data_pipelines.suggestions import counted, suggest
from data_pipelines.terminal import OUTPUT_CLOSED, WIDE, allow_any_name, output_is_closed, printable

FIT, UNFIT, NOT_CHECKED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""

_EXAMPLES = 5
"""Number of items printed for each finding; --json lists all."""

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


class Report(NamedTuple):
    """The findings, and whether the data set is fit for its purpose."""

    data: findings.DataSet
    findings: Sequence[findings.Finding]

    @property
    def fit(self) -> bool:
        """Whether there are images and no errors."""
        return bool(self.data.inspected) and not any(
            finding.severity == "error" for finding in self.findings
        )

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        data, split = self.data, self.data.split
        sides: Mapping[str, tuple[str, ...]] = {"seen": split.seen, "unseen": split.unseen}
        counts = {}
        for modality in data.source.images:
            per_class = data.counts(modality)
            total = {side: sum(per_class.get(c, 0) for c in sides[side]) for side in sides}
            counts[modality] = {**total, "classes": per_class}
        severities = collections.Counter(finding.severity for finding in self.findings)
        return {
            "dataset": split.dataset,
            "split": data.split_name or None,
            "root": str(data.source.root),
            "for": data.purpose,
            "fit": self.fit,
            "errors": severities["error"],
            "warnings": severities["warning"],
            "counts": counts,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }


def check(
    dataset: str,
    manual_dir: Path,
    *,
    split: str | None = None,
    unseen: Sequence[str] = (),
    held_out_seed: int = 0,
    purpose: splits.Purpose = "train",
    accept: Sequence[str] = (),
) -> Report:
    """Checks the data set in `manual_dir`, like the program.

    Args:
      dataset: a package of `data_pipelines.builders` for unpacked data.
      manual_dir: folder of the unpacked data set.
      split: one of `splits.SPLITS`; the data set's first split if None.
      unseen: the unseen classes of a data set without a published split, or a share of its classes.
      held_out_seed: by which a share is drawn, as config.data.held_out_seed.
      purpose: "train" needs all classes, "evaluate" only the unseen ones.
      accept: checks of `findings.CHECKS` whose findings count as notes.

    Raises:
      ValueError: for an unknown name, suggesting the nearest valid one, or a check that cannot be
        accepted.
      FileNotFoundError: if `manual_dir` is empty or missing.
    """
    package = _package_of(dataset)
    split_name = _split_name(dataset, split, unseen)
    for name in accept:
        if name not in findings.CHECKS:
            raise _unknown("check", name, findings.CHECKS, "--accept")
        if not findings.CHECKS[name].acceptable:
            raise ValueError(
                f"--accept={name}: these findings cannot be accepted, because preparation or "
                "loading ends with the same error. If only the unseen classes are needed, check "
                "with --for=evaluate."
            )
    if problem := nothing_in(manual_dir):
        wanted = f"of the unpacked data set {dataset!r}"
        if layout := getattr(package, "LAYOUT", None):
            wanted = f"that contains your images: {layout}"
        raise FileNotFoundError(f"{manual_dir} {problem}. Set --manual_dir to the folder {wanted}.")
    source = folders.Source(manual_dir, {"sketch": [], "photo": []})
    broken: list[Exception] = []
    with splits.collecting_errors() as collected:
        try:
            source = package.scan(manual_dir)
        except (ValueError, OSError) as error:
            broken.append(error)
    if split_name:
        setting = splits.SPLITS[split_name]
    else:
        setting = _own_split(dataset, source, unseen, held_out_seed)
    files = [file for files in source.images.values() for file in files]
    data = findings.DataSet(source, inspection.inspect_all(files), setting, split_name, purpose)
    if broken:  # The files could not be listed, so other checks do not apply.
        errors = findings.from_errors([*collected, *broken])
        return Report(data, findings.graded(errors, purpose, accept))
    return Report(data, findings.find_all(data, collected, accept))


def _package_of(dataset: str) -> ModuleType:
    """The package of a data set that `scan` can list."""
    packages = [module.name for module in pkgutil.iter_modules(builders.__path__) if module.ispkg]
    modules = {name: importlib.import_module(f"{builders.__name__}.{name}") for name in packages}
    unpacked = {name: module for name, module in modules.items() if hasattr(module, "scan")}
    if dataset in modules and dataset not in unpacked:
        raise ValueError(
            f"The data set {dataset!r} is generated or downloaded automatically; there is no "
            "folder to check."
        )
    if dataset not in unpacked:
        raise _unknown("data set", dataset, unpacked, "--dataset")
    return unpacked[dataset]


def _split_name(dataset: str, split: str | None, unseen: Sequence[str]) -> str:
    own = [name for name, setting in splits.SPLITS.items() if setting.dataset == dataset]
    if own and unseen:
        raise ValueError(
            f"The unseen classes of {dataset!r} are published: choose --split={'|'.join(own)} "
            "instead of --unseen."
        )
    if split is None:
        return own[0] if own else ""
    if split not in splits.SPLITS:
        raise _unknown("split", split, own or splits.SPLITS, "--split")
    if split not in own:
        raise ValueError(
            f"The split {split!r} belongs to the data set {splits.SPLITS[split].dataset!r}, not to "
            f"{dataset!r}. "
            + (f"Set --split to one of {', '.join(own)}." if own else "Use --unseen instead.")
        )
    return split


def _own_split(
    dataset: str, source: folders.Source, unseen: Sequence[str], seed: int
) -> splits.Split:
    found = {file.class_name for files in source.images.values() for file in files}
    unseen = [*map(class_names.normal, unseen)]
    if len(unseen) == 1 and (share := splits.share_of(unseen[0])) is not None and found:
        unseen = [*splits.draw(found, share, seed)]
    for name in unseen:
        if found and name not in found:
            raise _unknown("class", name, sorted(found), "--unseen")
    return splits.Split(dataset, tuple(sorted(found - {*unseen})), tuple(unseen))


def _unknown(what: str, name: str, valid: Any, flag: str) -> ValueError:
    return ValueError(
        f"There is no {what} {name!r}{suggest(name, valid)}. Set {flag} to one of "
        f"{', '.join(valid)}."
    )


def show(report: Report, console: Console) -> None:
    """Prints the counts of each class, the findings and the result."""
    if report.data.inspected:
        console.print(_counts_table(report.data))
    for finding in report.findings:
        line = Text(f"{finding.severity} ", style=_STYLES[finding.severity])
        message = printable(f"{finding.check}: {finding.message}")
        console.print(line.append(message, style="default"))
        if finding.check == "names":  # its files are not wrong
            continue
        for item in finding.items[:_EXAMPLES]:
            separator = " = " if finding.check in ("leakage", "labels", "duplicates") else ": "
            console.print(Text(printable(f"    {separator.join(item)}")), soft_wrap=True)
        if len(finding.items) > _EXAMPLES:
            console.print(f"    and {len(finding.items) - _EXAMPLES:,} more; --json lists all")
    on = f"fit to {report.data.purpose} on"
    errors = {finding.check for finding in report.findings if finding.severity == "error"}
    acceptable = [name for name in errors if findings.CHECKS[name].acceptable]
    unfit = f"NOT {on}: see the errors above"
    unfit += (
        f"; --accept={','.join(sorted(acceptable))} turns them into notes" if acceptable else ""
    )
    result = on if report.fit else unfit
    console.print(Text(result, style="bold green" if report.fit else "bold red"))


def _counts_table(data: findings.DataSet) -> Table:
    title = f"{data.split_name or data.split.dataset} in {data.source.root}"
    table = Table(title=Text(printable(title)))
    table.add_column("class")
    table.add_column("")
    counts = {modality: data.counts(modality) for modality in data.source.images}
    for modality in counts:
        table.add_column(modality, justify="right")
    names = sorted({name for found in counts.values() for name in found})
    sides = dict.fromkeys(names, "unknown") | dict.fromkeys(data.split.seen, "seen")
    sides |= dict.fromkeys(data.split.unseen, "unseen")
    for name in sorted(names, key=lambda name: (sides[name] != "unseen", name)):
        table.add_row(
            Text(printable(name)), sides[name], *(str(found[name]) for found in counts.values())
        )
    table.add_section()
    for side in ("unseen", "seen"):
        within = [name for name in names if sides[name] == side]
        totals = (str(sum(found[name] for name in within)) for found in counts.values())
        table.add_row(counted(len(within), "class", "classes"), side, *totals, style="bold")
    return table


class _Parser(argparse.ArgumentParser):
    """Raises errors as exceptions instead of exiting."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}. --help lists the flags.")


def _parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {n:<11}{c.severity:<9}{c.meaning}" for n, c in findings.CHECKS.items())
    parser = _Parser(
        "python -m data_pipelines.check",
        description=__doc__,
        epilog=f"Checks, in order:\n{kinds}\n\n"
        "Exit code: 0 without errors (fit), 1 with errors, 2 if nothing was checked (wrong flag,\n"
        "empty folder).\n"
        "Decoded pixels are compared exactly: resized or recompressed copies are not found.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", required=True, help="name of an unpacked data set, such as sketchy")
    add("--manual_dir", required=True, type=_path("manual_dir"), help="folder of the data set")
    add("--split", help="published split of the data set; default: its first one")
    add(
        "--for",
        dest="purpose",
        choices=get_args(splits.Purpose),
        default="train",
        help="evaluate needs the unseen classes only; default: train",
    )
    help_ = 'unseen classes of your own data: A,B,"C, D",... or a share of the classes: 20%%'
    add("--unseen", type=_listed, default=(), help=help_)
    help_ = "config.data.held_out_seed of the training, which draws the share; default: 0"
    add("--held_out_seed", type=int, default=0, help=help_)
    help_ = "checks whose findings count as notes: A,B,..."
    add("--accept", type=_listed, default=(), help=help_)
    add(
        "--contact_sheet",
        type=_path("contact_sheet"),
        help="write an overview of some images of each class: FILE.png",
    )
    add("--json", action="store_true", help="print only one JSON object on stdout")
    return parser


def _path(flag: str) -> Callable[[str], Path]:
    def read(text: str) -> Path:
        try:
            return paths.local(text, f"--{flag}")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _listed(text: str) -> tuple[str, ...]:
    try:
        return class_names.listed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str]) -> int:
    """Runs the program with the arguments `argv`; returns the exit code."""
    try:
        options, unknown = _parser().parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            known = [f"--{name}" for name in vars(options)]
            raise ValueError(f"There is no flag {flag}{suggest(flag, known)}. See --help.")
        sheet = options.contact_sheet
        if sheet and (sheet.suffix.lower() != ".png" or not sheet.absolute().parent.is_dir()):
            raise ValueError(f"--contact_sheet={sheet} must be FILE.png in an existing folder.")
        report = check(
            options.dataset,
            options.manual_dir,
            split=options.split,
            unseen=options.unseen,
            held_out_seed=options.held_out_seed,
            purpose=options.purpose,
            accept=options.accept,
        )
        if sheet:
            picture = io.BytesIO()
            contact_sheet.contact_sheet(report.data).save(picture, "PNG")
            paths.replace(sheet, picture.getvalue())
    except (ValueError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return NOT_CHECKED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    try:
        if options.json:
            print(json.dumps({**report.as_json(), "contact_sheet": sheet and str(sheet)}))
        else:
            console = Console()
            if not console.is_terminal:
                console.width = WIDE
            show(report, console)
            if sheet:
                print(f"Contact sheet: {sheet}")
        sys.stdout.flush()
    except BrokenPipeError:
        return OUTPUT_CLOSED if output_is_closed() else UNFIT
    return FIT if report.fit else UNFIT


if __name__ == "__main__":
    allow_any_name()
    logging.getLogger("data_pipelines").setLevel(logging.ERROR)  # The report includes the warnings.
    sys.exit(main(sys.argv[1:]))
