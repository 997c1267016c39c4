"""The seen and unseen classes of every zero-shot setting, as facts.

Seen classes train, unseen classes test. Sketchy has two divisions in the literature: split 1 (100 /
25) and split 2 (104 / 21, whose unseen classes are not in ImageNet); TU-Berlin Extended (220 / 30);
QuickDraw Extended (80 / 30). Class names are the folder names of the published archives. Unseen
classes stand in the published order, because validation takes every n-th image in that order; the
order of seen classes means nothing and is alphabetical.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping

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


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _split(dataset: str, classes: str, unseen: str) -> Split:
    test = _names(unseen)
    return Split(dataset, tuple(c for c in _names(classes) if c not in test), test)


_SKETCHY = """
    airplane, alarm_clock, ant, ape, apple, armor, axe, banana, bat, bear, bee, beetle, bell,
    bench, bicycle, blimp, bread, butterfly, cabin, camel, candle, cannon, car_(sedan), castle,
    cat, chair, chicken, church, couch, cow, crab, crocodilian, cup, deer, dog, dolphin, door,
    duck, elephant, eyeglasses, fan, fish, flower, frog, geyser, giraffe, guitar, hamburger,
    hammer, harp, hat, hedgehog, helicopter, hermit_crab, horse, hot-air_balloon, hotdog,
    hourglass, jack-o-lantern, jellyfish, kangaroo, knife, lion, lizard, lobster, motorcycle,
    mouse, mushroom, owl, parrot, pear, penguin, piano, pickup_truck, pig, pineapple, pistol,
    pizza, pretzel, rabbit, raccoon, racket, ray, rhinoceros, rifle, rocket, sailboat, saw,
    saxophone, scissors, scorpion, sea_turtle, seagull, seal, shark, sheep, shoe, skyscraper,
    snail, snake, songbird, spider, spoon, squirrel, starfish, strawberry, swan, sword, table,
    tank, teapot, teddy_bear, tiger, tree, trumpet, turtle, umbrella, violin, volcano,
    wading_bird, wheelchair, windmill, window, wine_bottle, zebra
"""

_TUBERLIN = """
    airplane, alarm clock, angel, ant, apple, arm, armchair, ashtray, axe, backpack, banana,
    barn, baseball bat, basket, bathtub, bear (animal), bed, bee, beer-mug, bell, bench,
    bicycle, binoculars, blimp, book, bookshelf, boomerang, bottle opener, bowl, brain, bread,
    bridge, bulldozer, bus, bush, butterfly, cabinet, cactus, cake, calculator, camel, camera,
    candle, cannon, canoe, car (sedan), carrot, castle, cat, cell phone, chair, chandelier,
    church, cigarette, cloud, comb, computer monitor, computer-mouse, couch, cow, crab,
    crane (machine), crocodile, crown, cup, diamond, dog, dolphin, donut, door, door handle,
    dragon, duck, ear, elephant, envelope, eye, eyeglasses, face, fan, feather, fire hydrant,
    fish, flashlight, floor lamp, flower with stem, flying bird, flying saucer, foot, fork,
    frog, frying-pan, giraffe, grapes, grenade, guitar, hamburger, hammer, hand, harp, hat,
    head, head-phones, hedgehog, helicopter, helmet, horse, hot air balloon, hot-dog, hourglass,
    house, human-skeleton, ice-cream-cone, ipod, kangaroo, key, keyboard, knife, ladder, laptop,
    leaf, lightbulb, lighter, lion, lobster, loudspeaker, mailbox, megaphone, mermaid,
    microphone, microscope, monkey, moon, mosquito, motorbike, mouse (animal), mouth, mug,
    mushroom, nose, octopus, owl, palm tree, panda, paper clip, parachute, parking meter,
    parrot, pear, pen, penguin, person sitting, person walking, piano, pickup truck, pig,
    pigeon, pineapple, pipe (for smoking), pizza, potted plant, power outlet, present, pretzel,
    pumpkin, purse, rabbit, race car, radio, rainbow, revolver, rifle, rollerblades, rooster,
    sailboat, santa claus, satellite, satellite dish, saxophone, scissors, scorpion,
    screwdriver, sea turtle, seagull, shark, sheep, ship, shoe, shovel, skateboard, skull,
    skyscraper, snail, snake, snowboard, snowman, socks, space shuttle, speed-boat, spider,
    sponge bob, spoon, squirrel, standing bird, stapler, strawberry, streetlight, submarine,
    suitcase, sun, suv, swan, sword, syringe, t-shirt, table, tablelamp, teacup, teapot,
    teddy-bear, telephone, tennis-racket, tent, tiger, tire, toilet, tomato, tooth, toothbrush,
    tractor, traffic light, train, tree, trombone, trousers, truck, trumpet, tv, umbrella, van,
    vase, violin, walkie talkie, wheel, wheelbarrow, windmill, wine-bottle, wineglass,
    wrist-watch, zebra
