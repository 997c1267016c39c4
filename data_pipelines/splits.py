"""The seen and unseen classes of every zero-shot setting.

Seen classes are for training, unseen classes for testing. Seen / unseen classes: Sketchy split 1
(100 / 25) and split 2 (104 / 21; its unseen classes are not in ImageNet), TU-Berlin Extended (220 /
30), QuickDraw Extended (80 / 30), DomainNet, sketch to real (245 / 45,
and 55 for validation). Class names are those of
`class_names`. Unseen classes are in the published order, because validation takes every n-th image
in this order. Seen classes are in alphabetical order.

Data sets may have different names for the same class; `cross_dataset` excludes the unseen classes
that are seen under another name.
"""

import contextlib
import dataclasses
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Literal, NamedTuple

import numpy as np

from data_pipelines import class_names
from data_pipelines.builders.doodles import classes as doodles
from data_pipelines.suggestions import nearest, suggest


@dataclasses.dataclass(frozen=True)
class Split:
    """One zero-shot setting: the seen (training) and unseen (test) classes of a data set.

    `validation` classes, if the protocol has them, neither train nor are tested: checkpoints are
    selected by them.
    """

    dataset: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    validation: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the setting, in alphabetical order."""
        return tuple(sorted(self.seen + self.validation + self.unseen))


def _split(dataset: str, classes: tuple[str, ...], unseen: str, validation: str = "") -> Split:
    test = class_names.names(unseen)
    selecting = class_names.names(validation) if validation else ()
    seen = tuple(c for c in classes if c not in test + selecting)
    return Split(dataset, seen, test, selecting)


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
    # 45 for testing. (CuMix trains on the first two for its final results, UCDR on the first.)
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
        validation="""
        angel, animal_migration, anvil, birthday_cake, teddy-bear, camouflage, carrot,
        ceiling_fan, chandelier, clarinet, coffee_cup, cookie, crayon, crown, fire_hydrant,
        firetruck, flying_saucer, goatee, golf_club, hexagon, hockey_stick, hospital,
        house_plant, jail, matches, mermaid, moustache, octagon, paint_can, pants,
        paper_clip, passport, pliers, police_car, postcard, power_outlet, raccoon,
        sandwich, sea_turtle, see_saw, shorts, sink, skull, smiley_face, spreadsheet,
        squiggle, stairs, steak, stop_sign, tennis_racquet, The_Great_Wall_of_China,
        toothpaste, cactus, wristwatch, zigzag
        """,
    ),
    "doodles": Split("doodles", doodles.SEEN, doodles.UNSEEN),
}


def get(name: str) -> Split:
    """The split called `name`.

    Raises:
      ValueError: if there is no such split; suggests the nearest name.
    """
    if name not in SPLITS:
        raise ValueError(
            f"There is no split {name!r}{suggest(name, SPLITS)}. Set config.data.split to "
            f"one of {', '.join(SPLITS)}."
        )
    return SPLITS[name]


_SYNONYMS = (
    ("motorcycle", "motorbike"),
    ("crocodilian", "crocodile"),
    ("racket", "tennis-racket", "tennis_racquet"),
    ("tv", "television"),
    ("trousers", "pants"),
    ("socks", "sock"),
    ("eiffel tower", "The_Eiffel_Tower"),
)
"""Different names of the same class in Sketchy, TU-Berlin, QuickDraw and DomainNet.

Only exact synonyms: subclasses (armchair and chair, race car and car, mug and cup) and similar
classes (rollerblades and rollerskates, pistol and revolver) are different classes.
"""


def normalised(name: str) -> str:
    """The name in lower case, without spaces, `_`, `-` and qualifiers in parentheses.

    `hot-air_balloon` and `hot air balloon` become `hotairballoon`, `bear (animal)` becomes `bear`.
    Idempotent.
    """
    without_qualifier = re.sub(r"\([^()]*\)", "", name)
    return _without_separators(without_qualifier) or _without_separators(name)


def _without_separators(name: str) -> str:
    return re.sub(r"[\s_()-]", "", name).casefold()


_CANONICAL = {normalised(name): normalised(group[0]) for group in _SYNONYMS for name in group}


def canonical(name: str) -> str:
    """The normalised name; the same one for all synonyms of a class."""
    return _CANONICAL.get(normalised(name), normalised(name))


class CrossDataset(NamedTuple):
    """The unseen classes of a target data set, after training on a source data set.

    Attributes:
      kept: unseen classes of the target that the source does not contain, in the target's order.
      excluded: unseen class of the target -> the same class among the source's seen classes.
    """

    kept: tuple[str, ...]
    excluded: Mapping[str, str]


def same_classes(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Each of `names` that is the same class as one of `others` -> its name in `others`.

    Names are compared by `canonical`, but two different qualifiers denote two classes:
    `mouse (animal)` is the same class as `mouse`, and not as `mouse (computer)`.
    """
    known: dict[str, dict[str, str]] = {}
    for other in others:
        known.setdefault(canonical(other), {})[_qualifier(other)] = other
    found = {}
    for name in names:
        same, qualifier = known.get(canonical(name), {}), _qualifier(name)
        by_qualifier = [qualifier, ""] if qualifier else ["", *same]
        if match := next((same[key] for key in by_qualifier if key in same), None):
            found[name] = match
    return found


