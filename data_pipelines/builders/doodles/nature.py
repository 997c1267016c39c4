"""The plants, the animals and the food of `doodles`: one function per class.

Each takes the random generator of the instance and returns its parts from back to front.
"""

import numpy as np

from data_pipelines.builders.doodles.parts import (
    Part,
    box,
    capsule,
    cloud,
    ellipse,
    fill,
    leaf,
    line,
    mirrored,
    polygon,
    smooth,
    trapezoid,
    tube,
    turned,
)

Random = np.random.Generator


def apple(rng: Random) -> list[Part]:
    """A body with a dip, a stem, a leaf."""
    w, h, dip = rng.uniform(0.8, 1.0), rng.uniform(0.75, 0.9), rng.uniform(0.15, 0.28)
    body = smooth(
        (0, -h + dip), (0.45 * w, -h), (w, -0.35 * h), (0.82 * w, 0.5 * h), (0.35 * w, h),
        (0, h - 0.6 * dip),
        (-0.35 * w, h), (-0.82 * w, 0.5 * h), (-w, -0.35 * h), (-0.45 * w, -h),
    )  # fmt: skip
    lean = rng.uniform(-0.05, 0.25)
    stem = smooth((0, -h + dip), (0.4 * lean, -h - 0.1), (lean, -h - 0.35), closed=False)
    parts = [fill(body), fill(tube(stem, 0.05, 0.07), color=3)]
    if rng.random() < 0.85:
        blade = leaf(0.05, -h - 0.05, rng.uniform(0.5, 0.7), 0.17, rng.uniform(-45, -15))
        parts.append(fill(blade, color=2))
    if rng.random() < 0.5:
        shine = ellipse(-0.05 * w, 0, 0.65 * w, 0.6 * h, 190, 250)
        parts.append(line(shine, color=4, width=0.07, omit=0.6))
    return parts


def bird(rng: Random) -> list[Part]:
    """A drop-shaped body, a head with a beak, a wing, a tail, two legs."""
    fat, up = rng.uniform(0.36, 0.5), rng.uniform(0.4, 0.62)
    head, hx = rng.uniform(0.24, 0.32), rng.uniform(0.5, 0.62)
    body = smooth(
        (-0.85, 0.05), (-0.3, -0.75 * fat), (0.35, -fat), (0.7, -0.05), (0.35, fat),
        (-0.3, 0.8 * fat),
    )  # fmt: skip
    tail = polygon((-0.6, -0.15), (-1.25, -0.3 * rng.uniform(0.2, 1.6)), (-1.2, 0.2), (-0.6, 0.15))
    parts = [
        line(polygon((x, 0.3), (x - 0.03, 0.95), (x + 0.15, 0.97)), color=3, width=0.06)
        for x in (-0.02, 0.25)
    ]
    beak = polygon(
        (hx + 0.8 * head, -up - 0.12),
        (hx + head + rng.uniform(0.2, 0.35), -up),
        (hx + 0.8 * head, -up + 0.12),
    )
    parts += [
        fill(tail, color=1),
        fill(body),
        fill(beak, color=3),
        fill(ellipse(hx, -up, head), color=0),
        fill(ellipse(hx + 0.3 * head, -up - 0.2 * head, 0.06), color=4, solid=True),
    ]
    wing = leaf(0.3, -0.1, rng.uniform(0.75, 0.95), rng.uniform(0.16, 0.24), rng.uniform(165, 185))
    return [*parts, fill(wing, color=1)]


def butterfly(rng: Random) -> list[Part]:
    """Two upper and two lower wings, a long body, feelers."""
    reach, high, low = rng.uniform(0.85, 1.05), rng.uniform(0.7, 0.95), rng.uniform(0.55, 0.75)
    upper = smooth(
        (0.05, -0.1), (0.45 * reach, -high), (reach, -0.95 * high), (0.95 * reach, -0.25),
        (0.45, 0.08),
    )  # fmt: skip
    lower = smooth(
        (0.05, 0.05), (0.6 * reach, 0.05), (0.8 * reach, 0.55 * low), (0.45 * reach, 1.2 * low),
        (0.15, 0.5 * low),
    )  # fmt: skip
    parts = [fill(w, color=1) for w in (lower, mirrored(lower))]
    parts += [fill(w) for w in (upper, mirrored(upper))]
    if rng.random() < 0.7:
        spot = ellipse(0.62 * reach, -0.58 * high, rng.uniform(0.12, 0.2))
        parts += [fill(s, color=2, omit=0.35) for s in (spot, mirrored(spot))]
    feeler = smooth((0, -0.4), (0.1, -0.8), (rng.uniform(0.22, 0.4), -1.0), closed=False)
    parts += [line(f, color=3, width=0.05, omit=0.1) for f in (feeler, mirrored(feeler))]
    return [*parts, fill(ellipse(0, 0.05, 0.1, rng.uniform(0.5, 0.62)), color=3)]


