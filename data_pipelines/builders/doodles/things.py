"""The buildings, furniture and tools of `doodles`: one function per class.

Each takes the random generator of the instance and returns its parts from back to front.
"""

import itertools

import numpy as np

from data_pipelines.builders.doodles.parts import (
    Part,
    box,
    ellipse,
    fill,
    line,
    polygon,
    smooth,
    trapezoid,
    tube,
    turned,
)

Random = np.random.Generator


def castle(rng: Random) -> list[Part]:
    """A wall with battlements between two towers, a gate."""
    tw, th = rng.uniform(0.24, 0.32), rng.uniform(0.3, 0.55)
    top, teeth = rng.uniform(-0.05, 0.2), 5
    xs = np.linspace(-0.75, 0.75, 2 * teeth)
    heights = [top - 0.16 * (i % 2 == 0) for i in range(2 * teeth - 1)]
    crown = [(x, h) for i, h in enumerate(heights) for x in xs[i : i + 2]]
    parts = [fill(polygon((-0.75, 1), *crown, (0.75, 1)))]
    roofed = rng.random() < 0.65
    for s in (-1, 1):
        x = 0.78 * s
        parts.append(fill(polygon((x - tw, 1), (x - tw, -th), (x + tw, -th), (x + tw, 1)), color=0))
        if roofed:
            peak = -th - rng.uniform(0.5, 0.6)
            parts.append(
                fill(polygon((x - tw - 0.08, -th), (x, peak), (x + tw + 0.08, -th)), color=1)
            )
        else:
            parts += [fill(box(x + t * tw, -th - 0.06, 0.32 * tw, 0.12)) for t in (-0.75, 0.75)]
        parts.append(fill(box(x, -0.2 * th, 0.06, 0.12), color=2, omit=0.35))
    gate = np.concatenate([ellipse(0, 0.6, 0.24, None, 180, 360), polygon((0.24, 1), (-0.24, 1))])
    return [*parts, fill(gate, color=2)]


def chair(rng: Random) -> list[Part]:
    """A seat, four legs and a slatted back, half from the side."""
    w, back, t = rng.uniform(0.5, 0.62), rng.uniform(0.85, 1.1), rng.uniform(0.05, 0.08)
    skew, legs = rng.uniform(0.12, 0.25), rng.uniform(0.65, 0.85)
    parts = [fill(box(x + skew, 0.45 * legs, t, 0.45 * legs), color=1) for x in (-w, w - 0.1)]
    parts += [fill(box(x, -back / 2, t, back / 2)) for x in (-w + skew, w)]
    for i in range(rng.integers(1, 4)):
        y = -back + 0.1 + 0.3 * i
        parts.append(fill(box((skew) / 2, y, w - skew / 2, 0.08), color=2))
    seat = polygon((-w - 0.1, 0.2), (-w + skew, -0.05), (w + 0.08, -0.05), (w - 0.1, 0.2))
    parts.append(fill(seat))
    parts += [fill(box(x, 0.2 + legs / 2, t, legs / 2), color=1) for x in (-w, w - 0.2)]
    return parts


def glasses(rng: Random) -> list[Part]:
    """Two ringed lenses, a bridge, the temples."""
    r, flat = rng.uniform(0.4, 0.48), rng.uniform(0.75, 1.0)
    x, rim = rng.uniform(0.53, 0.6), rng.uniform(0.07, 0.11)
    bridge = smooth((-x + r, -0.05), (0, -0.17), (x - r, -0.05), closed=False)
    parts = [line(bridge, width=0.09)]
    square = rng.random() < 0.35
    for s in (-1, 1):
        temple = polygon(
            (s * (x + 0.9 * r), -0.1), (s * (x + r + 0.15), -0.45), (s * (x + r + 0.0), -0.6)
        )
        parts.append(line(temple, width=0.08))
        outer, inner = ellipse(s * x, 0, r, r * flat), ellipse(s * x, 0, r - rim, r * flat - rim)
        if square:
            outer, inner = box(s * x, 0, r, 0.75 * r), box(s * x, 0, r - rim, 0.75 * r - rim)
        parts.append(fill(inner, color=1))
        parts.append(fill(outer, inner))
    return parts


