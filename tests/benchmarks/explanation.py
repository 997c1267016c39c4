"""Measures accuracy, faithfulness and cost of the explanations of a checkpoint.

    python -m tests.benchmarks.explanation --checkpoint=demo

Right places: for sketches of unseen classes of `doodles`, each paired with the photo of its own
instance, the share of places with strokes whose best match is within one cell of the position of
those strokes in the photo (which the generator knows). Chance is exact: the share of the photo's
cells that count as right, 9 inside the grid and fewer at its border. `same cell` is the result of
matching every place with itself: both images are centred, so a network that uses only positions
does well. Therefore it is measured again with mirrored photos, only for places that moved by more
than a cell, which can be found only by content. Untrained is the network before its first step.

Faithfulness: the area under the score while matches are removed, largest attribution first,
compared with random orders and with smallest attribution first. The same for the untrained network
and for photos of another class: where the score is nearly a linear function of the matches, any
order by gradient times input passes the test, also without anything learned or matching.

Cost: the time to explain one pair and to score it, from images, after compilation, alternating.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

import zse_jax
from data_pipelines import images
from data_pipelines.builders.doodles import generation, truth
from data_pipelines.builders.doodles.classes import UNSEEN
from tests.benchmarks import machine
from zse_jax import retrievers
from zse_jax.checkpoints import reading
from zse_jax.explain import correspondence
from zse_jax.retrieval import encoding

RATIO, AREA, COST = 2.0, 0.8, 1.5
"""Targets: at least, at most, at most."""


def pairs(per_class: int, size: int) -> tuple[list[tuple[str, int]], np.ndarray, np.ndarray]:
    """Instances of the unseen classes, with their prepared sketches and photos."""
    instances = [(name, index) for name in UNSEEN for index in range(per_class)]
    sketches, photos = (
        np.stack([prepare(generation.render(*instance, modality), size) for instance in instances])
        for modality, prepare in images.PREPARE.items()
    )
    return instances, sketches, photos


def right_places(
    match: np.ndarray, true: np.ndarray, inked: np.ndarray
) -> tuple[float, float, float]:
    """Shares of places with strokes: matched within one cell, by chance, and `same cell`.

    Args:
      match: [b, s, p] on a square grid.
      true: [b, s, 2], row and column in cells.
      inked: [b, s].
    """
    side = correspondence.grid_side(match.shape[2])
    found, same = (
        within_one_cell(place, true, side)[inked].mean()
        for place in (match.argmax(axis=2), np.arange(match.shape[1])[None])
    )
    cell = _cells(true, side)
    near = np.minimum(cell + 1, side - 1) - np.maximum(cell - 1, 0) + 1
    return found, (near.prod(axis=-1) / side**2)[inked].mean(), same


def within_one_cell(place: np.ndarray, true: np.ndarray, side: int) -> np.ndarray:
    """Whether each place is the true cell or one of its neighbours."""
    where = np.stack([place // side, place % side], axis=-1)
    return np.abs(where - _cells(true, side)).max(axis=-1) <= 1


def _cells(true: np.ndarray, side: int) -> np.ndarray:
    return np.clip(np.floor(np.nan_to_num(true)), 0, side - 1)


def report_places(
    models: dict[str, retrievers.Retriever], instances: list, sketches: Any, photos: Any
) -> None:
    """Prints how often each kind of evidence of each model is at the right place."""
    print(f"\nright places, {len(instances)} pairs")
    head = f"{'evidence':18}{'grid':>5}{'found':>8}{'chance':>8}{'ratio':>7}{'same cell':>11}"
    print(f"{'':12}{'photos':12}{head}")
    turned = {"unchanged": photos, "mirrored": photos[:, :, ::-1]}
    for (name, model), (way, given) in itertools.product(models.items(), turned.items()):
        explained = correspondence.Explainer(model)(sketches, given)
        kinds = {"match": explained.match}
        if explained.sketch_attention is not None and explained.photo_attention is not None:
            kinds["sketch attention"] = explained.sketch_attention
            kinds["photo attention"] = explained.photo_attention.swapaxes(1, 2)
        for kind, match in kinds.items():
            side = correspondence.grid_side(match.shape[1])
            true, inked = (
                np.stack(x)
                for x in zip(
                    *(truth.true_places(*i, side, size=model.image_size) for i in instances),
                    strict=True,
                )
            )
            if way == "mirrored":
                true = np.stack([true[..., 0], side - true[..., 1]], axis=-1)
                inked &= ~within_one_cell(np.arange(side**2)[None], true, side)
            found, chance, same = right_places(match, true, inked)
            print(
                f"{name:12}{way:12}{kind:18}{side:>2}x{side:<2}{found:8.3f}{chance:8.3f}"
                f"{found / chance:7.2f}{same:11.3f}"
            )
    print(f"(match, trained, unchanged photos: at least {RATIO} times chance)")


def report_deletion(
    models: dict[str, retrievers.Retriever], sketches: Any, photos: Any, others: Any, seed: int
) -> None:
    """Prints the areas under the score while matches are removed.

    Args:
      models: "trained" and "untrained".
      sketches, photos: pairs.
      others: for each sketch, a photo of another class.
      seed: of the random orders.
    """
    print(
        f"\ndeletion, {len(sketches)} pairs: area under the score, and its ratio to random orders"
    )
    print(
        f"{'':12}{'photos':14}{'all':>7}{'none':>7}   most attributed   random   least attributed"
    )
    given = {"own": photos, "another class": others}
    for (name, model), (which, gallery) in itertools.product(models.items(), given.items()):
        explained = correspondence.Explainer(model)(sketches, gallery)
        attribution = explained.attribution.reshape(len(sketches), -1)
        rng = np.random.default_rng(seed)
        orders = {
            "most": [(-attribution).argsort(axis=1)],
            "random": [rng.random(attribution.shape).argsort(axis=1) for _ in range(5)],
            "least": [attribution.argsort(axis=1)],
        }
        squash = jax.nn.sigmoid if "score" in model.rankings.values() else np.asarray
        area, curve = {}, np.zeros((1, 1))
        for order, each in orders.items():
            curves = [squash(correspondence.deletion_curve(model, explained, x)) for x in each]
            curve = np.mean(curves, axis=0)
            area[order] = float(np.trapezoid(curve, axis=1).mean() / (curve.shape[1] - 1))
        whole, nothing = curve[:, [0, -1]].mean(axis=0)
        cells = (f"{area[x]:.4f} ({area[x] / area['random']:.2f})" for x in area)
        print(f"{name:12}{which:14}{whole:7.3f}{nothing:7.3f}{''.join(f'{x:>18}' for x in cells)}")
    print(f"(trained, own photos, most attributed: at most {AREA} of random)")


def report_cost(name: str, model: retrievers.Retriever, sketch: Any, photo: Any) -> None:
    """Prints the time to explain and to score one pair, measured alternately."""
    graphdef, state = encoding.evaluation_state(model, None)

    @jax.jit
    def score(state: Any, sketch: Any, photo: Any) -> Any:
        model = nnx.merge(graphdef, state)
        return model.score(model.encode(sketch, "sketch"), model.encode(photo, "photo"))

    @jax.jit
    def separately(state: Any, image: Any) -> Any:
        return nnx.merge(graphdef, state).encode(image, "photo")

    explainer = correspondence.Explainer(model)
    runs: dict[str, Callable[[], Any]] = {
        "explain": lambda: explainer(sketch, photo),
        "score": lambda: jax.device_get(score(state, sketch, photo)),
        "encode one": lambda: jax.device_get(separately(state, photo)),
    }
    spent: dict[str, list[float]] = {kind: [] for kind in runs}
    for run in runs.values():
        run()
    while sum(map(sum, spent.values())) < 20 and len(spent["score"]) < 200:
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            spent[kind].append(time.perf_counter() - start)
    median = {kind: float(np.median(seconds)) for kind, seconds in spent.items()}
    print(
        f"cost, {name}: explaining a pair {1e3 * median['explain']:.1f} ms, scoring it "
        f"{1e3 * median['score']:.1f} ms, encoding one image {1e3 * median['encode one']:.1f} ms: "
        f"ratio {median['explain'] / median['score']:.2f} (limit {COST})"
    )


def main() -> None:
    """Measures the checkpoint, and the cost of a full-size network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--per_class", type=int, default=48, help="instances per class")
    parser.add_argument("--pairs", type=int, default=100, help="pairs in the deletion test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full_size", action="store_true", help="also measure the cost of B/16")
    options = parser.parse_args()
    print(machine.describe("jax", "flax", "numpy"))
    model, config = zse_jax.load(options.checkpoint), reading.read_config(options.checkpoint)
    rngs = nnx.Rngs(params=options.seed, dropout=options.seed + 1)
    untrained = retrievers.create(config.model, dtype=config.compute_dtype, rngs=rngs)
    print(f"{options.checkpoint}, step {reading.step_of(options.checkpoint)}")
    print(f"evidence: {model.local_evidence}")
    instances, sketches, photos = pairs(options.per_class, model.image_size)
    models = {"untrained": untrained, "trained": model}
    report_places(models, instances, sketches, photos)
    chosen = np.random.default_rng(options.seed).permutation(len(sketches))[: options.pairs]
    others = photos[(chosen + options.per_class) % len(photos)]  # of the next class
    report_deletion(models, sketches[chosen], photos[chosen], others, options.seed)
    print()
    report_cost(config.model.system, model, sketches[:1], photos[:1])
    if options.full_size:
        full = retrievers.create({"system": "zse", "anchor_map": "spatial"}, rngs=nnx.Rngs(0))
        _, sketches, photos = pairs(1, full.image_size)
        report_cost("ZSE B/16", full, sketches[:1], photos[:1])


if __name__ == "__main__":
    main()
