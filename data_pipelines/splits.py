"""The seen and unseen classes of every zero-shot setting, as facts.

Seen classes train, unseen classes test. Sketchy has two divisions in the literature: split 1 (100 /
25) and split 2 (104 / 21, whose unseen classes are not in ImageNet); TU-Berlin Extended (220 / 30);
QuickDraw Extended (80 / 30); DomainNet, sketch to real (300 / 45). Class names are those of
`class_names`. Unseen classes stand in the published order, because validation takes every n-th
image in that order; the order of seen classes means nothing and is alphabetical.

Across data sets the same class goes by several names; `cross_dataset` finds those that training
would give away.
"""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import NamedTuple

from data_pipelines import class_names
from data_pipelines.builders.doodles import classes as doodles


@dataclasses.dataclass(frozen=True)
class Split:
    """One zero-shot setting: which classes of a data set train, and which test."""

    dataset: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class of the setting, alphabetically."""
        return tuple(sorted(self.seen + self.unseen))


def _split(dataset: str, classes: tuple[str, ...], unseen: str) -> Split:
    test = class_names.names(unseen)
    return Split(dataset, tuple(c for c in classes if c not in test), test)


SPLITS: Mapping[str, Split] = {
    "sketchy_split1": _split(
        "sketchy",
        class_names.SKETCHY,
        """
        cup, swan, harp, squirrel, snail, ray, pineapple, volcano, rifle, scissors, parrot,
        windmill, teddy_bear, tree, wine_bottle, deer, chicken, airplane, wheelchair, tank,
        umbrella, butterfly, camel, horse, bell
        """,
    ),
    "sketchy_split2": _split(
        "sketchy",
        class_names.SKETCHY,
        """
        bat, cabin, cow, dolphin, door, giraffe, helicopter, mouse, pear, raccoon, rhinoceros, saw,
        scissors, seagull, skyscraper, songbird, sword, tree, wheelchair, windmill, window
        """,
    ),
    "tuberlin": _split(
        "tuberlin",
        class_names.TUBERLIN,
        """
        banana, bus, tractor, suitcase, streetlight, telephone, bottle opener, canoe, fan, teacup,
        penguin, laptop, shoe, lighter, hot air balloon, pizza, brain, ant, t-shirt, trombone,
        windmill, snowboard, table, rollerblades, parachute, space shuttle, bridge, frying-pan,
        bread, horse
        """,
    ),
    "quickdraw": _split(
        "quickdraw",
        class_names.QUICKDRAW,
        """
        bat, cow, dolphin, door, giraffe, helicopter, mouse, raccoon, rhinoceros, saw, scissors,
        skyscraper, tree, windmill, feather, campfire, palm tree, fire_hydrant, bread, beach,
        megaphone, cactus, zebra, tiger, shark, frog, banana, cake, hamburger, fan
        """,
    ),
    # Mancini et al., "Towards Recognizing Unseen Categories in Unseen Domains" (CuMix, ECCV 2020),
    # data/DomainNet/*_classes.npy of their code, and the same lists in that of Paul et al.,
    # "Universal Cross-Domain Retrieval" (ICCV 2021): 245 classes for training, 55 for validation,
    # 45 for testing. Seen are the first two, which train for CuMix's final results.
    "domainnet": _split(
        "domainnet",
        class_names.DOMAINNET,
        """
        giraffe, parrot, dolphin, hamburger, lightning, peanut, watermelon, helicopter, boomerang,
        scissors, octopus, onion, bracelet, blueberry, cake, rainbow, donut, marker, bread,
        windmill, megaphone, ladder, rollerskates, sweater, motorbike, airplane, asparagus, cloud,
        suitcase, sailboat, snowman, bandage, beard, moon, hurricane, peas, skateboard, axe, elbow,
        campfire, grapes, skyscraper, tornado, tooth, finger
        """,
    ),
    "doodles": Split("doodles", doodles.SEEN, doodles.UNSEEN),
}


def get(name: str) -> Split:
    """The split of that name.

    Raises:
      ValueError: naming the nearest valid name.
    """
    if name not in SPLITS:
        raise ValueError(
            f"There is no split {name!r}{_did_you_mean(name, SPLITS)}. Set config.data.split to "
            f"one of {', '.join(SPLITS)}."
        )
    return SPLITS[name]


_SAME = (
    ("motorcycle", "motorbike"),
    ("crocodilian", "crocodile"),
    ("racket", "tennis-racket", "tennis_racquet"),
    ("tv", "television"),
    ("trousers", "pants"),
    ("socks", "sock"),
    ("eiffel tower", "The_Eiffel_Tower"),
)
"""Classes of Sketchy, TU-Berlin, QuickDraw and DomainNet that are the same under other names.