def cactus(rng: Random) -> list[Part]:
    """A column with one to three bent arms in a pot."""
    w = rng.uniform(0.2, 0.28)
    parts, sides = [], rng.permutation([-1, 1])
    for i in range(rng.choice([1, 2, 2])):
        s, y = sides[i], rng.uniform(-0.2, 0.25)
        out, up = rng.uniform(0.55, 0.75), rng.uniform(0.4, 0.65)
        arm = smooth(
            (0, y), (s * 0.7 * out, y), (s * out, y - 0.15), (s * out, y - up), closed=False
        )
        parts.append(fill(np.concatenate([tube(arm, 0.13)])))
    parts.append(
        fill(np.concatenate([ellipse(0, -0.85, w, None, 180, 360), polygon((w, 0.6), (-w, 0.6))]))
    )
    for x in (-0.4 * w, 0.4 * w):
        parts.append(line(polygon((x, -0.75), (x, 0.45)), color=1, width=0.04, omit=0.5))
    wide = rng.uniform(0.4, 0.55)
    parts.append(fill(trapezoid(0, 0.5, 1.15, wide, 0.75 * wide), color=2))
    parts.append(fill(box(0, 0.5, wide + 0.08, 0.1), color=2, omit=0.3))
    if rng.random() < 0.3:
        parts.append(fill(cloud(0, -1.1, 0.17, 0.17, 5, 0.3), color=3, omit=0.3))
    return parts


def fish(rng: Random) -> list[Part]:
    """An oval body, a forked tail, fins, an eye, a gill."""
    h, fork = rng.uniform(0.42, 0.62), rng.uniform(0.3, 0.5)
    tail = polygon((-0.55, 0), (-1.15, -fork), (-0.98, 0.0), (-1.15, fork))
    top = smooth(
        (-0.35, -0.7 * h), (-0.1, -h - rng.uniform(0.2, 0.35)), (0.35, -h - 0.05), (0.4, -0.7 * h)
    )
    parts = [fill(tail, color=1), fill(top, color=1)]
    if rng.random() < 0.7:
        parts.append(
            fill(polygon((-0.15, 0.7 * h), (-0.3, h + 0.25), (0.25, 0.8 * h)), color=1, omit=0.2)
        )
    body = smooth(
        (-0.75, 0), (-0.3, -0.75 * h), (0.25, -h), (0.75, -0.6 * h), (1.0, 0), (0.75, 0.6 * h),
        (0.25, h), (-0.3, 0.75 * h),
    )  # fmt: skip
    parts.append(fill(body))
    if rng.random() < 0.5:
        for x in (-0.25, 0.0):
            bend = smooth((x, -0.62 * h), (x + 0.12, 0), (x, 0.62 * h), closed=False)
            parts.append(line(bend, color=2, width=0.09, omit=0.4))
    gill = smooth((0.42, -0.55 * h), (0.32, 0), (0.42, 0.55 * h), closed=False)
    parts.append(line(gill, color=3, width=0.05, omit=0.25))
    return [*parts, fill(ellipse(0.66, -0.22 * h, 0.09), color=4, solid=True)]


