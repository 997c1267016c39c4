"""Which of your photos a sketch finds, and why.

    python -m zse_jax.explain --checkpoint=runs/sketchy --sketch=cat.png --photos=album --output=why

Ranks the photos (folders are searched for images, patterns such as "album/*.jpg" are understood,
--photos may be repeated) and explains the first few: lines between the places that match, heat
maps, and the sketch rebuilt from photo patches. OUTPUT gets `index.html`, which opens offline,
`retrieved.png`, and one picture for each photo that is explained. A system without local evidence
ranks only, and the page says so.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipelines import images
from zse_jax.checkpoints import reading
from zse_jax.explain import figures, pages, pair_figures
from zse_jax.explain.correspondence import Explainer
from zse_jax.explain.pair_figures import LINE_STYLES
from zse_jax.explain.synthesis import synthesise, synthesise_from_gallery
from zse_jax.gallery import sketch_input
from zse_jax.retrieval import encoding, scoring
from zse_jax.retrievers.base import Encoder, Explainable
from zse_jax.runtime import cli, config_io

SMALLEST = 32
"""Shortest side of a photo that there is something to see in, in pixels."""

SHOWN = 10
"""Photos in the row that is drawn."""

BATCH = 32
"""Photos that are encoded at once."""


class Ranked(NamedTuple):
    """What a sketch found.

    Attributes:
      ranking: the way it was ranked.
      top: [k], the photos, nearest first.
      similarity: [k], theirs.
    """

    ranking: str
    top: np.ndarray
    similarity: np.ndarray


class PhotoFiles:
    """The prepared images of photo files, read when asked for."""

    def __init__(self, files: Sequence[Path], size: int):
        """Files, and the side of the images in pixels."""
        self.files, self._size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "h w 3"]:
        """The image of file `index`.

        Raises:
          ValueError: it cannot be read or is too small; names the file.
        """
        file = self.files[index]
        image = read(file)
        if min(image.shape[:2]) < SMALLEST:
            raise ValueError(
                f"The photo {file} is {image.shape[1]} x {image.shape[0]} pixels, too small to "
                f"show anything. Give photos of {SMALLEST} pixels or more on each side, or leave "
                "it out."
            )
        return images.prepare_photo(image, self._size)


class Batches:
    """The photos as the encoder wants them: padded to one shape, and masked."""

    def __init__(self, photos: PhotoFiles):
        """The photos."""
        self._photos = photos
        self._size = min(BATCH, len(photos))

    def __len__(self) -> int:
        return -(-len(self._photos) // self._size)

    def __iter__(self) -> Iterator[encoding.Batch]:
        for start in range(0, len(self._photos), self._size):
            rows = np.arange(start, start + self._size)
            mask = rows < len(self._photos)
            read_ = [self._photos[int(row)] for row in rows[mask]]
            empty = [np.zeros_like(read_[0])] * int((~mask).sum())
            label = np.zeros(self._size, np.int32)
            yield {"image": np.stack(read_ + empty), "label": label, "mask": mask}


def read(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB.

    Raises:
      FileNotFoundError: there is none.
      UnreadableImageError: it is no image; names it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no image file {file}.")
    try:
        return images.decode(file.read_bytes())
    except images.UnreadableImageError as error:
        raise images.UnreadableImageError(
            f"{file} cannot be read: {error}. Save it anew as PNG or JPEG, or leave it out."
        ) from error


def prepared_sketch(file: Path, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The sketch in a file, prepared for a system that takes images of `size` pixels.

    Raises:
      ValueError: it holds no strokes, or is unreadable.
    """
    return sketch_input.prepared(read(file), size, str(file))


def photo_files(places: Sequence[str]) -> list[Path]:
    """The image files that folders (searched through), patterns and names stand for, in order.

    Raises:
      ValueError: none are given, or a folder holds none.
      FileNotFoundError: a name or pattern stands for nothing.
    """
    if not places:
        raise ValueError("Say which photos to rank, such as --photos=album. See --help.")
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file())
            if not files:
                raise ValueError(f"The folder {path} holds no image: give a folder of photos.")
        elif path.is_file():
            files = [path]
        else:
            files = _matching(path)
            if not files:
                raise FileNotFoundError(
                    f"--photos={place} is no file, no folder, and matches nothing."
                )
        found.update(dict.fromkeys(files))
    return [*found]