def guitar(rng: Random) -> list[Part]:
    """A waisted body with a sound hole, a neck, a head; held askew."""
    low, high = rng.uniform(0.48, 0.58), rng.uniform(0.34, 0.42)
    waist = 0.72 * high
    side = [
        (0.0, 1.05), (0.75 * low, 0.98), (low, 0.62), (waist, 0.22), (high, -0.08),
        (0.6 * high, -0.32),
    ]  # fmt: skip
    body = smooth(*side, *[(-x, y) for x, y in side[:0:-1]])
    neck = rng.uniform(-1.25, -1.05)
    parts = [
        fill(box(0, (neck - 0.2) / 2, 0.07, (-0.2 - neck) / 2), color=1),
        fill(trapezoid(0, neck - 0.25, neck, 0.16, 0.1), color=2),
        fill(body),
        fill(ellipse(0, 0.1, rng.uniform(0.13, 0.18)), color=3),
        fill(box(0, 0.66, 0.22, 0.05), color=2, omit=0.2),
        line(polygon((0, 0.62), (0, neck)), color=4, width=0.03, omit=0.3),
    ]
    angle = rng.uniform(15, 40)
    return [Part(tuple(turned(c, angle) for c in p.loops), p.color, p.width, p.omit) for p in parts]


def hammer(rng: Random) -> list[Part]:
    """A handle, a head with a face and a claw."""
    long, h = rng.uniform(1.0, 1.2), rng.uniform(0.15, 0.2)
    claw = smooth((-0.1, -0.6 - h), (-0.5, -0.6 - 0.9 * h), (-0.9, -0.3 - 0.2 * h), closed=False)
    claw = np.concatenate([claw, smooth((-0.55, -0.5), (-0.1, -0.6 + h), closed=False)])
    return [
        fill(trapezoid(0, -0.5, long, 0.09, rng.uniform(0.1, 0.15)), color=1),
        fill(box(0, long - 0.3, 0.14, 0.3), color=2, omit=0.3),
        fill(claw),
        fill(box(0.1, -0.6, 0.3, h)),
        fill(box(0.5, -0.6, 0.14, h + rng.uniform(0.04, 0.1)), color=0),
    ]


def house(rng: Random) -> list[Part]:
    """Walls, a pitched roof, a door, windows, often a chimney."""
    w, wall, peak = rng.uniform(0.65, 0.9), rng.uniform(0.75, 1.05), rng.uniform(0.5, 0.8)
    eave, parts = rng.uniform(0.06, 0.22), []
    if rng.random() < 0.65:
        parts.append(fill(box(0.5 * w, -0.6 * peak, 0.11, 0.42 * peak), color=3))
    parts.append(fill(box(0, wall / 2, w, wall / 2)))
    parts.append(
        fill(polygon((-w - eave, 0), (rng.uniform(-0.1, 0.1), -peak), (w + eave, 0)), color=1)
    )
    door = rng.choice([-0.45, 0.0, 0.45]) * w
    parts.append(fill(box(door, wall - 0.27, 0.15, 0.27), color=2))
    for x in [x for x in (-0.5 * w, 0.5 * w) if abs(x - door) > 0.3]:
        y = wall * 0.42
        parts.append(fill(box(x, y, 0.16, 0.16), color=4, omit=0.15))
        parts.append(line(polygon((x, y - 0.16), (x, y + 0.16)), color=2, width=0.04, omit=0.5))
        parts.append(line(polygon((x - 0.16, y), (x + 0.16, y)), color=2, width=0.04, omit=0.5))
    return parts


