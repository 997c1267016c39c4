"""The class names of every benchmark, with the spelling of its folders or its catalogue.

Sketchy Extended (125), TU-Berlin Extended (250), QuickDraw Extended (110): folder names of the
published archives, which mix `_`, `-` and spaces. DomainNet (345): the TFDS catalogue, version
1.0.0. The order is alphabetical and has no meaning.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable

from data_pipelines.terminal import printable


def names(text: str) -> tuple[str, ...]:
    """Splits a comma-separated list and strips whitespace."""
    return tuple(name.strip() for name in text.split(","))


def normal(name: str) -> str:
    """The one spelling of a class name, wherever it comes from: a folder, a file or a flag.

    Accented letters become one character each (NFC), because macOS and other systems write them
    differently, white space around the name is removed, and control characters become escapes
    (`terminal.printable`).
    """
    return printable(unicodedata.normalize("NFC", name).strip())


def listed(text: str | None) -> tuple[str, ...]:
    """The class names in a list such as `cat, "salt, pepper"`, normalised, each once, in order.

    Names are separated by commas. A name that contains a comma is in double quotes; a double quote
    in such a name is written twice.

    Raises:
      ValueError: a double quote is not closed.
    """
    try:
        line = re.sub(r'"\s+(?=,|$)', '"', (text or "").replace("\n", " "))
        rows = [*csv.reader([line], skipinitialspace=True, strict=True)]
    except csv.Error as error:
        raise ValueError(
            f"The list of classes {text!r} is not valid ({error}): separate names with commas, and "
            'put a name that contains a comma in double quotes, such as cat,"salt, pepper".'
        ) from error
    return tuple(dict.fromkeys(filter(None, map(normal, (name for row in rows for name in row)))))


def written(names: Iterable[str]) -> str:
    """The list that `listed` reads as these names."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


SKETCHY = names("""
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
""")

TUBERLIN = names("""
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
""")

QUICKDRAW = names("""
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
""")

DOMAINNET = names("""
    aircraft_carrier, airplane, alarm_clock, ambulance, angel, animal_migration, ant, anvil,
    apple, arm, asparagus, axe, backpack, banana, bandage, barn, baseball, baseball_bat, basket,
    basketball, bat, bathtub, beach, bear, beard, bed, bee, belt, bench, bicycle, binoculars,
    bird, birthday_cake, blackberry, blueberry, book, boomerang, bottlecap, bowtie, bracelet,
    brain, bread, bridge, broccoli, broom, bucket, bulldozer, bus, bush, butterfly, cactus,
    cake, calculator, calendar, camel, camera, camouflage, campfire, candle, cannon, canoe, car,
    carrot, castle, cat, ceiling_fan, cello, cell_phone, chair, chandelier, church, circle,
    clarinet, clock, cloud, coffee_cup, compass, computer, cookie, cooler, couch, cow, crab,
    crayon, crocodile, crown, cruise_ship, cup, diamond, dishwasher, diving_board, dog, dolphin,
    donut, door, dragon, dresser, drill, drums, duck, dumbbell, ear, elbow, elephant, envelope,
    eraser, eye, eyeglasses, face, fan, feather, fence, finger, fire_hydrant, fireplace,
    firetruck, fish, flamingo, flashlight, flip_flops, floor_lamp, flower, flying_saucer, foot,
    fork, frog, frying_pan, garden, garden_hose, giraffe, goatee, golf_club, grapes, grass,
    guitar, hamburger, hammer, hand, harp, hat, headphones, hedgehog, helicopter, helmet,
    hexagon, hockey_puck, hockey_stick, horse, hospital, hot_air_balloon, hot_dog, hot_tub,
    hourglass, house, house_plant, hurricane, ice_cream, jacket, jail, kangaroo, key, keyboard,
    knee, knife, ladder, lantern, laptop, leaf, leg, light_bulb, lighter, lighthouse, lightning,
    line, lion, lipstick, lobster, lollipop, mailbox, map, marker, matches, megaphone, mermaid,
    microphone, microwave, monkey, moon, mosquito, motorbike, mountain, mouse, moustache, mouth,
    mug, mushroom, nail, necklace, nose, ocean, octagon, octopus, onion, oven, owl, paintbrush,
    paint_can, palm_tree, panda, pants, paper_clip, parachute, parrot, passport, peanut, pear,
    peas, pencil, penguin, piano, pickup_truck, picture_frame, pig, pillow, pineapple, pizza,
    pliers, police_car, pond, pool, popsicle, postcard, potato, power_outlet, purse, rabbit,
    raccoon, radio, rain, rainbow, rake, remote_control, rhinoceros, rifle, river,
    roller_coaster, rollerskates, sailboat, sandwich, saw, saxophone, school_bus, scissors,
    scorpion, screwdriver, sea_turtle, see_saw, shark, sheep, shoe, shorts, shovel, sink,
    skateboard, skull, skyscraper, sleeping_bag, smiley_face, snail, snake, snorkel, snowflake,
    snowman, soccer_ball, sock, speedboat, spider, spoon, spreadsheet, square, squiggle,
    squirrel, stairs, star, steak, stereo, stethoscope, stitches, stop_sign, stove, strawberry,
    streetlight, string_bean, submarine, suitcase, sun, swan, sweater, swing_set, sword,
    syringe, table, teapot, teddy-bear, telephone, television, tennis_racquet, tent,
    The_Eiffel_Tower, The_Great_Wall_of_China, The_Mona_Lisa, tiger, toaster, toe, toilet,
    tooth, toothbrush, toothpaste, tornado, tractor, traffic_light, train, tree, triangle,
    trombone, truck, trumpet, t-shirt, umbrella, underwear, van, vase, violin, washing_machine,
    watermelon, waterslide, whale, wheel, windmill, wine_bottle, wine_glass, wristwatch, yoga,
    zebra, zigzag
""")
