"""The 32 classes of `doodles`, as plain names: 24 to train on, 8 that training never sees.

The unseen classes recombine parts that seen ones have (wheels, boxes, rings, domes, discs, blades,
leaves), so that a network can know the pieces without ever having seen the whole.
"""

SEEN = (
    "apple",
    "balloon",
    "bird",
    "butterfly",
    "cactus",
    "car",
    "castle",
    "chair",
    "fish",
    "flower",
    "glasses",
    "guitar",
    "hammer",
    "house",
    "ice_cream",
    "key",
    "lamp",
    "mug",
    "rocket",
    "sailboat",
    "tree",
    "truck",
    "turtle",
    "umbrella",
)

UNSEEN = (
    "airplane",
    "bicycle",
    "mushroom",
    "pineapple",
    "scissors",
    "snowman",
    "teapot",
    "windmill",
)