def _qualifier(name: str) -> str:
    return _without_separators("".join(re.findall(r"\(([^()]*)\)", name)))


def cross_dataset(source: Split, target: Split) -> CrossDataset:
    """The unseen classes of `target` that are not seen when training on `source`.

    Raises:
      ValueError: if none remains; lists the name of each class in the source.
    """
    excluded = same_classes(target.unseen, source.seen)
    kept = tuple(c for c in target.unseen if c not in excluded)
    if not kept:
        names = ", ".join(f"{ours} (as {theirs})" for ours, theirs in excluded.items())
        raise ValueError(
            f"No class of {target.dataset} is unseen after training on {source.dataset}, which "
            f"contains all of its {len(target.unseen)} unseen classes: {names}. Choose another "
            "pair of data sets or splits."
        )
    return CrossDataset(kept, excluded)


Purpose = Literal["train", "evaluate"]
"""What a data set is used for. Training also evaluates, on the unseen classes."""


def needed(split: Split, purpose: Purpose) -> tuple[str, ...]:
    """The classes of which a purpose needs at least one sketch and one photo each."""
    return split.unseen if purpose == "evaluate" else split.seen + split.unseen


def share_of(text: str | None) -> float | None:
    """The share in a text such as `20%`; None if it is not one.

    Raises:
      ValueError: it is not between 0 and 100 %.
    """
    if not (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text or "")):
        return None
    if not 0 < (percent := float(match[1])) < 100:
        raise ValueError(f"The share of unseen classes, {text}, must be between 0% and 100%.")
    return percent / 100


def draw(classes: Iterable[str], share: float, seed: int) -> tuple[str, ...]:
    """A share of the classes, rounded, but at least one; in alphabetical order.

    They depend only on the names and the seed.
    """
    names = sorted(classes)
    rng = np.random.default_rng([seed, zlib.crc32(b"unseen")])
    count = max(1, round(share * len(names)))
    return tuple(sorted(rng.permutation(names)[:count].tolist()))


def too_few_classes(seen: Collection[str]) -> str:
    """Why a model cannot be trained on `seen` classes; "" if it can."""
    if len(seen) >= 2:
        return ""
    return (
        "Training needs at least two seen classes, because negative photos come from another class,"
        f" but there {'is 1' if seen else 'are 0'}{': ' + ', '.join(seen) if seen else ''}."
    )


class ClassNamesError(ValueError):
    """The classes on disk are not the expected ones.

    Attributes:
      where: the folder or data set.
      missing: expected names that were not found.
      unknown: unexpected name -> the most similar expected name, or "".
    """

    def __init__(self, message: str, where: str, missing: list[str], unknown: dict[str, str]):
        super().__init__(message)
        self.where, self.missing, self.unknown = where, missing, unknown


_collected: ContextVar[list[ValueError] | None] = ContextVar("_collected", default=None)


@contextlib.contextmanager
def collecting_errors() -> Iterator[list[ValueError]]:
    """Within this context, `raise_or_collect` appends errors to a list instead of raising them."""
    errors: list[ValueError] = []
    token = _collected.set(errors)
    try:
        yield errors
    finally:
        _collected.reset(token)


def raise_or_collect(error: ValueError) -> None:
    """Raises `error`, or appends it to the list of `collecting_errors`."""
    if (errors := _collected.get()) is None:
        raise error
    errors.append(error)


PUBLISHED_NAMES = "Rename the folders to the published names, or unpack the archive again."


def check_classes(
    found: Collection[str],
    expected: Collection[str],
    where: str,
    *,
    allow_more: bool = False,
    allow_missing: bool = False,
    advice: str = PUBLISHED_NAMES,
) -> None:
    """Checks that the classes on disk are the expected ones.

    Args:
      found: class names on disk.
      expected: expected class names.
      where: the folder or data set, for the message.
      allow_more: whether `found` may contain further classes.
      allow_missing: whether `found` may lack classes; with unknown names, they are still listed.
      advice: what to do, for the message.

    Raises:
      ClassNamesError: lists all missing and unknown names, with the most similar valid names.
    """
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if (allow_missing or not missing) and (allow_more or not unknown):
        return
    parts = []
    if missing:
        names = ", ".join(name + suggest(name, unknown if allow_more else ()) for name in missing)
        parts.append(f"{len(missing)} of {len(expected)} {_are(missing)} missing: {names}")
    if unknown and not allow_more:
        names = ", ".join(name + suggest(name, missing or expected) for name in unknown)
        parts.append(f"{len(unknown)} {_are(unknown)} unknown: {names}")
    raise_or_collect(
        ClassNamesError(
            f"The classes in {where} do not match: {'; '.join(parts)}. {advice}",
            where,
            missing,
            {} if allow_more else {name: nearest(name, missing or expected) for name in unknown},
        )
    )


def _are(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"
