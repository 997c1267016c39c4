"""Shows which of your photos a sketch finds, and why.

    python -m zse_jax.explain --checkpoint=runs/sketchy --sketch=cat.png --photos=album --output=why

Ranks the photos (folders are searched recursively, patterns such as "album/*.jpg" are expanded,
--photos can be repeated) and explains the first ones: lines between the places that match, heat
maps, and the sketch rebuilt from photo patches. OUTPUT receives `index.html`, which opens offline,
`retrieved.png`, and one picture for each photo that is explained. For a system without local
evidence, the photos are only ranked, and the page says so.
"""

import io
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8
from matplotlib.figure import Figure

from data_pipelines import paths
from data_pipelines.suggestions import counted
from data_pipelines.terminal import printable
from zse_jax.checkpoints import reading
from zse_jax.explain import figures, pages, pair_figures
from zse_jax.explain.correspondence import Explainer
from zse_jax.explain.synthesis import synthesise, synthesise_from_gallery
from zse_jax.gallery import photos, sketch_input
from zse_jax.gallery.encoder import CompiledEncoder, batch_size
from zse_jax.gallery.photos import Photo
from zse_jax.gallery.results import Hit, Results
from zse_jax.retrieval.encoding import progress_bar
from zse_jax.retrievers.base import Encoder, Explainable
from zse_jax.runtime import cli, config_io
from zse_jax.runtime.console import say

SHOWN = 10
"""Number of photos in the results."""

Image = UInt8[np.ndarray, "s s 3"]


def rank(
    retriever: Encoder, sketch: Image, files: Sequence[Path], ranking: str
) -> tuple[list[tuple[Path, float]], list[tuple[Path, str]]]:
    """Ranks photo files by one of the system's rankings.

    Returns:
      The photos with their similarities, nearest first, and the files that were skipped, each with
      the reason.
    """
    encoder, batch = CompiledEncoder(retriever), batch_size(len(files))
    query = encoder(sketch[None], "sketch", 1)
    ranked: list[tuple[Path, float]] = []
    skipped: list[tuple[Path, str]] = []
    waiting: list[tuple[Path, Image]] = []

    def score() -> None:
        encoded = encoder(np.stack([image for _, image in waiting]), "photo", batch)
        if retriever.rankings[ranking] == "score":
            similarity = encoder.score(query.features, encoded.features)
        else:
            similarity = encoded.embedding @ query.embedding[0]
        ranked.extend(zip((file for file, _ in waiting), similarity.tolist(), strict=True))
        waiting.clear()

    with progress_bar("photos", len(files), unit="photo") as bar:
        results = photos.read_all(files, retriever.image_size, retriever.preprocessing)
        for file, result in zip(files, results, strict=True):
            if isinstance(result, Photo) and result.image is not None:
                waiting.append((file, result.image))
            elif isinstance(result, Exception):
                skipped.append((file, photos.reason(result)))
            if len(waiting) == batch:
                score()
            bar.update()
        if waiting:
            score()
    return sorted(ranked, key=lambda pair: -pair[1]), skipped


def hit(rank: int, file: Path, similarity: float, photo: Photo) -> Hit:
    """A ranked photo as a search result."""
    id_, path, stage = photos.identity(file), photos.name_of(file), "rerank"
    size = photo.width, photo.height
    return Hit(rank, id_, path, file, similarity, stage, photo.thumbnail, *size)


