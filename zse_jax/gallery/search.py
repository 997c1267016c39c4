"""Searches an index of your photos with a sketch.

    python -m zse_jax.gallery.search --index=my-index --sketch=cat.png --k=20 --rerank=200

prints the nearest photos: a shortlist by embedding, of which the first --rerank are ordered by the
score of each pair (for systems that have one, such as ZSE's relation network). --expand=30 moves
the query towards the 30 photos that it finds before the final search (query expansion), which
helps if the album has many photos of the object. --folder, --after, --before, --orientation and
--type limit the photos that are searched. --output=found.json or found.html also writes the
results to a file; --explain adds to the page why the first ones were found.
--sketch can be repeated, and can be a folder: each sketch is searched with. --interactive answers
the sketches whose names another program writes to it, one after another. From Python:

    gallery = index.open("my-index")
    searcher = search.Searcher(gallery)
    for hit in searcher("cat.png", k=20).hits:
        print(hit.rank, hit.path, hit.similarity)
"""

import collections
import contextlib
import dataclasses
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from data_pipelines import paths
from data_pipelines.images import UnreadableImageError
from data_pipelines.suggestions import counted
from data_pipelines.terminal import printable
from zse_jax.checkpoints import reading
from zse_jax.explain import pages
from zse_jax.explain.correspondence import Explainer
from zse_jax.gallery import album, filters, photos, sketch_input
from zse_jax.gallery.filters import EVERYTHING, Filter
from zse_jax.gallery.index import Index
from zse_jax.gallery.loaded import Checkpoint
from zse_jax.gallery.results import Hit, Results, to_html, to_json
from zse_jax.gallery.shortlist import EXPANDED_AMONG, Shortlister
from zse_jax.gallery.sketch_input import Prepared, Sketch, SketchError
from zse_jax.retrieval import calibration
from zse_jax.retrieval.expansion import EXPANDED
from zse_jax.retrieval.feedback import rocchio
from zse_jax.retrievers.base import Explainable, Features
from zse_jax.runtime import cli
from zse_jax.runtime.console import say, show

RERANK = 200
"""Default number of photos of the shortlist that are scored."""

EXPAND = 30
"""Number of photos that expand a query where only a switch turns expansion on."""

CACHE_BYTES = 2**29
"""Size limit of the cached features of photos that were scored before."""

EXPLAINED = 3
"""Number of photos that `--explain` explains."""

REFRESH_SECONDS = 2.0
"""Interval at which a searcher checks for new commits of the index."""

_SHOWN = ("id", "path", "file", "thumbnail", "width", "height")


class Feedback(NamedTuple):
    """What a user says about photos of earlier results, by their ids.

    Attributes:
      like: a photo that takes the place of the sketch: more like this; "": none.
      more: photos that are right; the query moves towards them.
      fewer: photos that are wrong; the query moves away, and they are left out.
    """

    like: str = ""
    more: Sequence[str] = ()
    fewer: Sequence[str] = ()


NO_FEEDBACK = Feedback()


