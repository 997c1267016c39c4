"""Problems of a data set on disk, found from its files and the results of `inspection`.

Each function checks one thing and yields findings. `CHECKS` lists all checks with their severity.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from data_pipelines import images, splits
from data_pipelines.builders import folders
from data_pipelines.checking import published
from data_pipelines.checking.inspection import Inspected
from data_pipelines.suggestions import counted

Severity = Literal["error", "warning", "note"]


class Check(NamedTuple):
    """One kind of finding.

    Attributes:
      severity: for training.
      meaning: what is wrong.
      for_evaluation: severity for evaluation; None: the same.
      acceptable: whether a user can accept it. Preparation or loading ends with an error otherwise.
    """

    severity: Severity
    meaning: str
    for_evaluation: Severity | None = None
    acceptable: bool = True


CHECKS: Mapping[str, Check] = {
    "layout": Check(
        "error", "the folders do not match the layout, or a class is empty", acceptable=False
    ),
    "classes": Check(
        "error",
        "class folders of unknown names, needed classes without a readable image, too few classes",
        acceptable=False,
    ),
    "unreadable": Check("error", "images that do not decode; skip_unreadable leaves them out"),
    "leakage": Check(
        "error", "the same pixels in a seen and in an unseen class", for_evaluation="warning"
    ),
    "split": Check(
        "warning",
        "no unseen classes are given, so leakage cannot be checked",
        for_evaluation="error",
    ),
    "counts": Check("warning", "numbers of images that differ from the published lists"),
    "labels": Check("warning", "the same pixels in several classes, all seen or all unseen"),
    "duplicates": Check("warning", "the same pixels more than once in a class"),
    "blank": Check("warning", "images of one colour, and sketches without ink"),
    "pairs": Check("warning", "sketches without their photo, and photos without sketches"),
    "ignored": Check("warning", "files that are not images"),
    "names": Check("note", "sketches and photos of your own that are pairs by their names"),
    "metadata": Check("note", "images whose metadata cannot be read: they may lie on their side"),
    "repeats": Check("note", "photos that the data set contains twice on purpose"),
}
"""Errors make a data set unfit for its purpose. Warnings make it smaller or less comparable."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    Attributes:
      check: a key of `CHECKS`.
      message: a sentence with the numbers.
      items: rows of a file and the reason, or of equal files.
      severity: severity of the check, or "note" if the user accepts it.
    """

    check: str
    message: str
    items: tuple[tuple[str, ...], ...] = ()
    severity: Severity = "note"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The checked data set: its files, their properties, and its seen and unseen classes.

    `split_name` is "" for a data set without a published split. `purpose` is what it is checked
    for.
    """

    source: folders.Source
    inspected: Mapping[str, Inspected]
    split: splits.Split
    split_name: str = ""
    purpose: splits.Purpose = "train"

    @property
    def files(self) -> list[folders.ImageFile]:
        """The images of all modalities."""
        return [file for files in self.source.images.values() for file in files]

    def counts(self, modality: images.Modality) -> dict[str, int]:
        """Number of images of each class of the split, and of all other classes found."""
        found = collections.Counter(f.class_name for f in self.source.images[modality])
        names = {*self.split.classes, *(file.class_name for file in self.files)}
        return {c: found[c] for c in sorted(names)}


def find_all(
    data: DataSet, errors: Collection[Exception] = (), accept: Collection[str] = ()
) -> list[Finding]:
    """All findings of the data set, the most severe first.

    Args:
      data: the data set.
      errors: errors raised while listing its files.
      accept: checks whose findings count as notes.
    """
    found = [
        *from_errors(errors),
        *classes(data, errors),
        *unreadable(data),
        *same_pixels(data),
        *without_split(data),
        *counts(data),
        *blank(data),
        *pairs(data),
        *ignored(data),
        *metadata(data),
    ]
    return graded(found, data.purpose, accept)


def graded(
    found: Iterable[Finding], purpose: splits.Purpose, accept: Collection[str] = ()
) -> list[Finding]:
    """The findings with their severity, in the order of `CHECKS`; accepted ones are notes."""

    def severity(check: str) -> Severity:
        known = CHECKS[check]
        if check in accept:
            return "note"
        return (purpose == "evaluate" and known.for_evaluation) or known.severity

    known = [dataclasses.replace(f, severity=severity(f.check)) for f in found]
    return sorted(known, key=lambda finding: list(CHECKS).index(finding.check))


