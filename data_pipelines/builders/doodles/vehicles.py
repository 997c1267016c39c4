"""The vehicles of `doodles`: one function per class.

Each takes the random generator of the instance and returns its parts from back to front.
"""

import numpy as np

from data_pipelines.builders.doodles.parts import (
    Part,
    box,
    capsule,
    ellipse,
    fill,
    line,
    mirrored,
    polygon,
    smooth,
    trapezoid,
    turned,
    wheel,
)

Random = np.random.Generator


def airplane(rng: Random) -> list[Part]:
    """A fuselage with a swept wing, a fin and windows, from the side."""
    r, sweep = rng.uniform(0.17, 0.24), rng.uniform(0.25, 0.5)
    span = rng.uniform(0.55, 0.75)
    fin = polygon((-0.65, -0.1), (-1.1, -0.7), (-0.85, -0.7), (-0.3, -0.1))
    far = polygon(
        (0.3, -0.1), (0.0 - sweep, -0.75 * span), (0.22 - sweep, -0.75 * span), (0.55, -0.1)
    )
    near = polygon(
        (-0.1, 0.05), (-0.35 - sweep, span + 0.1), (-0.08 - sweep, span + 0.1), (0.4, 0.05)
    )
    body = smooth((-1.1, -0.15), (-0.5, -r), (0.6, -r), (1.1, 0.05), (0.6, r), (-0.5, 0.8 * r))
    parts = [fill(far, color=1), fill(fin, color=1), fill(body)]
    parts += [fill(ellipse(x, -0.05, 0.055), color=2, omit=0.3) for x in (-0.2, 0.05, 0.3, 0.55)]
    parts.append(fill(polygon((-0.75, 0), (-1.15, 0.2), (-1.0, 0.2), (-0.5, 0.02)), color=1))
    return [*parts, fill(near, color=1)]


def balloon(rng: Random) -> list[Part]:
    """A hot-air balloon: a striped envelope, ropes, a basket."""
    w, neck = rng.uniform(0.75, 0.92), rng.uniform(0.16, 0.24)
    bottom = rng.uniform(0.4, 0.5)
    parts = [
        line(polygon((s * neck, bottom), (s * 0.14, 0.95)), color=3, width=0.04) for s in (-1, 1)
    ]
    hull = smooth(
        (0, -1.1), (0.7 * w, -0.85), (w, -0.3), (0.7 * w, 0.15), (neck, bottom), (-neck, bottom),
        (-0.7 * w, 0.15), (-w, -0.3), (-0.7 * w, -0.85),
    )  # fmt: skip
    parts.append(fill(hull))
    for t in (-0.75, -0.28, 0.28, 0.75)[:: rng.integers(1, 3)]:
        seam = smooth((0.1 * t, -1.05), (0.9 * t * w, -0.3), (t * neck, bottom), closed=False)
        parts.append(line(seam, color=1, width=rng.uniform(0.05, 0.14), omit=0.3))
    return [*parts, fill(trapezoid(0, 0.9, 1.2, 0.2, 0.15), color=2)]


def bicycle(rng: Random) -> list[Part]:
    """Two spoked wheels, a diamond frame, a saddle and a handlebar."""
    r, half = rng.uniform(0.4, 0.47), rng.uniform(0.58, 0.66)
    y, thick = 0.35, rng.uniform(0.07, 0.1)
    parts, turn = [], rng.uniform(0, 60)
    for x in (-half, half):
        for angle in turn + np.arange(0, 180, 60):
            spoke = turned(polygon((-r, 0), (r, 0)), angle) + [x, y]
            parts.append(line(spoke, color=4, width=0.03, omit=0.6))
        parts.append(fill(ellipse(x, y, r), ellipse(x, y, r - 0.1), color=1))
    seat, head, crank = (-0.25, -0.2), (0.4, -0.25), (-0.02, 0.38)
    for a, b in (
        (seat, crank),
        (seat, head),
        (head, crank),
        ((-half, y), crank),
        ((-half, y), seat),
    ):
        parts.append(line(polygon(a, b), width=thick))
    bar = (0.36, rng.uniform(-0.55, -0.45))
    parts.append(line(polygon((half, y), bar), width=thick))
    parts.append(
        line(polygon(bar, (bar[0] + 0.22, bar[1] - rng.uniform(-0.08, 0.1))), color=2, width=0.08)
    )
    parts.append(line(polygon(seat, (-0.3, -0.38)), width=thick))
    saddle = capsule((-0.46, -0.42), (-0.16, -0.4), 0.06)
    return [*parts, fill(saddle, color=2), fill(ellipse(*crank, 0.1), color=3, omit=0.3)]