def _matching(pattern: Path) -> list[Path]:
    """The files that a pattern such as album/**/*.jpg matches."""
    plain = [*itertools.takewhile(lambda part: not set(part) & {*"*?["}, pattern.parts)]
    if len(plain) == len(pattern.parts):
        return []
    rest = Path(*pattern.parts[len(plain) :])
    return sorted(file for file in Path(*plain).glob(str(rest)) if file.is_file())


def check_output(folder: Path) -> None:
    """Checks that a folder is empty or not there yet.

    Raises:
      FileExistsError: it holds something; nothing is overwritten.
      NotADirectoryError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output={folder} is a file: name a new or an empty folder.")
    inside = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if inside:
        raise FileExistsError(
            f"--output={folder} holds other content ({', '.join(inside[:3])}"
            f"{', ...' if len(inside) > 3 else ''}), which is not overwritten: name a new or an "
            "empty folder."
        )


def rank(
    retriever: Encoder, sketch: UInt8[np.ndarray, "h w 3"], photos: PhotoFiles, ranking: str
) -> Ranked:
    """The photos that are nearest to a sketch, by one of the system's rankings."""
    query = [{"image": sketch[None], "label": np.zeros(1, np.int32), "mask": np.ones(1, bool)}]
    sketches, _ = encoding.encode(retriever, query, "sketch")
    gallery, _ = encoding.encode(retriever, Batches(photos), "photo", progress="photos")
    similarity: Float[np.ndarray, "1 g"] = scoring.similarity(
        retriever, sketches, gallery, ranking, progress=ranking
    )
    top = np.argsort(-similarity[0], kind="stable")[:SHOWN]
    return Ranked(ranking, top.astype(np.int32), similarity[0, top])


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    if any(cli.config_arguments(argv)):
        raise ValueError(
            "zse_jax.explain takes no --config: that of the checkpoint holds. See --help."
        )
    flags.DEFINE_string("checkpoint", None, "A workdir, or one step's folder.", options)
    flags.DEFINE_string("sketch", None, "An image file: dark lines on white.", options)
    help_ = "A folder of photos, a pattern, or a file; may be repeated."
    flags.DEFINE_multi_string("photos", [], help_, options)
    flags.DEFINE_string("output", None, "A folder for the results, new or empty.", options)
    help_ = "How to rank; by default as the checkpoint was selected."
    flags.DEFINE_string("ranking", None, help_, options)
    help_ = "How many of the first photos to explain."
    flags.DEFINE_integer("top", 3, help_, 1, SHOWN, options)


def main(options: flags.FlagValues) -> None:
    """Ranks and explains what the flags say."""
    for name, example in (("checkpoint", "runs/sketchy"), ("sketch", "cat.png"), ("output", "why")):
        if not options[name].value:
            raise ValueError(f"--{name} is missing: say, for example, --{name}={example}.")
    files = photo_files(options.photos)
    folder = Path(options.output).expanduser()
    check_output(folder)
    path, sketch_file = options.checkpoint, Path(options.sketch).expanduser()
    config, retriever = reading.read_config(path), reading.load(path)
    sketch = prepared_sketch(sketch_file, retriever.image_size)
    photos = PhotoFiles(files, retriever.image_size)
    chosen = options.ranking or config.evaluation.select.partition("/")[0]
    if chosen not in retriever.rankings:
        raise ValueError(
            f"--ranking={chosen} is none of this system's: did you mean "
            f"{config_io.nearest(chosen, retriever.rankings)}?"
        )
    ranked = rank(retriever, sketch, photos, chosen)
    about = {"sketch": str(sketch_file), "checkpoint": f"{path}, step {reading.step_of(path)}"}
    about["system"] = f"{config.model.system}, ranking by {chosen}"
    folder.mkdir(parents=True, exist_ok=True)
    count = min(options.top, len(files)) if isinstance(retriever, Explainable) else 0
    write(folder, retriever, sketch, photos, ranked, count, about)
    print(f"wrote {folder / 'index.html'} and {count + 1} pictures beside it")


