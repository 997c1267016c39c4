"""How well drawings find the photos of an album, for a data set with one folder for each class.

    python -m tests.benchmarks.album --photos=DIR --sketches=DIR [--every=4] [--without=PATTERN]
        [--whole]

Prepares photos and sketches as the gallery does. Prints the P@10 (percent of right photos among the
first 10), and the P@10 with query expansion, as means over sketches and over classes and for each
class; for a model with a calibration, also how its probabilities compare with what is right.
`--without` leaves out images by name: PACS contains many images of Sketchy, n01234567_*.
"""

import argparse
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

import zse_jax
from data_pipelines import images
from tests.benchmarks.machine import describe
from zse_jax.checkpoints import reading
from zse_jax.evaluation.calibration import NEAREST
from zse_jax.gallery import photos, sketch_input
from zse_jax.gallery.encoder import CompiledEncoder
from zse_jax.gallery.search import EXPAND
from zse_jax.retrieval import calibration
from zse_jax.retrieval.expansion import expand


def files(folder: Path, without: str, every: int = 1) -> list[Path]:
    """Every n-th of the photos in the folders of a folder whose name does not match a pattern."""
    found = (each.file for each in photos.find(folder).files)
    return [file for file in found if not fnmatch(file.name, without)][::every]


def right(similarity: np.ndarray, match: Bool[np.ndarray, "q g"], k: int) -> np.ndarray:
    """For each row, the share of matches among the k photos of greatest similarity, 0 to 1.

    (`metrics.precision_at` looks at fewer photos where a class has fewer.)
    """
    first = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(match, first, axis=1).mean(1)


def by_class(values: Float[np.ndarray, " q"], classes: np.ndarray) -> str:
    """Mean over sketches, mean over classes, and the mean of each class, in percent."""
    means = {str(name): 100 * values[classes == name].mean() for name in np.unique(classes)}
    each = ", ".join(f"{name} {mean:.0f}" for name, mean in means.items())
    return (
        f"{100 * values.mean():.1f}, mean of classes {np.mean(list(means.values())):.1f} ({each})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", required=True, type=Path)
    parser.add_argument("--sketches", required=True, type=Path)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--every", type=int, default=1, help="take every n-th sketch")
    parser.add_argument("--without", default="", help="pattern of names that are left out")
    parser.add_argument("--whole", action="store_true", help="decode JPEGs whole, not scaled down")
    options = parser.parse_args(argv)

    retriever = zse_jax.load(options.checkpoint)
    encoder, prepare = CompiledEncoder(retriever), (retriever.image_size, retriever.preprocessing)
    album = files(options.photos, options.without)
    drawings = files(options.sketches, options.without, options.every)
    if options.whole:
        pixels = [images.prepare_photo(photos.decoded(x), *prepare) for x in album]
    else:
        pixels = [photos.prepared(x, *prepare) for x in album]
    gallery = encoder(np.stack(pixels), "photo").embedding
    lines = [sketch_input.read(x, *prepare) for x in drawings]
    queries = encoder(np.stack(lines), "sketch").embedding
    shown, drawn = (np.array([x.parent.name for x in found]) for found in (album, drawings))
    match = drawn[:, None] == shown

    print(describe("jax", "numpy"))
    print(f"{len(drawings):,} sketches, {len(album):,} photos, {len(set(shown))} classes")
    similarity = queries @ gallery.T
    print("P@10", by_class(right(similarity, match, 10), drawn))
    expanded = np.asarray(expand(queries, gallery, EXPAND)) @ gallery.T
    print("P@10 with expansion", by_class(right(expanded, match, 10), drawn))
    if found := calibration.of_record(reading.record_of(retriever)):
        chance = found.probability(similarity.ravel()).reshape(similarity.shape)
        likely = np.sort(chance, axis=1)[:, -NEAREST:].mean()
        print(
            f"the {NEAREST} nearest photos: mean probability {likely:.2f}, "
            f"right {100 * right(similarity, match, NEAREST).mean():.0f} %"
        )
        best = [chance.max(1), np.where(match, 0, chance).max(1)]
        with_class, without = (100 * (x < calibration.LIKELY).mean() for x in best)
        print(
            f"no photo reaches {calibration.LIKELY} for {with_class:.0f} % of the sketches, "
            f"without the photos of their class for {without:.0f} %"
        )


if __name__ == "__main__":
    main()