def flower(rng: Random) -> list[Part]:
    """Petals around a disc on a stem with leaves."""
    count, petal = rng.integers(5, 9), rng.uniform(0.3, 0.38)
    bend = rng.uniform(-0.15, 0.15)
    stem = smooth((0, -0.4), (bend, 0.4), (0, 1.15), closed=False)
    parts = [fill(tube(stem, 0.05), color=2)]
    for side in rng.permutation([-1, 1])[: rng.integers(1, 3)]:
        angle = -90 + side * rng.uniform(40, 65)
        parts.append(fill(leaf(bend * 0.8, rng.uniform(0.6, 0.9), 0.65, 0.15, angle), color=2))
    phase, reach = rng.uniform(0, 360), rng.uniform(0.38, 0.46)
    width = min(petal, 3.0 * reach / count)
    for i in range(count):
        bud = ellipse(reach, 0, 0.8 * petal, width)
        parts.append(fill(turned(bud, phase + 360 * i / count) + [0, -0.5]))
    return [*parts, fill(ellipse(0, -0.5, rng.uniform(0.2, 0.27)), color=1)]


def ice_cream(rng: Random) -> list[Part]:
    """One to three scoops on a waffle cone."""
    w, deep = rng.uniform(0.42, 0.55), rng.uniform(1.1, 1.4)
    cone = polygon((-w, 0), (w, 0), (0, deep))
    parts = [fill(cone, color=3)]
    for s in (-1, 1):
        for t in (0.3, 0.62):
            parts.append(
                line(
                    polygon((s * w * (1 - t), deep * t), (s * w * (0.4 - t), 0.02)),
                    color=4,
                    width=0.04,
                    omit=0.4,
                )
            )
    scoops, r = rng.integers(1, 4), w * rng.uniform(0.95, 1.08)
    centers = [(0, -0.55 * r)] if scoops == 1 else [(-0.5 * w, -0.3 * r), (0.5 * w, -0.3 * r)]
    centers = [*centers, (0, -1.15 * r)] if scoops == 3 else centers
    for i, (x, y) in enumerate(reversed(centers)):
        size = 1.1 * r if scoops == 1 else 0.8 * r
        parts.append(fill(cloud(x, y, size, size, 9, 0.06), color=(1, 0, 2)[i]))
    if rng.random() < 0.4:
        top = min(y for _, y in centers) - 0.95 * r
        parts.append(fill(ellipse(0.05, top, 0.13), color=4, omit=0.3))
    return parts


def mushroom(rng: Random) -> list[Part]:
    """A domed cap with spots on a thick stem."""
    w, h, stem = rng.uniform(0.85, 1.05), rng.uniform(0.7, 0.95), rng.uniform(0.2, 0.32)
    foot = stem * rng.uniform(1.0, 1.45)
    leg = smooth(
        (-stem, -0.1), (-stem, 0.4), (-foot, 0.9), (0, 1.0), (foot, 0.9), (stem, 0.4), (stem, -0.1)
    )
    parts = [fill(leg, color=1)]
    if rng.random() < 0.4:
        parts.append(fill(trapezoid(0, 0.2, 0.38, stem, 1.5 * stem), color=4, omit=0.4))
    cap = np.concatenate(
        [
            ellipse(0, 0, w, h, 180, 360),
            smooth((w, 0), (0.5 * w, 0.16), (0, 0.2), (-0.5 * w, 0.16), (-w, 0), closed=False),
        ]
    )
    parts.append(fill(cap))
    for x, y in ((-0.5, -0.25), (0.02, -0.55), (0.5, -0.22), (0.05, -0.1))[: rng.integers(0, 5)]:
        parts.append(fill(ellipse(x * w, y * h, rng.uniform(0.1, 0.17)), color=2, omit=0.3))
    return parts


def pineapple(rng: Random) -> list[Part]:
    """An oval body with a lattice under a tuft of blades."""
    w, h, y = rng.uniform(0.5, 0.64), rng.uniform(0.68, 0.8), 0.4
    parts = []
    for i, angle in enumerate(np.linspace(-155, -25, rng.integers(5, 8))):
        long = rng.uniform(0.6, 0.75) + 0.25 * np.sin(np.radians(-angle)) ** 4
        parts.append(fill(leaf(0, y - 0.85 * h, long, 0.12, angle), color=2 - i % 2))
    parts.append(fill(ellipse(0, y, w, h)))
    for t in (-0.5, 0, 0.5):
        half = 0.9 * np.sqrt(1 - t * t)
        for s in (-1, 1):
            a = polygon(
                (s * (t - 0.6 * half) * w, y - 0.75 * half * h),
                (s * (t + 0.6 * half) * w, y + 0.75 * half * h),
            )
            a[:, 0] = np.clip(a[:, 0], -0.8 * w, 0.8 * w)
            parts.append(line(a, color=3, width=0.05, omit=0.25))
    return parts