class Searcher:
    """Searches one index. Loads its checkpoint once, and compiles at the first call.

    Can be called from several threads, which search one after another.

    Attributes:
      gallery: the index.
      retriever: the system of its checkpoint.
      reranks: whether the system scores pairs.
    """

    def __init__(self, gallery: Index, checkpoint: Checkpoint | None = None):
        """Loads the checkpoint of the index.

        Args:
          gallery: the index.
          checkpoint: its current location, or the loaded checkpoint; None: the recorded location.

        Raises:
          FileNotFoundError, ValueError: the checkpoint does not exist, is another one, or is
            damaged.
        """
        self.gallery = gallery
        loaded = gallery.load(checkpoint)
        self.retriever = loaded.retriever
        kinds = self.retriever.rankings
        self._names = {
            "shortlist": next((n for n, kind in kinds.items() if kind == "embedding"), "embedding"),
            "rerank": next((n for n, kind in kinds.items() if kind == "score"), ""),
        }
        self.reranks = bool(self._names["rerank"])
        self._calibration = calibration.of_record(reading.record_of(self.retriever))
        self._encoder = loaded.encoder
        self._explainer: Explainer | None = None
        self._cache: collections.OrderedDict[int, Features] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._version, self._refreshed = -1, 0.0
        self._refresh()

    def __call__(
        self,
        sketch: Sketch,
        k: int = 20,
        rerank: int | None = None,
        *,
        expand: int = 0,
        skip: int = 0,
        feedback: Feedback = NO_FEEDBACK,
        name: str = "",
        where: Filter = EVERYTHING,
    ) -> Results:
        """The photos that are nearest to a sketch.

        Args:
          sketch: an image file, an image of Pillow, or uint8 [H, W, 3]: dark lines on white.
          k: how many photos to return.
          rerank: how many of the nearest by embedding are ordered by the score of each pair; 0:
            none. None: `RERANK`, if the system scores pairs.
          expand: how many photos expand the query, see `Shortlister.expanded`; 0: none.
          skip: how many of the nearest photos to leave out, for the pages after the first.
          feedback: changes the query (`zse_jax.retrieval.feedback`). Photos are then ordered by
            embedding alone: a score of pairs compares with the sketch, not with the query.
          name: the name of the sketch in the results; "": its file, or "drawing".
          where: which photos are searched, see `zse_jax.gallery.filters`.

        Raises:
          ValueError: the sketch is not an image or has no strokes, k, rerank, expand or skip is out
            of range, rerank is given and the system does not score pairs, or the index does not
            record what the filter needs.
          FileNotFoundError: the file does not exist.
          KeyError: a photo of the feedback is not in the index.
        """
        if k < 1 or (rerank or 0) < 0 or expand < 0 or skip < 0:
            raise ValueError(
                f"k={k} must be at least 1, and rerank={rerank}, expand={expand} and skip={skip} "
                "at least 0."
            )
        if rerank and not self.reranks:
            raise ValueError(
                f"rerank={rerank}: {type(self.retriever).__name__} compares embeddings and has no "
                "score of a pair, so that the order cannot be refined. Leave rerank out."
            )
        began = time.perf_counter()
        name = name or sketch_input.name_of(sketch)
        prepared = sketch_input.prepare(
            sketch, self.retriever.image_size, self.retriever.preprocessing, name
        )
        spent = time.perf_counter() - began
        with self._lock:  # the wait for other searches is not counted
            began = time.perf_counter() - spent
            return self._search(prepared, k, rerank, expand, skip, feedback, name, where, began)

    def _search(
        self,
        prepared: Prepared,
        k: int,
        rerank: int | None,
        expand: int,
        skip: int,
        feedback: Feedback,
        name: str,
        where: Filter,
        began: float,
    ) -> Results:
        timings: dict[str, float] = {}

        def lap(part: str) -> None:
            timings[part] = time.perf_counter() - began - sum(timings.values())

        self._refresh()
        searched = filters.check(where, self.gallery.tables) if where else self.gallery.photos
        encoded = self._encoder(prepared.pixels[None], "sketch", 1)
        lap("sketch")
        rerank = (RERANK if rerank is None else rerank) if self.reranks else 0
        query = encoded.embedding[0]
        if any(feedback):
            rerank, query = 0, self._moved(query, feedback)
        count = max(skip + k + len(feedback.fewer), rerank)
        among = max(count, EXPANDED_AMONG) if expand else count
        found = self._shortlist(query, among, where.sql)
        lap("shortlist")
        if expand:
            found = self._shortlist.expanded(query, found, expand)
            lap("expansion")
        rows, similarity = (part[:count] for part in found)
        stages = ["shortlist"] * len(rows)
        skipped = 0
        if rerank and len(rows):
            features, scored = self._features(rows[:rerank])
            lap("features")
            skipped = int((~scored).sum())
            if scored.any():
                scores = self._encoder.score(encoded.features, features)
                rows, similarity, stages = _merged(rows, similarity, scored, scores)
            lap("rerank")
        kept = self._without(rows, feedback.fewer)[skip : skip + k]
        hits = self._hits(rows[kept], similarity[kept], [stages[i] for i in kept], skip)
        if self._calibration and not feedback.like:
            chances = self._calibration.probability(
                self._shortlist.embeddings_of(rows[kept]) @ encoded.embedding[0]
            )
            hits = [
                dataclasses.replace(hit, probability=float(chance))
                for hit, chance in zip(hits, chances, strict=True)
            ]
        lap("rows")
        return Results(
            hits=hits,
            sketch=prepared.pixels,
            seconds=time.perf_counter() - began,
            timings=timings,
            rankings={
                stage: name + (EXPANDED if expand and stage == "shortlist" else "")
                for stage, name in self._names.items()
                if stage == "shortlist" or rerank
            },
            photos=searched,
            skipped=skipped,
            about={
                "sketch": printable(name),
                "index": printable(self.gallery.uri),
                "checkpoint": printable(f"{self.gallery.checkpoint}, step {self.gallery.step}"),
            }
            | ({"filter": str(where)} if where else {})
            | ({"expansion": f"by {counted(expand, 'photo', 'photos')}"} if expand else {}),
            changes=prepared.changes,
            doubt=prepared.doubt,
        )

    def choices(self) -> filters.Choices:
        """The values that filters of this index can have."""
        with self._lock:
            self._refresh()
            return filters.choices(self.gallery.tables)

    def _moved(self, query: Float[np.ndarray, " d"], said: Feedback) -> Float[np.ndarray, " d"]:
        """The query after feedback."""

        def embeddings(ids: Sequence[str]) -> Float[np.ndarray, "n d"]:
            found = [self.gallery.tables.by_id(one, ["embedding"])["embedding"] for one in ids]
            return np.array(found, query.dtype).reshape(len(ids), len(query))

        start = embeddings([said.like])[0] if said.like else query
        return rocchio(start, embeddings(said.more), embeddings(said.fewer))

    def _without(self, rows: Int[np.ndarray, " n"], ids: Sequence[str]) -> Int[np.ndarray, " m"]:
        """The places in `rows` of the photos that do not have one of these ids."""
        if not ids:
            return np.arange(len(rows))
        found = self.gallery.tables.rows(rows.tolist(), ["id"])
        return np.flatnonzero([row["id"] not in ids for row in found])

    def explain(self, sketch: Sketch, hit: Hit | str, *, shown: bool = True) -> pages.Explained:
        """Why a photo was found: lines between the places that match, heat maps, a synthesis.

        Args:
          sketch: the sketch of the search, or `Results.sketch`.
          hit: one of its results, or the id of a photo of the index.
          shown: whether the explanation is unfolded at first in a page.

        Raises:
          ValueError: the system has no local evidence, or the photo cannot be read.
          FileNotFoundError: the photo no longer exists.
          KeyError: the index has no photo with this id.
        """
        with self._lock:
            return self._explain(sketch, hit, shown)

    def _explain(self, sketch: Sketch, hit: Hit | str, shown: bool) -> pages.Explained:
        if isinstance(hit, str):
            row = self.gallery.tables.by_id(hit, ["path", "file"])
            file, path = photos.path_of(row["file"]), printable(row["path"])
            title = f"Why {Path(path).name}?"
        else:
            file, path, title = hit.file, hit.path, hit.question
        self._explainer = self._explainer or Explainer(self.retriever)
        size, preprocessing = self.retriever.image_size, self.retriever.preprocessing
        if not (isinstance(sketch, np.ndarray) and sketch.shape == (size, size, 3)):
            sketch = sketch_input.read(sketch, size, preprocessing)
        try:
            photo = photos.prepared(file, size, preprocessing)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The photo {path} no longer exists, so it cannot be explained: remove it from "
                "the index with `python -m zse_jax.gallery.index remove`."
            ) from error
        except (UnreadableImageError, OSError) as error:
            raise ValueError(f"The photo {path} cannot be read: {error}.") from error
        [(found, pair)] = pages.explanations(self._explainer, [(sketch, photo)])
        return pages.explained(sketch, photo, found, pair, title=title, shown=shown)

    def _refresh(self) -> None:
        """Reads commits that were made in the meantime."""
        now = time.monotonic()
        if self._version < 0 or now - self._refreshed >= REFRESH_SECONDS:
            self.gallery.refresh()
            self._refreshed = now
        if self.gallery.tables.version == self._version:
            return
        self._version = self.gallery.tables.version
        self._cache.clear()
        self._shortlist = Shortlister(self.gallery.tables)

    def _features(self, rows: Int[np.ndarray, " n"]) -> tuple[Features, np.ndarray]:
        """The features that can be read, stacked, and a mask of the rows that have features."""
        numbers = rows.tolist()
        if missing := [number for number in numbers if number not in self._cache]:
            self._load(missing)
        scored = np.array([number in self._cache for number in numbers], bool)
        found = []
        for number in rows[scored].tolist():
            self._cache.move_to_end(number)
            found.append(self._cache[number])
        most = max(len(rows), CACHE_BYTES // max(1, self._encoder.item_bytes))
        while len(self._cache) > most:
            self._cache.popitem(last=False)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found) if found else None, scored

    def _load(self, rows: Sequence[int]) -> None:
        """Reads features of photos into the cache, from the index or by encoding their files."""
        if self.gallery.keeps_features:
            found = self.gallery.tables.rows(rows, ["features"])
            features = self._encoder.unpacked([row["features"] for row in found])
            numbers = [row["_rowid"] for row in found]
        else:
            numbers, prepared = [], []
            size, preprocessing = self.retriever.image_size, self.retriever.preprocessing
            for row in self.gallery.tables.rows(rows, ["file"]):
                try:
                    file = photos.path_of(row["file"])
                    prepared.append(photos.prepared(file, size, preprocessing))
                except (UnreadableImageError, OSError):
                    continue
                numbers.append(row["_rowid"])
            if not prepared:
                return
            features = self._encoder(np.stack(prepared), "photo").features
        for place, number in enumerate(numbers):
            self._cache[number] = jax.tree.map(lambda leaf, at=place: leaf[at], features)

    def _hits(
        self,
        rows: Int[np.ndarray, " n"],
        similarity: Float[np.ndarray, " n"],
        stages: list[str],
        skip: int = 0,
    ) -> list[Hit]:
        found = self.gallery.tables.rows(rows.tolist(), _SHOWN)
        return [
            Hit(
                rank=skip + place + 1,
                similarity=float(similarity[place]),
                stage=stages[place],
                **{name: row[name] for name in _SHOWN}
                | {"path": printable(row["path"]), "file": photos.path_of(row["file"])},
            )
            for place, row in enumerate(found)
        ]


