"""Search in an index of your own photos with a sketch.

    python -m zse_jax.gallery.search --index=my-index --sketch=cat.png --k=20 --rerank=200

prints the nearest photos: a shortlist by embedding, of which the first --rerank are ordered by the
score of each pair (systems that have one: ZSE's relation network). --output=found.json or
found.html writes them to a file; --explain shows in the page why the first ones were found. From
Python:

    gallery = index.open("my-index")
    searcher = search.Searcher(gallery)
    for hit in searcher("cat.png", k=20).hits:
        print(hit.rank, hit.path, hit.similarity)
"""

import collections
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from rich.console import Console

from zse_jax.explain import pages
from zse_jax.explain.correspondence import Explainer
from zse_jax.gallery import photos, sketch_input
from zse_jax.gallery.encoder import Encoder
from zse_jax.gallery.index import Index
from zse_jax.gallery.results import Hit, Results
from zse_jax.gallery.shortlist import Shortlister
from zse_jax.retrieval.storage import item_bytes
from zse_jax.retrievers.base import Explainable, Features
from zse_jax.runtime import cli

RERANK = 200
"""Photos of the shortlist that are scored, unless asked otherwise."""

PAIRS = 50
"""Pairs that are scored at once; the last ones are filled up, for a single compilation."""

CACHE_BYTES = 2**29
"""Features of photos that were scored before are kept, up to so many bytes."""

EXPLAINED = 3
"""Photos that `--explain` explains."""

REFRESH_SECONDS = 2.0
"""So often at most does a searcher look whether the index has grown."""

_SHOWN = ("id", "path", "file", "thumbnail", "width", "height")

Sketch = str | os.PathLike | np.ndarray