def from_errors(errors: Collection[Exception]) -> Iterator[Finding]:
    """Findings for mismatched class names, with suggestions, and for other errors."""
    for error in errors:
        if isinstance(error, splits.ClassNamesError):
            rows = [(name, "is missing") for name in error.missing]
            for name, near in error.unknown.items():
                rows.append((name, f"is unknown: did you mean {near}?" if near else "is unknown"))
            yield Finding(
                "classes",
                f"{counted(len(error.unknown), 'class folder has', 'class folders have')} unknown "
                f"names in {error.where}, and {len(error.missing)} are missing. "
                f"{splits.PUBLISHED_NAMES}",
                tuple(rows),
            )
        else:
            yield Finding("layout", " ".join(str(error).split()))


def classes(data: DataSet, errors: Collection[Exception] = ()) -> Iterator[Finding]:
    """Needed classes without a readable image, and too few classes to train on."""
    missing = {name for e in errors for name in getattr(e, "missing", ())}
    if data.purpose == "train" and (reason := splits.too_few_classes(data.split.seen)):
        yield Finding("classes", reason)
    for modality in data.source.images:
        usable = {
            file.class_name
            for file in data.source.images[modality]
            if not data.inspected[file.name].unreadable
        }
        needed = splits.needed(data.split, data.purpose)
        none = [c for c in sorted(needed) if c not in usable and c not in missing]
        if none:
            classes_have = counted(len(none), "needed class has", "needed classes have")
            yield Finding(
                "classes",
                f"{classes_have} no readable {modality}.",
                tuple((c, f"has no {modality}") for c in none),
            )


def unreadable(data: DataSet) -> Iterator[Finding]:
    """Images that do not decode, with the reason."""
    rows = tuple((name, i.unreadable) for name, i in data.inspected.items() if i.unreadable)
    if rows:
        yield Finding(
            "unreadable",
            f"{len(rows):,} of {len(data.inspected):,} images cannot be read. Unpack them again, "
            "or skip them: --config.data.skip_unreadable=True.",
            rows,
        )


def same_pixels(data: DataSet) -> Iterator[Finding]:
    """Images with the same pixels: leakage from seen to unseen, conflicting labels, duplicates."""
    groups: dict[bytes, list[folders.ImageFile]] = collections.defaultdict(list)
    for file in data.files:
        seen = data.inspected[file.name]
        if not seen.unreadable and not seen.one_colour:  # Reported as blank instead.
            groups[seen.digest].append(file)
    repeats = _repeats(data, groups)
    seen_classes, unseen_classes = frozenset(data.split.seen), frozenset(data.split.unseen)
    rows: dict[str, list[tuple[str, ...]]] = {"leakage": [], "labels": [], "duplicates": []}
    for group in groups.values():
        among = {file.class_name for file in group}
        if among & seen_classes and among & unseen_classes:
            rows["leakage"].append(tuple(file.name for file in group))
        elif len(among) > 1:
            rows["labels"].append(tuple(file.name for file in group))
        elif len(left := [file.name for file in group if file.name not in repeats]) > 1:
            rows["duplicates"].append(tuple(left))
    messages = {
        "leakage": "in a seen and an unseen class: test images are trained on.",
        "labels": "in several classes, so the label is ambiguous.",
        "duplicates": "more than once in the same class.",
    }
    for check, found in rows.items():
        if found:
            images_are = counted(len(found), "image is", "images are")
            yield Finding(check, f"{images_are} {messages[check]}", tuple(found))
    if repeats:
        yield Finding(
            "repeats",
            f"{counted(len(repeats), 'photo repeats', 'photos repeat')} drawn photos, as "
            "published: the galleries in the papers contain both.",
        )


def _repeats(data: DataSet, groups: Mapping[bytes, list[folders.ImageFile]]) -> set[str]:
    """Names of extension photos that repeat a drawn photo of their class (same name or pixels)."""
    if data.split.dataset not in published.REPEATS_DRAWN_PHOTOS:
        return set()
    photos = data.source.images["photo"]
    drawn = {(photo.class_name, photo.instance) for photo in photos if photo.instance}
    further = {photo.name for photo in photos if not photo.instance}
    stems = {p.name: (p.class_name, PurePosixPath(p.name).stem) for p in photos}
    repeats = {name for name in further if stems[name] in drawn}
    for group in groups.values():
        of = {f.class_name for f in group if f.instance and f.name not in further}
        repeats |= {f.name for f in group if f.name in further and f.class_name in of}
    return repeats


def without_split(data: DataSet) -> Iterator[Finding]:
    """A finding if no unseen classes are given."""
    if not data.split.unseen:
        yield Finding(
            "split",
            "No unseen classes are given, so leakage from seen to unseen classes cannot be "
            "checked. Set --unseen=A,B.",
        )


