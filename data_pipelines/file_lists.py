"""The published file lists of the benchmarks, which define the members of a split and their order.

    DIR/<sketches>_filelist_train.txt, DIR/<photos>_filelist_train.txt     training images
        <sketches>_filelist_zero.txt,  <photos>_filelist_zero.txt          images of unseen classes

A line is a path, whose last folder is the class, and the number of the class:

    256x256/sketch/tx_000000000000_ready/cabin/n02927161_5720-4.png 14

ZSE (Lin et al., CVPR 2023) and others use those of Dutta and Akata (CVPR 2019) and Liu et al. (ICCV
2019): `zeroshot1` and `zeroshot0` for Sketchy's splits 1 and 2, `zeroshot` for TU-Berlin and
QuickDraw (whose files are named sketch_train.txt, all_photo_train.txt). The `test` lists contain
images of seen classes that neither train nor are ranked; they are not used.
"""

import collections
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from data_pipelines import paths
from data_pipelines.images import Modality
from data_pipelines.loading import Items

Part = Literal["train", "zero"]

_NAMES: dict[Modality, tuple[str, ...]] = {
    "sketch": ("sketch", "png"),
    "photo": ("all_photo", "photo", "imageresized", "image"),
}
"""Beginnings of the files' names, the preferred one first: `all_photo` includes the extension."""


def find(folder: str | Path, part: Part, modality: Modality) -> Path:
    """The list of one part and modality in `folder`.

    Raises:
      FileNotFoundError: there is none, or more than one; lists the files that are there.
    """
    folder = paths.local(folder, "config.data.lists")
    there = sorted(path for path in folder.glob("*.txt") if path.stem.lower().endswith(part))
    for prefix in _NAMES[modality]:
        if len(found := [x for x in there if x.name.lower().startswith(prefix)]) == 1:
            return found[0]
        if found:
            there = found
            break
    names = ", ".join(path.name for path in there) or f"no file *{part}.txt"
    raise FileNotFoundError(
        f"config.data.lists={folder} must contain one list of {modality} images for the part "
        f"{part!r}, such as {_NAMES[modality][0]}_filelist_{part}.txt, but contains {names}."
    )


def select(items: Items, lists: Sequence[Path], *, missing_ok: bool = False) -> Items:
    """The items of some lists, in their order.

    Paths match by their class and file name. If several items have both, the one with the most
    folders in common is taken; the suffix `_ready` of a folder does not matter.

    Args:
      items: of one modality, of all classes that the lists may contain.
      lists: the files.
      missing_ok: leave out listed images that `items` do not contain, such as unreadable ones.

    Raises:
      ValueError: a line is malformed, an image is listed twice, or `items` lack listed images.
    """
    position: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for i, (name, label) in enumerate(zip(items.names, items.labels.tolist(), strict=True)):
        position[items.class_names[label], PurePosixPath(name).name].append(i)
    chosen: dict[int, None] = {}
    missing = []
    for file in lists:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            path, _, label = line.strip().rpartition(" ")
            parts = _parts(path)
            if not label.isdigit() or len(parts) < 2:
                raise ValueError(
                    f"{file}, line {number}: {line!r} is not PATH NUMBER, such as 'cat/1.png 3'."
                )
            candidates = position.get((PurePosixPath(path).parts[-2], parts[-1]), [])
            if not candidates:
                missing.append(path)
                continue
            best = max(candidates, key=lambda i: len(set(parts) & set(_parts(items.names[i]))))
            if best in chosen:
                raise ValueError(f"{file}, line {number}: {path} is listed twice.")
            chosen[best] = None
    if not chosen or (missing and not missing_ok):
        raise ValueError(
            f"{len(missing)} of the {len(missing) + len(chosen)} {items.modality} images listed in "
            f"{', '.join(map(str, lists))} are not in the prepared data set and its "
            f"{len(items.class_names)} classes, the first is {missing[0] if missing else '-'}. Use "
            "the lists of this data set and split (config.data.lists), and the complete data set."
        )
    return items.select([*chosen])


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part.removesuffix("_ready") for part in PurePosixPath(path).parts)