def snowman(rng: Random) -> list[Part]:
    """Two or three balls with a hat, stick arms, buttons, a nose."""
    big, mid = rng.uniform(0.48, 0.58), rng.uniform(0.34, 0.42)
    head, three = rng.uniform(0.24, 0.3), rng.random() < 0.7
    y0 = 1.0 - big
    y1 = y0 - 0.8 * big - 0.7 * mid
    y2 = (y1 - 0.8 * mid if three else y0 - 0.8 * big) - 0.8 * head
    arms = y1 if three else y0 - 0.3 * big
    parts = []
    for s in (-1, 1):
        tip = rng.uniform(-0.45, 0.0)
        parts.append(
            line(polygon((s * 0.25, arms), (s * 0.85, arms + tip)), color=3, width=0.07, omit=0.1)
        )
    parts.append(fill(ellipse(0, y0, big)))
    parts += [fill(ellipse(0, y1, mid))] if three else []
    parts.append(fill(ellipse(0, y2, head)))
    for y in (y1 - 0.1, y1 + 0.15) if three else (y0 - 0.2, y0 + 0.1):
        parts.append(fill(ellipse(0, y, 0.05), color=4, omit=0.3, solid=True))
    parts += [
        fill(ellipse(x, y2 - 0.05, 0.035), color=4, omit=0.2, solid=True) for x in (-0.1, 0.1)
    ]
    parts.append(fill(polygon((0, y2), (0.28, y2 + 0.08), (0, y2 + 0.1)), color=2, omit=0.3))
    if rng.random() < 0.8:
        top = y2 - 0.75 * head
        parts.append(fill(box(0, top - 0.17, 0.2, rng.uniform(0.15, 0.24)), color=1))
        parts.append(fill(box(0, top, 0.34, 0.05), color=1))
    return parts


def tree(rng: Random) -> list[Part]:
    """A trunk under a leafy crown."""
    w, h, trunk = rng.uniform(0.7, 0.95), rng.uniform(0.6, 0.8), rng.uniform(0.1, 0.17)
    stem = trapezoid(0, -0.1, 1.1, trunk, trunk * rng.uniform(1.3, 1.9))
    crown = cloud(
        rng.uniform(-0.08, 0.08), -0.4, w, h, int(rng.integers(7, 12)), rng.uniform(0.08, 0.15)
    )
    parts = [fill(stem, color=3), fill(crown)]
    if rng.random() < 0.6:
        for _ in range(rng.integers(2, 5)):
            x, y = rng.uniform(-0.55, 0.55) * w, -0.4 + rng.uniform(-0.55, 0.5) * h
            parts.append(fill(ellipse(x, y, 0.09), color=1, omit=0.45))
    return parts


def turtle(rng: Random) -> list[Part]:
    """A domed shell with plates, a head, legs, a tail."""
    w, h = rng.uniform(0.72, 0.85), rng.uniform(0.5, 0.72)
    neck = rng.uniform(0.1, 0.3)
    parts = [
        fill(polygon((-w + 0.1, 0.1), (-w - 0.25, 0.32), (-w + 0.15, 0.28)), color=1),
        fill(capsule((w - 0.2, 0.2), (w + 0.2, 0.1 - neck), 0.12), color=1),
        fill(ellipse(w + 0.28, -neck, 0.2, 0.17), color=1),
        fill(ellipse(w + 0.34, -neck - 0.05, 0.04), color=4, solid=True),
    ]
    parts += [fill(box(s * 0.55 * w, 0.42, 0.15, 0.2), color=1) for s in (-1, 1)]
    shell = np.concatenate([ellipse(0, 0.25, w, 0.25 + h, 180, 360), [[w, 0.25]]])
    parts.append(fill(shell))
    for t in (-0.45, 0, 0.45):
        rib = smooth(
            (0.5 * t * w, 0.25 - 0.9 * (0.25 + h) * (1 - 0.3 * abs(t))), (t * w, 0.22), closed=False
        )
        parts.append(line(rib, color=2, width=0.06, omit=0.3))
    return [*parts, fill(box(0, 0.27, w + 0.06, 0.07), color=2)]