def explain(
    retriever: Encoder, sketch: Image, hits: Sequence[Hit], found: Sequence[Image]
) -> tuple[list[pages.Explained], dict[str, bytes]]:
    """Explains photos, and draws one picture of each: file name -> PNG.

    Args:
      retriever: an `Explainable` system.
      sketch: prepared.
      hits: the photos to explain.
      found: their prepared images.
    """
    pairs = [(sketch, photo) for photo in found]
    reasons = [*pages.explanations(Explainer(retriever), pairs, progress=True)]
    matches = [explanation.match[pair] for explanation, pair in reasons]
    inks = [explanation.ink[pair] for explanation, pair in reasons]
    gallery = zip(found, matches, strict=True)
    combined = synthesise_from_gallery(sketch, gallery, inks[0], blend=True).image
    result, pictures = [], {}
    for hit, photo, match, ink, reason in zip(hits, found, matches, inks, reasons, strict=True):
        syntheses = {"synthesis": synthesise(sketch, photo, match, ink, blend=True)}
        if len(hits) > 1:
            syntheses[f"from the first {len(hits)}"] = combined
        title = hit.question
        figure = pair_figures.explanation_figure(
            sketch, photo, *reason, syntheses=syntheses, title=title
        )
        name = re.sub(r"[^\w.-]+", "_", hit.file.stem)[:60]
        pictures[f"{hit.rank:02}-{name}.png"] = png(figure)
        shown = hit.rank == 1
        result.append(
            pages.explained(sketch, photo, *reason, title=title, syntheses=syntheses, shown=shown)
        )
    return result, pictures


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def write(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    """Writes files to a folder, all or none, so that a failed run can be repeated.

    Raises:
      OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            paths.replace(folder / name, content)
    except BaseException:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    flags.DEFINE_string("checkpoint", None, "A workdir, or the folder of one step.", options)
    flags.DEFINE_string("sketch", None, "An image file: dark lines on white.", options)
    help_ = "A folder of photos, a glob pattern, or a file; can be repeated."
    flags.DEFINE_multi_string("photos", [], help_, options)
    flags.DEFINE_string("output", None, "A new or an empty folder for the results.", options)
    help_ = "How to rank. Default: the ranking by which the checkpoint was selected."
    flags.DEFINE_string("ranking", None, help_, options)
    help_ = "Number of photos to explain."
    flags.DEFINE_integer("top", 3, help_, 1, SHOWN, options)


def main(options: flags.FlagValues) -> None:
    """Ranks the photos, explains the first ones, and writes the page and the pictures."""
    began = time.perf_counter()
    cli.require(options, checkpoint="runs/sketchy", sketch="cat.png", output="why", photos="album")
    found = photos.find(options.photos)
    if not found.files:
        raise ValueError(f"--photos={', '.join(options.photos)} contains no photos.")
    folder = reading.new_folder(options.output)
    step, retriever = reading.load_step(options.checkpoint)
    config = reading.read_config(options.checkpoint)
    prepared = retriever.image_size, retriever.preprocessing
    sketch = sketch_input.read(options.sketch, *prepared)
    ranking = options.ranking or config.evaluation.select.partition("/")[0]
    if ranking not in retriever.rankings:
        nearest = config_io.nearest(ranking, retriever.rankings)
        raise ValueError(
            f"--ranking={ranking} is not a ranking of this system: did you mean {nearest}?"
        )
    files = [candidate.file for candidate in found.files]
    ranked, skipped = rank(retriever, sketch, files, ranking)
    skipped = [*found.refused, *skipped]
    report = "; ".join(f"{photos.name_of(file)}: {reason}" for file, reason in skipped[:20])
    if not ranked:
        count = counted(len(files), "photo", "photos")
        raise ValueError(f"{count} found, but none can be used ({report}).")
    top = [photos.read(file, *prepared) for file, _ in ranked[:SHOWN]]
    images = [photo.image for photo in top if photo.image is not None]
    hits = [hit(i, *ranked[i - 1], photo) for i, photo in enumerate(top, start=1)]
    explained: list[pages.Explained] = []
    pictures: dict[str, bytes] = {}
    warnings = []
    if isinstance(retriever, Explainable):
        explained, pictures = explain(retriever, sketch, hits[: options.top], images[: options.top])
    else:
        warnings.append(
            f"{type(retriever).__name__} compares whole images and has no local evidence, so the "
            "photos are ranked but not explained."
        )
    if skipped:
        warnings.append(f"{counted(len(skipped), 'file was', 'files were')} skipped ({report}).")
    name = sketch_input.name_of(options.sketch)
    grid = figures.retrieval_grid(
        [sketch],
        images,
        np.arange(len(hits))[None],
        sketch_labels=np.array([len(hits)]),
        photo_labels=np.arange(len(hits)),
        class_names=[*(Path(hit.path).stem for hit in hits), Path(name).stem],
        similarity=np.array([[hit.similarity for hit in hits]]),
        judged=False,
        title=f"The photos nearest to {Path(name).name}, by {ranking}",
    )
    results = Results(
        hits=hits,
        sketch=sketch,
        seconds=time.perf_counter() - began,
        timings={},
        rankings={"rerank": ranking},
        photos=len(ranked),
        skipped=0,
        about={
            "sketch": name,
            "checkpoint": printable(f"{options.checkpoint}, step {step}"),
            "system": f"{config.model.system}, ranking by {ranking}",
        },
    )
    page = results.to_html(explained, warnings).encode()
    write(folder, {**pictures, "retrieved.png": png(grid), "index.html": page})
    for warning in warnings:
        say(warning)
    say(f"wrote {folder / 'index.html'} and {len(explained) + 1} pictures")


if __name__ == "__main__":
    cli.run(main, define_flags)