def write(
    folder: Path,
    retriever: Encoder,
    sketch: UInt8[np.ndarray, "h w 3"],
    photos: PhotoFiles,
    ranked: Ranked,
    count: int,
    about: dict[str, str],
) -> None:
    """Draws and writes everything.

    Args:
      folder: gets it.
      retriever: the system.
      sketch: prepared.
      photos: the gallery.
      ranked: its first photos.
      count: how many of them to explain.
      about: what the run was, by name.
    """
    found = {int(photo): photos[int(photo)] for photo in ranked.top}
    names = [file.stem for file in photos.files]
    explained, warnings = [], []
    if isinstance(retriever, Explainable):
        explained = _explain(folder, retriever, sketch, found, [*found][:count], names)
    else:
        warnings.append(
            f"{type(retriever).__name__} compares images as wholes and has no local evidence: the "
            "photos are ranked, but nothing says why."
        )
    figure = figures.retrieval_grid(
        [sketch],
        found,
        ranked.top[None],
        sketch_labels=np.zeros(1, np.int32),
        photo_labels=np.arange(len(names)),
        class_names=names,
        similarity=ranked.similarity[None],
        judged=False,
        title=f"The photos nearest to {Path(about['sketch']).name}, by {ranked.ranking}"
        + ("" if explained else " (no local evidence to explain them)"),
    )
    _save(figure, folder / "retrieved.png")
    row = [
        pages.Photo(
            pages.image_uri(image, pages.THUMBNAIL), names[photo], place, None, f"{value:#.3g}"
        )
        for place, ((photo, image), value) in enumerate(
            zip(found.items(), ranked.similarity.tolist(), strict=True), start=1
        )
    ]
    thumbnail = pages.image_uri(sketch, pages.THUMBNAIL)
    query = pages.Query(
        thumbnail, Path(about["sketch"]).stem, f"by {ranked.ranking}", row, explained
    )
    page = pages.render(
        "pair.html",
        title=f"What {Path(about['sketch']).name} finds, and why",
        lead=f"The nearest of {len(photos):,} photos, with their rank and similarity.",
        warnings=warnings,
        found=query,
        facts=about,
        line_styles=LINE_STYLES,
    )
    (folder / "index.html").write_text(page)


def _explain(
    folder: Path,
    retriever: Explainable,
    sketch: UInt8[np.ndarray, "h w 3"],
    found: dict[int, UInt8[np.ndarray, "h w 3"]],
    wanted: Sequence[int],
    names: Sequence[str],
) -> list[pages.Explained]:
    """Explains the photos `wanted`, and draws a picture of each."""
    pairs = [(sketch, found[photo]) for photo in wanted]
    reasons = [*pages.explanations(Explainer(retriever), pairs, progress=True)]
    gallery = [
        (photo, explanation.match[pair])
        for (_, photo), (explanation, pair) in zip(pairs, reasons, strict=True)
    ]
    explanation, pair = reasons[0]
    every = synthesise_from_gallery(sketch, gallery, explanation.ink[pair], blend=True).image
    result = []
    for place, (photo, images_, (explanation, pair)) in enumerate(
        zip(wanted, pairs, reasons, strict=True), start=1
    ):
        match, ink = explanation.match[pair], explanation.ink[pair]
        syntheses = {"synthesis": synthesise(*images_, match, ink, blend=True)}
        if len(pairs) > 1:
            syntheses[f"from the first {len(pairs)}"] = every
        title = f"Why photo {place} ({names[photo]})?"
        figure = pair_figures.explanation_figure(
            *images_, explanation, pair, syntheses=syntheses, title=title
        )
        name = re.sub(r"[^\w.-]+", "_", names[photo])[:60]
        _save(figure, folder / f"{place:02}-{name}.png")
        result.append(
            pages.explained(
                *images_, explanation, pair, title=title, syntheses=syntheses, shown=place == 1
            )
        )
    return result


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    cli.run(main, define_flags)