class Searcher:
    """Searches one index; loads its checkpoint once, and compiles at the first call.

    Several threads may call it: one search goes on at a time.

    Attributes:
      gallery: the index.
      retriever: its system.
      reranks: whether the system scores pairs; if not, `rerank` has no effect.
    """

    def __init__(self, gallery: Index, checkpoint: str | os.PathLike | None = None):
        """Loads the checkpoint named in the index, or `checkpoint`, which must be the same one.

        Raises:
          FileNotFoundError, ValueError: it is not there, is another one, or is damaged.
        """
        self.gallery = gallery
        self.retriever = gallery.retriever(checkpoint)
        kinds = self.retriever.rankings
        self._names = {
            "shortlist": next((n for n, kind in kinds.items() if kind == "embedding"), "embedding"),
            "rerank": next((n for n, kind in kinds.items() if kind == "score"), ""),
        }
        self.reranks = bool(self._names["rerank"])
        self._encoder = Encoder(self.retriever)
        self._explainer: Explainer | None = None
        self._cache: collections.OrderedDict[int, Features] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._version, self._looked = -1, 0.0
        self._refresh()

    def __call__(
        self, sketch: Sketch, k: int = 20, rerank: int | None = None, *, name: str = ""
    ) -> Results:
        """The photos that are nearest to a sketch.

        Args:
          sketch: an image file, or uint8 [H, W, 3]: dark lines on white.
          k: how many.
          rerank: how many of the nearest by embedding are ordered by the score of each pair; 0: by
            embedding alone. None: 200, where the system scores pairs.
          name: what the sketch is called, if it is no file.

        Raises:
          ValueError: no strokes, no image, or numbers that make no sense.
          FileNotFoundError: there is no such file.
        """
        if k < 1 or (rerank or 0) < 0:
            raise ValueError(f"k={k} must be at least 1, and rerank={rerank} at least 0.")
        began = time.perf_counter()
        name = name or (os.fspath(sketch) if isinstance(sketch, str | os.PathLike) else "drawing")
        prepared = self.prepared(sketch, name)
        with self._lock:
            return self._search(prepared, k, rerank, name, began)

    def _search(
        self,
        prepared: UInt8[np.ndarray, "s s 3"],
        k: int,
        rerank: int | None,
        name: str,
        began: float,
    ) -> Results:
        timings: dict[str, float] = {}

        def lap(part: str) -> None:
            timings[part] = time.perf_counter() - began - sum(timings.values())

        self._refresh()
        encoded = self._encoder(prepared[None], "sketch")
        lap("sketch")
        rerank = (RERANK if rerank is None else rerank) if self.reranks else 0
        rows, similarity = self._shortlist(encoded.embedding[0], max(k, rerank))
        lap("shortlist")
        stages = ["shortlist"] * len(rows)
        skipped = 0
        if rerank and len(rows):
            features, scored = self._features(rows[:rerank])
            lap("features")
            skipped = int((~scored).sum())
            if scored.any():
                scores = self._scores(encoded.features, features)
                rows, similarity, stages = _merged(rows, similarity, scored, scores)
            lap("rerank")
        hits = self._hits(rows[:k], similarity, stages)
        lap("rows")
        return Results(
            hits=hits,
            sketch=prepared,
            seconds=time.perf_counter() - began,
            timings=timings,
            rankings={s: n for s, n in self._names.items() if s == "shortlist" or rerank},
            photos=self.gallery.photos,
            skipped=skipped,
            about={
                "sketch": name,
                "index": self.gallery.uri,
                "checkpoint": f"{self.gallery.checkpoint}, step {self.gallery.step}",
            },
        )

    def prepared(self, sketch: Sketch, name: str = "drawing") -> UInt8[np.ndarray, "s s 3"]:
        """A sketch as the network takes it.

        Raises:
          ValueError, FileNotFoundError: as `__call__`.
        """
        if isinstance(sketch, str | os.PathLike):
            file = Path(sketch).expanduser()
            if not file.is_file():
                raise FileNotFoundError(f"There is no sketch {file}: give an image file.")
            try:
                sketch = photos.decoded(file)
            except photos.UnfitError as error:
                raise ValueError(
                    f"The sketch {file} cannot be used: {error}. Save it anew as PNG or JPEG."
                ) from error
        if sketch.dtype != np.uint8 or sketch.ndim != 3 or sketch.shape[2] != 3 or not sketch.size:
            raise ValueError(
                f"A sketch is uint8 [height, width, 3], and this one {sketch.dtype} "
                f"{list(sketch.shape)}."
            )
        return sketch_input.prepared(sketch, self.retriever.image_size, name)

    def explain(self, sketch: Sketch, hit: Hit, *, shown: bool = True) -> pages.Explained:
        """Why a photo was found: lines between the places that match, heat maps, a synthesis.

        Args:
          sketch: as it was searched with, or `Results.sketch`.
          hit: one of the results.
          shown: whether it is unfolded at first, in a page.

        Raises:
          ValueError: the system has no local evidence, or the photo cannot be read.
          FileNotFoundError: the photo is gone.
        """
        if not isinstance(self.retriever, Explainable):
            raise ValueError(
                f"{type(self.retriever).__name__} compares images as wholes: there is no local "
                "evidence that would say why a photo was found."
            )
        size = self.retriever.image_size
        if isinstance(sketch, np.ndarray) and sketch.shape == (size, size, 3):
            drawing = sketch
        else:
            drawing = self.prepared(sketch)
        photo = self._photo(hit)
        self._explainer = self._explainer or Explainer(self.retriever)
        [(found, pair)] = pages.explanations(self._explainer, [(drawing, photo)])
        title = f"Why photo {hit.rank} ({Path(hit.path).name})?"
        return pages.explained(drawing, photo, found, pair, title=title, shown=shown)

    def _photo(self, hit: Hit) -> UInt8[np.ndarray, "s s 3"]:
        try:
            return photos.prepared(hit.file, self.retriever.image_size)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The photo {hit.path} is gone since it was indexed, so it cannot be explained: "
                "take it out with `python -m zse_jax.gallery.index remove`."
            ) from error
        except (photos.UnfitError, OSError) as error:
            raise ValueError(f"The photo {hit.path} cannot be read: {error}.") from error

    def _refresh(self) -> None:
        """Sees what was written to the index meanwhile."""
        now = time.monotonic()
        if self._version < 0 or now - self._looked >= REFRESH_SECONDS:
            self.gallery.refresh()
            self._looked = now
        if self.gallery.tables.version == self._version:
            return
        self._version = self.gallery.tables.version
        self._cache.clear()
        self._shortlist = Shortlister(self.gallery.tables)

    def _features(self, rows: Int[np.ndarray, " n"]) -> tuple[Features, np.ndarray]:
        """Features of the photos that have some, and which those are."""
        missing = [int(row) for row in rows if int(row) not in self._cache]
        if missing:
            self._load(missing)
        found = [self._cache.get(int(row)) for row in rows]
        for row in rows:
            if int(row) in self._cache:
                self._cache.move_to_end(int(row))
        kept = [one for one in found if one is not None]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *kept) if kept else None
        if kept:
            most = max(len(rows), CACHE_BYTES // max(1, item_bytes(stacked)))
            while len(self._cache) > most:
                self._cache.popitem(last=False)
        return stacked, np.array([one is not None for one in found], bool)

    def _load(self, rows: Sequence[int]) -> None:
        """Puts features of photos into the cache: those of the index, or of the photos' files."""
        if self.gallery.keeps_features:
            found = self.gallery.tables.rows(rows, ["features"])
            features = self._encoder.unpacked([row["features"] for row in found])
            numbers = [row["_rowid"] for row in found]
        else:
            numbers, prepared = [], []
            for row in self.gallery.tables.rows(rows, ["file"]):
                try:
                    file = Path(os.fsdecode(row["file"]))
                    prepared.append(photos.prepared(file, self.retriever.image_size))
                except (photos.UnfitError, OSError):
                    continue
                numbers.append(row["_rowid"])
            if not prepared:
                return
            features = self._encoder(np.stack(prepared), "photo").features
        for place, number in enumerate(numbers):
            self._cache[number] = jax.tree.map(lambda leaf, at=place: leaf[at], features)

    def _scores(self, sketch: Features, features: Features) -> Float[np.ndarray, " n"]:
        """The score of each pair."""
        count = len(jax.tree.leaves(features)[0])
        scores = []
        for start in range(0, count, PAIRS):
            index = np.minimum(np.arange(start, start + PAIRS), count - 1)
            part = jax.tree.map(lambda leaf, index=index: leaf[index], features)
            scores.append(self._encoder.score(sketch, part))
        found = np.concatenate(scores)[:count]
        if np.isnan(found).any():
            raise FloatingPointError(
                "The score of a pair is NaN: the checkpoint is damaged, or its training diverged."
            )
        return found

    def _hits(
        self, rows: Int[np.ndarray, " n"], similarity: Float[np.ndarray, " m"], stages: list[str]
    ) -> list[Hit]:
        found = self.gallery.tables.rows([int(row) for row in rows], _SHOWN)
        return [
            Hit(
                rank=place + 1,
                id=row["id"],
                path=row["path"],
                file=Path(os.fsdecode(row["file"])),
                similarity=float(similarity[place]),
                stage=stages[place],
                thumbnail=row["thumbnail"],
                width=row["width"],
                height=row["height"],
            )
            for place, row in enumerate(found)
        ]


def _merged(
    rows: Int[np.ndarray, " n"],
    similarity: Float[np.ndarray, " n"],
    scored: np.ndarray,
    scores: Float[np.ndarray, " s"],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The shortlist with what was scored in front, best first, and the rest as it was."""
    front = np.flatnonzero(scored)
    order = np.argsort(-scores, kind="stable")
    rest = np.setdiff1d(np.arange(len(rows)), front)
    merged = np.concatenate([scores[order], similarity[rest]])
    stages = ["rerank"] * len(front) + ["shortlist"] * len(rest)
    return np.concatenate([rows[front[order]], rows[rest]]), merged, stages


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    if any(cli.config_arguments(argv)):
        raise ValueError("A search takes no --config: that of the checkpoint holds. See --help.")
    flags.DEFINE_string("index", None, "A folder, or a place in a bucket.", options)
    flags.DEFINE_string("sketch", None, "An image file: dark lines on white.", options)
    help_ = "Where the index's checkpoint is now; by default where it was."
    flags.DEFINE_string("checkpoint", None, help_, options)
    flags.DEFINE_integer("k", 20, "How many photos to show.", 1, None, options)
    help_ = f"How many are scored pair by pair; 0: none. By default {RERANK}, if the system does."
    flags.DEFINE_integer("rerank", None, help_, 0, None, options)
    help_ = f"Explain the first {EXPLAINED}; needs --output=FILE.html."
    flags.DEFINE_bool("explain", False, help_, options)
    flags.DEFINE_string("output", None, "A file to write: .json or .html.", options)


def main(options: flags.FlagValues) -> None:
    """Searches as the command line says."""
    for name, example in (("index", "my-index"), ("sketch", "cat.png")):
        if not options[name].value:
            raise ValueError(f"--{name} is missing: say, for example, --{name}={example}.")
    output = Path(options.output).expanduser() if options.output else None
    if output is not None and output.suffix not in (".json", ".html"):
        raise ValueError(f"--output={output}: name a file that ends with .json or .html.")
    if options.explain and (output is None or output.suffix != ".html"):
        raise ValueError("--explain shows pictures, so it needs a page: --output=found.html.")
    searcher = Searcher(Index(options.index), options.checkpoint)
    if options.explain and not isinstance(searcher.retriever, Explainable):
        raise ValueError(
            f"{type(searcher.retriever).__name__} compares images as wholes and has no local "
            "evidence: leave --explain out."
        )
    results = searcher(options.sketch, options.k, options.rerank)
    Console(highlight=False).print(results.table())
    if results.skipped:
        print(f"{results.skipped:,} photos could not be scored: their files are gone or changed.")
    if output is None:
        return
    explained: list[Any] = []
    if options.explain:
        explained = [
            searcher.explain(results.sketch, hit, shown=hit.rank == 1)
            for hit in results.hits[:EXPLAINED]
        ]
    text = results.to_json() if output.suffix == ".json" else results.to_html(explained)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.run(main, define_flags)