def _merged(
    rows: Int[np.ndarray, " n"],
    similarity: Float[np.ndarray, " n"],
    scored: np.ndarray,
    scores: Float[np.ndarray, " s"],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The scored part of the shortlist, best first, followed by the rest in its order."""
    front = np.flatnonzero(scored)
    order = np.argsort(-scores, kind="stable")
    rest = np.setdiff1d(np.arange(len(rows)), front)
    merged = np.concatenate([scores[order], similarity[rest]])
    stages = ["rerank"] * len(front) + ["shortlist"] * len(rest)
    return np.concatenate([rows[front[order]], rows[rest]]), merged, stages


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line."""
    album.define_flags(options)
    help_ = "An image file, dark lines on white, or a folder of them; can be repeated."
    flags.DEFINE_multi_string("sketch", [], help_, options)
    flags.DEFINE_integer("k", 20, "Number of photos to show.", 1, None, options)
    help_ = f"Number of photos to score pair by pair. Default: {RERANK}, if the system can."
    flags.DEFINE_integer("rerank", None, help_, 0, None, options)
    help_ = "Expand the query by this number of photos that it finds, such as 30; 0: do not."
    flags.DEFINE_integer("expand", 0, help_, 0, None, options)
    filters.define_flags(options)
    help_ = (
        "Read names of sketches from standard input, one a line, and write the results of each as "
        "one line of JSON, until the input ends."
    )
    flags.DEFINE_bool("interactive", False, help_, options)
    help_ = f"Explain the first {EXPLAINED} photos; requires --output=FILE.html."
    flags.DEFINE_bool("explain", False, help_, options)
    flags.DEFINE_string("output", None, "Also write the results to this .json or .html.", options)


def main(options: flags.FlagValues) -> None:
    """Runs one search, several, or those of another program."""
    if not options.interactive:
        cli.require(options, sketch="cat.png")
    elif options.sketch or options.output or options.explain:
        raise ValueError(
            "--interactive reads the names of sketches from standard input and writes the results "
            "to standard output: leave out --sketch, --output and --explain."
        )
    cli.require_suffix(options, output=".json .html")
    output = paths.located(options.output) if options.output else None
    if options.explain and (output is None or output.suffix.lower() != ".html"):
        raise ValueError("--explain draws pictures, so it requires a page: --output=found.html.")
    sketches = sketch_files(options.sketch)
    if options.photos and len(sketches) == 1:
        sketch_input.existing(sketches[0])  # before the photos are indexed
    where = filters.from_flags(options)
    with contextlib.redirect_stdout(sys.stderr if options.interactive else sys.stdout):
        index, checkpoint = album.from_flags(options)
        searcher = Searcher(Index(index), checkpoint)
    if options.explain and not isinstance(searcher.retriever, Explainable):
        raise ValueError(
            f"--explain: {type(searcher.retriever).__name__} compares whole images and has no "
            "local evidence."
        )
    place = ", ".join(options.photos)
    if not searcher.gallery.photos:
        raise ValueError(
            f"{place or f'The index {searcher.gallery.uri}'} contains no photos, so there is "
            "nothing to search. Name a folder of photos with --photos."
        )
    search = functools.partial(
        searcher, k=options.k, rerank=options.rerank, expand=options.expand, where=where
    )
    if options.interactive:
        answer(search, sys.stdin)
        return
    found, failed = [], []
    for sketch in sketches:
        try:
            found.append(search(sketch))
        except (SketchError, OSError) as error:
            if len(sketches) == 1:
                raise
            failed.append(str(error))
    if where and found and not found[0].photos:
        raise ValueError(f"No photo of {place or f'the index {searcher.gallery.uri}'} is {where}.")
    for results in found:
        if len(sketches) > 1:
            say(results.about["sketch"])
        show(results.table())
        if results.skipped:
            say(results.skipped_text)
    if output is not None and found:
        if output.suffix.lower() == ".json":
            text = to_json(found)
        else:
            text = to_html([(results, _explained(searcher, results, options)) for results in found])
        paths.replace(output, text)
        say(f"wrote {output}")
    if failed:
        raise ValueError(
            f"{len(failed):,} of {len(sketches):,} sketches cannot be used: "
            f"{' '.join(failed[:5])}{' ...' if len(failed) > 5 else ''}"
        )


def sketch_files(given: Sequence[str]) -> list[str | Path]:
    """The sketches that a user names: files, and all images in folders and below them.

    Raises:
      ValueError: a folder contains no image.
    """
    found: list[str | Path] = []
    for name in given:
        folder = Path(paths.local(name, "--sketch"))
        if not folder.is_dir():
            found.append(name)
            continue
        files = [candidate.file for candidate in photos.find(folder).files]
        if not files:
            raise ValueError(f"--sketch={name}: this folder contains no image.")
        found += files
    return found


def answer(search: Callable[[str], Results], lines: Iterable[str]) -> None:
    """Searches with the sketch that each line names, and prints the results as one line of JSON.

    An error is a line with the keys "sketch" and "error". Empty lines are skipped.
    """
    for line in lines:
        if not (sketch := line.rstrip("\r\n")):
            continue
        try:
            text = search(sketch).to_json(indent=None)
        except cli.USER_ERRORS as error:
            text = json.dumps({"sketch": printable(sketch), "error": str(error)})
        print(text, flush=True)


def _explained(
    searcher: Searcher, results: Results, options: flags.FlagValues
) -> list[pages.Explained]:
    """Why the first photos were found, if it was asked for."""
    return [
        searcher.explain(results.sketch, hit, shown=hit.rank == 1)
        for hit in results.hits[: EXPLAINED if options.explain else 0]
    ]


if __name__ == "__main__":
    cli.run(main, define_flags)