def key(rng: Random) -> list[Part]:
    """A ring, a shaft, two or three teeth."""
    r, t = rng.uniform(0.36, 0.46), rng.uniform(0.07, 0.1)
    parts = [fill(box(x, 0.16 + t, 0.07, 0.14)) for x in (0.98, 0.74, 0.5)[: rng.integers(2, 4)]]
    parts.append(fill(box(0.3, 0, 0.78, t)))
    parts.append(fill(ellipse(-0.7, 0, r), ellipse(-0.7, 0, r * rng.uniform(0.45, 0.62))))
    if rng.random() < 0.5:
        parts.append(fill(box(-0.22, 0, 0.05, 0.17), color=1, omit=0.3))
    return parts


def lamp(rng: Random) -> list[Part]:
    """A shade, a pole, a foot."""
    top, low = rng.uniform(0.25, 0.4), rng.uniform(0.6, 0.8)
    edge = rng.uniform(-0.3, -0.1)
    parts = [
        fill(box(0, 0.4, rng.uniform(0.05, 0.08), 0.62), color=1),
        fill(ellipse(0, 1.0, rng.uniform(0.4, 0.55), 0.14), color=1),
    ]
    if rng.random() < 0.4:
        parts.append(fill(ellipse(0, 0.45, 0.22, 0.3), color=2))
    parts.append(fill(trapezoid(0, -1.0, edge, top, low)))
    if rng.random() < 0.6:
        parts.append(fill(trapezoid(0, edge - 0.14, edge, low - 0.07, low), color=3, omit=0.3))
    return parts


def mug(rng: Random) -> list[Part]:
    """A cup with a ring for a handle, a rim, perhaps steam."""
    w, h, foot = rng.uniform(0.55, 0.68), rng.uniform(0.62, 0.8), rng.uniform(0.82, 1.0)
    grip = rng.uniform(0.34, 0.42)
    parts = [
        fill(ellipse(w, 0.05, grip, 1.15 * grip), ellipse(w, 0.05, grip - 0.13, 1.15 * grip - 0.13))
    ]
    side = smooth(
        (foot * w, h), (0.5 * foot * w, h + 0.1), (0, h + 0.13), (-0.5 * foot * w, h + 0.1),
        (-foot * w, h), closed=False,
    )  # fmt: skip
    parts.append(fill(np.concatenate([polygon((-w, -h), (w, -h)), side])))
    if rng.random() < 0.5:
        parts.append(fill(box(0, 0.1, 0.93 * w, 0.13), color=2, omit=0.35))
    parts.append(fill(ellipse(0, -h, w, 0.16), color=1))
    if rng.random() < 0.5:
        for x in (-0.2, 0.15):
            wave = smooth(
                (x, -h - 0.2), (x + 0.1, -h - 0.35), (x, -h - 0.5), (x + 0.1, -h - 0.65),
                closed=False,
            )  # fmt: skip
            parts.append(line(wave, color=4, width=0.05, omit=0.4))
    return parts


def scissors(rng: Random) -> list[Part]:
    """Two crossed blades, each with a ring to hold."""
    r, open_ = rng.uniform(0.28, 0.35), rng.uniform(14, 27)
    parts = []
    for s, color in ((-1, 1), (1, 2)):
        ring = (
            ellipse(-0.75, 0.1 * s, 1.15 * r, r),
            ellipse(-0.75, 0.1 * s, 1.15 * r - 0.12, r - 0.12),
        )
        blade = polygon((-0.42, 0.06), (0.1, 0.1), (1.1, 0.02 * s), (0.1, -0.1), (-0.42, -0.06))
        parts.append(fill(turned(blade, s * open_)))
        parts.append(fill(*(turned(c, s * open_ * 1.25) for c in ring), color=color))
    return [*parts, fill(ellipse(0, 0, 0.07), color=4, omit=0.3)]