"""

_QUICKDRAW = """
    airplane, alarm_clock, ant, apple, axe, banana, bandage, bat, beach, bear, bee, bench,
    bicycle, bread, bus, butterfly, cactus, cake, camel, campfire, candle, car, castle, cat,
    chair, chandelier, church, couch, cow, crab, crocodilian, cruise ship, cup, dog, dolphin,
    door, duck, eiffel tower, elephant, eyeglasses, fan, feather, fire_hydrant, fish, flower,
    frog, giraffe, guitar, hamburger, hammer, hat, hedgehog, helicopter, horse, hot-air_balloon,
    hurricane, kangaroo, knife, lighthouse, lion, lobster, map, megaphone, monkey, moon,
    motorcycle, mountain, mouse, mushroom, owl, palm tree, parrot, penguin, pickup_truck, pig,
    pineapple, pizza, rabbit, raccoon, rhinoceros, rifle, sailboat, saw, saxophone, scissors,
    scorpion, sea_turtle, shark, sheep, shoe, sink, skateboard, skyscraper, snail, snake,
    soccer ball, spider, spoon, squirrel, swan, teapot, teddy_bear, tiger, train, tree,
    umbrella, violin, windmill, wine bottle, zebra
"""

SPLITS: Mapping[str, Split] = {
    "sketchy_split1": _split(
        "sketchy",
        _SKETCHY,
        """
        cup, swan, harp, squirrel, snail, ray, pineapple, volcano, rifle, scissors, parrot,
        windmill, teddy_bear, tree, wine_bottle, deer, chicken, airplane, wheelchair, tank,
        umbrella, butterfly, camel, horse, bell
        """,
    ),
    "sketchy_split2": _split(
        "sketchy",
        _SKETCHY,
        """
        bat, cabin, cow, dolphin, door, giraffe, helicopter, mouse, pear, raccoon, rhinoceros, saw,
        scissors, seagull, skyscraper, songbird, sword, tree, wheelchair, windmill, window
        """,
    ),
    "tuberlin": _split(
        "tuberlin",
        _TUBERLIN,
        """
        banana, bus, tractor, suitcase, streetlight, telephone, bottle opener, canoe, fan, teacup,
        penguin, laptop, shoe, lighter, hot air balloon, pizza, brain, ant, t-shirt, trombone,
        windmill, snowboard, table, rollerblades, parachute, space shuttle, bridge, frying-pan,
        bread, horse
        """,
    ),
    "quickdraw": _split(
        "quickdraw",
        _QUICKDRAW,
        """
        bat, cow, dolphin, door, giraffe, helicopter, mouse, raccoon, rhinoceros, saw, scissors,
        skyscraper, tree, windmill, feather, campfire, palm tree, fire_hydrant, bread, beach,
        megaphone, cactus, zebra, tiger, shark, frog, banana, cake, hamburger, fan
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
            f"There is no split {name!r}{_nearest(name, SPLITS)}. Set config.data.split to one of "
            f"{', '.join(SPLITS)}."
        )
    return SPLITS[name]


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
      ValueError: listing every missing and every unknown name, each unknown with the nearest
        name that is missing.
    """
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if not missing and (allow_more or not unknown):
        return
    parts = []
    if missing:
        hint = (lambda name: _nearest(name, unknown)) if allow_more else (lambda name: "")
        names = ", ".join(name + hint(name) for name in missing)
        parts.append(f"{len(missing)} of {len(expected)} are missing: {names}")
    if unknown and not allow_more:
        names = ", ".join(name + _nearest(name, missing or expected) for name in unknown)
        parts.append(f"{len(unknown)} are unknown: {names}")
    raise ValueError(
        f"The classes in {where} do not match: {'; '.join(parts)}. Rename the folders to the "
        "published names, or unpack the archive again."
    )


def _nearest(name: str, valid: Iterable[str]) -> str:
    """' (did you mean X?)', or nothing when no valid name is near."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
