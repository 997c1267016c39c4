"""The 32 classes of `doodles`: 24 seen and 8 unseen.

The unseen classes recombine parts of the seen classes (wheels, boxes, rings, domes, discs, blades,
leaves), so that a network can know the parts without having seen the whole.
"""

from data_pipelines.class_names import names

SEEN = names("""
    apple, balloon, bird, butterfly, cactus, car, castle, chair, fish, flower, glasses, guitar,
    hammer, house, ice_cream, key, lamp, mug, rocket, sailboat, tree, truck, turtle, umbrella
""")

UNSEEN = names("airplane, bicycle, mushroom, pineapple, scissors, snowman, teapot, windmill")