def teapot(rng: Random) -> list[Part]:
    """A round belly with a spout, a ring for a handle, a lid with a knob."""
    w, h = rng.uniform(0.6, 0.72), rng.uniform(0.5, 0.62)
    spout = smooth(
        (0.7 * w, 0.25), (w + 0.22, 0.05), (w + 0.4, rng.uniform(-0.5, -0.35)), closed=False
    )
    grip = rng.uniform(0.28, 0.34)
    parts = [
        fill(
            ellipse(-w, 0, grip, 1.15 * grip),
            ellipse(-w, 0, grip - 0.1, 1.15 * grip - 0.1),
            color=1,
        ),
        fill(tube(spout, 0.2, 0.09)),
        fill(box(0, h - 0.02, 0.6 * w, 0.08), color=1),
        fill(ellipse(0, -h - 0.22, 0.1), color=2),
        fill(
            np.concatenate(
                [ellipse(0, -0.85 * h, 0.55 * w, 0.22, 180, 360), [[0.55 * w, -0.85 * h]]]
            ),
            color=1,
        ),
        fill(ellipse(0, 0, w, h)),
    ]
    lid = smooth((-0.55 * w, -0.8 * h), (0, -0.68 * h), (0.55 * w, -0.8 * h), closed=False)
    parts.append(line(lid, color=3, width=0.05, omit=0.2))
    if rng.random() < 0.4:
        parts.append(fill(ellipse(0, 0.05, 0.2), color=2, omit=0.4))
    return parts


def umbrella(rng: Random) -> list[Part]:
    """A scalloped canopy, a stick, a hook."""
    h, count = rng.uniform(0.65, 0.9), int(rng.integers(3, 6))
    hook = rng.uniform(0.13, 0.2) * rng.choice([-1, 1])
    stick = np.concatenate(
        [polygon((0, -0.1), (0, 0.85)), ellipse(hook, 0.85, -hook, abs(hook), 0, 180)]
    )
    parts = [
        line(stick, color=1, width=0.09),
        fill(box(0, -h - 0.05, 0.03, 0.12), color=1, omit=0.2),
    ]
    edges = np.linspace(1, -1, count + 1)
    scallops = [
        ellipse((a + b) / 2, 0, (a - b) / 2, 0.12, 0, -180) for a, b in itertools.pairwise(edges)
    ]
    parts.append(fill(np.concatenate([ellipse(0, 0, 1, h, 180, 360), *scallops])))
    for x in edges[1:-1]:
        rib = smooth((0.0, -h), (0.75 * x, -0.6 * h), (x, 0.0), closed=False)
        parts.append(line(rib, color=2, width=0.05, omit=0.25))
    return parts


def windmill(rng: Random) -> list[Part]:
    """A tapering tower with a dome, a door and four blades."""
    top, low, reach = rng.uniform(0.22, 0.3), rng.uniform(0.42, 0.55), rng.uniform(0.75, 0.92)
    parts = [
        fill(trapezoid(0, -0.3, 1.1, top, low)),
        fill(
            np.concatenate([ellipse(0, -0.3, top + 0.06, 0.3, 180, 360), [[top + 0.06, -0.3]]]),
            color=1,
        ),
        fill(box(0, 0.9, 0.12, 0.2), color=2, omit=0.2),
        fill(box(0, 0.3, 0.09, 0.1), color=2, omit=0.3),
    ]
    spin, broad = rng.uniform(15, 75), rng.uniform(0.09, 0.14)
    for quarter in range(4):
        arm = polygon(
            (0.05, -0.03), (reach, -0.03), (reach, 2 * broad), (0.3, 2 * broad), (0.3, 0.03),
            (0.05, 0.03),
        )  # fmt: skip
        parts.append(fill(turned(arm, spin + 90 * quarter) + [0, -0.4], color=3))
    return [*parts, fill(ellipse(0, -0.4, 0.08), color=4)]