def car(rng: Random) -> list[Part]:
    """A low body, a cabin with windows, two wheels."""
    roof, r = rng.uniform(0.4, 0.55), rng.uniform(0.2, 0.27)
    back, front = rng.uniform(-0.75, -0.5), rng.uniform(0.3, 0.55)
    cabin = polygon(
        (back - 0.12, 0.02), (back + 0.1, -roof), (front - 0.25, -roof), (front + 0.12, 0.02)
    )
    body = smooth(
        (-1.1, 0.35), (-1.1, 0.05), (-0.7, -0.04), (0, -0.04), (0.6, -0.02), (1.1, 0.12),
        (1.12, 0.35), (0.6, 0.4), (-0.6, 0.4),
    )  # fmt: skip
    parts = [fill(cabin), fill(body)]
    middle = rng.uniform(-0.2, 0.0)
    left = polygon(
        (back + 0.08, -0.04), (back + 0.18, -roof + 0.1), (middle - 0.04, -roof + 0.1),
        (middle - 0.04, -0.04),
    )  # fmt: skip
    right = polygon(
        (middle + 0.06, -0.04), (middle + 0.06, -roof + 0.1), (front - 0.28, -roof + 0.1),
        (front - 0.04, -0.04),
    )  # fmt: skip
    parts += [fill(left, color=1), fill(right, color=1)]
    for x in (-0.6, 0.62):
        parts += wheel(x, 0.4, r)
    parts.append(fill(ellipse(1.02, 0.15, 0.08), color=2, omit=0.4))
    return parts


def rocket(rng: Random) -> list[Part]:
    """A pointed hull with fins, a porthole and a flame."""
    w, out = rng.uniform(0.3, 0.4), rng.uniform(0.3, 0.45)
    parts = []
    if rng.random() < 0.75:
        flame = smooth((-0.2, 0.65), (0.2, 0.65), (0.12, 0.95), (0.0, 1.25), (-0.12, 0.95))
        parts.append(fill(flame, color=3, omit=0.15))
    fin = polygon((0.8 * w, 0.1), (w + out, 0.6), (w + out, 0.95), (0.7 * w, 0.7))
    parts += [fill(f, color=1) for f in (fin, mirrored(fin))]
    half = smooth((0.0, -1.2), (0.6 * w, -0.75), (w, -0.1), (0.75 * w, 0.72), closed=False)
    parts.append(fill(np.concatenate([half, mirrored(half)[::-1]])))
    nose = half[:9]
    if rng.random() < 0.5:
        parts.append(fill(np.concatenate([nose, mirrored(nose)[::-1]]), color=1, omit=0.2))
    return [*parts, fill(ellipse(0, -0.3, rng.uniform(0.13, 0.18)), color=2)]


def sailboat(rng: Random) -> list[Part]:
    """A hull, a mast, a main sail and a jib."""
    w, deep, gap = rng.uniform(0.8, 1.0), rng.uniform(0.3, 0.42), 0.05
    tall, mast = rng.uniform(1.0, 1.25), rng.uniform(-0.15, 0.1)
    main = polygon((mast + gap, -tall), (mast + rng.uniform(0.65, 0.8), 0.38), (mast + gap, 0.38))
    jib = polygon(
        (mast - gap, -0.8 * tall), (mast - gap, 0.38), (mast - rng.uniform(0.5, 0.65), 0.38)
    )
    keel = smooth(
        (w, 0.5), (0.7 * w, 0.5 + deep), (0, 0.55 + deep), (-0.7 * w, 0.5 + deep), (-w, 0.5),
        closed=False,
    )  # fmt: skip
    parts = [line(polygon((mast, -tall - 0.12), (mast, 0.5)), color=3, width=0.06)]
    parts += [fill(main), fill(jib, color=1), fill(keel, color=2)]
    if rng.random() < 0.4:
        flag = polygon((mast, -tall - 0.15), (mast - 0.25, -tall - 0.05), (mast, -tall + 0.05))
        parts.append(fill(flag, color=4, omit=0.3))
    return parts


def truck(rng: Random) -> list[Part]:
    """A cargo box, a cab with a window, two or three wheels."""
    tall, r, split = rng.uniform(0.75, 0.95), rng.uniform(0.18, 0.23), rng.uniform(0.3, 0.42)
    cab = rng.uniform(0.45, 0.6)
    nose = polygon(
        (split, 0.4), (split, 0.4 - cab - 0.15), (split + 0.4, 0.4 - cab - 0.15), (1.1, 0.05),
        (1.1, 0.4),
    )  # fmt: skip
    window = polygon(
        (split + 0.1, 0.02), (split + 0.1, 0.3 - cab), (split + 0.36, 0.3 - cab),
        (split + 0.55, 0.02),
    )  # fmt: skip
    cargo = box((split - 1.1) / 2, 0.4 - tall / 2, (split + 1.1) / 2 - 0.03, tall / 2)
    parts = [fill(nose, color=1), fill(window, color=2, omit=0.15), fill(cargo)]
    if rng.random() < 0.5:
        parts.append(fill(box((split - 1.1) / 2, 0.4 - tall / 2, 0.5, 0.1), color=4, omit=0.5))
    parts.append(fill(box(0, 0.42, 1.1, 0.05), color=3))
    for x in (-0.75, -0.3, 0.72) if rng.random() < 0.5 else (-0.65, 0.7):
        parts += wheel(x, 0.5, r)
    return parts