Only what is certain: a class that is part of another (armchair and chair, race car and car, mug and
cup) or merely near it (rollerblades and rollerskates, pistol and revolver) is another class.
"""


def normalised(name: str) -> str:
    """The name without what spelling adds: case, spaces, `_`, `-` and qualifiers in parentheses.

    `hot-air_balloon` and `hot air balloon` are both `hotairballoon`, `bear (animal)` is `bear`.
    Normalising twice changes nothing.
    """
    without_qualifier = re.sub(r"\([^()]*\)", "", name)
    return _without_separators(without_qualifier) or _without_separators(name)


def _without_separators(name: str) -> str:
    return re.sub(r"[\s_()-]", "", name).casefold()


_CANONICAL = {normalised(name): normalised(group[0]) for group in _SAME for name in group}


def canonical(name: str) -> str:
    """One name for everything that is the same class: normalised, and of synonyms always one."""
    return _CANONICAL.get(normalised(name), normalised(name))


class CrossDataset(NamedTuple):
    """What is left of a data set's unseen classes after training on another data set.

    Attributes:
      kept: unseen classes of the target, in its order.
      excluded: unseen class of the target -> the seen class of the source that it is.
    """

    kept: tuple[str, ...]
    excluded: Mapping[str, str]


def same_classes(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Each of `names` that is one of `others` under whatever name -> what it is called there."""
    known = {canonical(other): other for other in others}
    return {name: known[canonical(name)] for name in names if canonical(name) in known}


def cross_dataset(source: Split, target: Split) -> CrossDataset:
    """The unseen classes of `target` that training on the seen classes of `source` leaves unseen.

    Raises:
      ValueError: when none is left, listing what each of them is in the source.
    """
    excluded = same_classes(target.unseen, source.seen)
    kept = tuple(c for c in target.unseen if c not in excluded)
    if not kept:
        names = ", ".join(f"{ours} (as {theirs})" for ours, theirs in excluded.items())
        raise ValueError(
            f"Nothing of {target.dataset} is unseen after training on {source.dataset}: training "
            f"sees all of its {len(target.unseen)} unseen classes: {names}. Choose another pair of "
            "data sets or splits."
        )
    return CrossDataset(kept, excluded)


class ClassNamesError(ValueError):
    """The classes on disk are not those that are asked for.

    Attributes:
      where: what was looked at.
      missing: names that are asked for and not found.
      unknown: name found, if it is not allowed -> the nearest name asked for, "" if none is near.
    """

    def __init__(self, message: str, where: str, missing: list[str], unknown: dict[str, str]):
        super().__init__(message)
        self.where, self.missing, self.unknown = where, missing, unknown


_collected: ContextVar[list[ValueError] | None] = ContextVar("_collected", default=None)


@contextlib.contextmanager
def collecting_errors() -> Iterator[list[ValueError]]:
    """Within it, `raise_or_collect` lists errors instead of raising them: to report them all."""
    errors: list[ValueError] = []
    token = _collected.set(errors)
    try:
        yield errors
    finally:
        _collected.reset(token)


def raise_or_collect(error: ValueError) -> None:
    """Raises `error`; within `collecting_errors` lists it, and the caller goes on as it can."""
    if (errors := _collected.get()) is None:
        raise error
    errors.append(error)


def check_classes(
    found: Collection[str], expected: Collection[str], where: str, *, allow_more: bool = False
) -> None:
    """Checks that the classes on disk are those that are asked for.

    Args:
      found: class names as on disk.
      expected: class names asked for.
      where: what was looked at, for the message: a folder, a prepared data set.
      allow_more: whether `found` may hold classes that nobody asked for.

    Raises:
      ClassNamesError: listing every missing and every unknown name, each unknown with the nearest
        name that is missing.
    """
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if not missing and (allow_more or not unknown):
        return
    parts = []
    if missing:
        hint = (lambda name: _did_you_mean(name, unknown)) if allow_more else (lambda name: "")
        names = ", ".join(name + hint(name) for name in missing)
        parts.append(f"{len(missing)} of {len(expected)} are missing: {names}")
    if unknown and not allow_more:
        names = ", ".join(name + _did_you_mean(name, missing or expected) for name in unknown)
        parts.append(f"{len(unknown)} are unknown: {names}")
    raise_or_collect(
        ClassNamesError(
            f"The classes in {where} do not match: {'; '.join(parts)}. Rename the folders to the "
            "published names, or unpack the archive again.",
            where,
            missing,
            {} if allow_more else {name: nearest(name, missing or expected) for name in unknown},
        )
    )


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name that `name` was probably meant to be, or "" when none is near."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1)), "")


def _did_you_mean(name: str, valid: Iterable[str]) -> str:
    """' (did you mean X?)', or nothing when no valid name is near."""
    near = nearest(name, valid)
    return f" (did you mean {near}?)" if near else ""