def counts(data: DataSet) -> Iterator[Finding]:
    """Numbers of images that differ from the published lists."""
    for modality, listed in published.LISTED.get(data.split_name, {}).items():
        found = data.counts(modality)
        unseen = sum(found.get(c, 0) for c in data.split.unseen)
        seen = sum(found.get(c, 0) for c in data.split.seen)
        if unseen != listed.unseen:
            yield Finding(
                "counts",
                f"The unseen classes have {unseen:,} {_plural(modality)}, the published test list "
                f"{listed.unseen:,}: results are not comparable with published ones.",
            )
        if data.purpose == "train" and listed.seen is not None and seen < listed.seen:
            yield Finding(
                "counts",
                f"The seen classes have {seen:,} {_plural(modality)}, the published training list "
                f"{listed.seen:,}.",
            )
    dataset = data.split.dataset
    drawn = collections.Counter(f.class_name for f in data.source.images["photo"] if f.instance)
    for found, expected, what in (
        (data.counts("sketch"), published.SKETCHES_PER_CLASS.get(dataset), "sketches"),
        (drawn, published.DRAWN_PHOTOS_PER_CLASS.get(dataset), "drawn photos"),
    ):
        if expected is not None:
            classes = sorted(splits.needed(data.split, data.purpose))
            rows = [(c, f"{found.get(c, 0)} {what}") for c in classes]
            rows = [row for row in rows if row[1] != f"{expected} {what}"]
            if rows:
                yield Finding(
                    "counts",
                    f"{len(rows)} of {len(classes)} classes do not have the "
                    f"published {expected} {what}.",
                    tuple(rows),
                )


def _plural(modality: images.Modality) -> str:
    return "sketches" if modality == "sketch" else "photos"


def blank(data: DataSet) -> Iterator[Finding]:
    """Images of one colour, and sketches without ink."""
    rows = []
    for modality, files in data.source.images.items():
        for file in files:
            seen = data.inspected[file.name]
            if seen.one_colour:
                rows.append((file.name, "has only one colour"))
            elif modality == "sketch" and seen.inkless:
                rows.append((file.name, "has no pixel with R + G + B <= 300 and is not cropped"))
    if rows:
        blank_images = counted(len(rows), "image is blank or has", "images are blank or have")
        yield Finding("blank", f"{blank_images} no ink.", tuple(rows))


def pairs(data: DataSet) -> Iterator[Finding]:
    """Missing and ambiguous instance pairs, in data sets with such pairs.

    Of a user's own folder without a list of pairs, only how many there are: equal names may be
    accidental.
    """
    sketches, photos = data.source.images["sketch"], data.source.images["photo"]
    if not any(file.instance for file in sketches):
        return
    drawn = {(file.class_name, file.instance) for file in sketches}
    shown = collections.Counter((f.class_name, f.instance) for f in photos if f.instance)
    alone = [file for file in sketches if (file.class_name, file.instance) not in shown]
    undrawn = [f for f in photos if f.instance and (f.class_name, f.instance) not in drawn]
    if data.split.dataset == "folder" and not (data.source.root / "pairs.csv").is_file():
        of = f"one of {counted(len(photos), 'photo', 'photos')} by their names"
        yield Finding(
            "names",
            f"{len(sketches) - len(alone):,} of {len(sketches):,} sketches are paired with {of}. "
            "Only fine-grained retrieval uses this; pairs.csv replaces it, and is checked."
            + (" --json lists images without a pair." if alone or undrawn else ""),
            tuple((file.name,) for file in (*alone, *undrawn)),
        )
        return
    twice = [f for f in photos if shown[f.class_name, f.instance] > 1]
    for files, message, reason in (
        (alone, f"of {len(sketches):,} sketches without a paired photo", "its photo: {}"),
        (undrawn, f"of {sum(shown.values()):,} photos without a paired sketch", "no sketch of {}"),
        (twice, "photos with the instance of another photo: ambiguous pairs", "{}"),
    ):
        if files:
            yield Finding(
                "pairs",
                f"{len(files):,} {message} (matters for fine-grained retrieval).",
                tuple((file.name, reason.format(file.instance or "unknown")) for file in files),
            )


def ignored(data: DataSet) -> Iterator[Finding]:
    """Files that are not images, which preparation skips."""
    if data.source.ignored:
        yield Finding(
            "ignored",
            f"{counted(len(data.source.ignored), 'file is', 'files are')} skipped, because only "
            f"{', '.join(images.SUFFIXES)} are images.",
            tuple((name,) for name in data.source.ignored),
        )


def metadata(data: DataSet) -> Iterator[Finding]:
    """Images whose metadata is damaged; their pixels are used as they are stored."""
    rows = tuple((name,) for name, seen in data.inspected.items() if seen.damaged_metadata)
    if rows:
        images_have = counted(len(rows), "image has", "images have")
        yield Finding("metadata", f"{images_have} damaged metadata.", rows)
