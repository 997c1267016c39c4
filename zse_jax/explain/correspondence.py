"""Why a photo was found: which places of a sketch met which places of the photo (ZSE, section 3.4).

Pure functions of a retriever and pairs of prepared images; what the places and their matches are is
the system's own (`Explainable.correspond`). The similarity is attributed to matches by gradient x
input, and `deletion_curve` shows whether that is faithful: the similarity must fall faster when
the matches of largest attribution are removed than when any are (as in RISE, BMVC 2018).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from zse_jax.retrievers.base import Encoder, Explainable

INK_CONTRAST = 64
"""A pixel of a sketch is ink if its grey value, 0 to 255, is this far from that of the paper."""

BLANK = 0.02
"""A place with a smaller share of ink counts as blank."""

REMOVED = 0.0
"""What `deletion_curve` puts in place of a match: the cosine of an anchor that is zero."""

NO_EVIDENCE = -1.0
"""The match of places that the system dropped on the way: the least that a cosine can be."""


class Explanation(NamedTuple):
    """What there is to show of B pairs (sketch i, photo i); numpy arrays.

    Places and tokens are the cells of square grids over the prepared images, row by row. Places
    that the system dropped on the way (ZSE's token selection) match nothing: -1.

    Attributes:
      similarity: [b], what the system ranks by, before any squashing.
      match: [b, s, p], similarity of each sketch place with each photo place.
      attribution: [b, s, p], what each match contributes to the similarity that the matches make
        (gradient x input of `Explainable.similarity_of`).
      sketch_relevance: [b, s], the attribution summed over the photo.
      photo_relevance: [b, p], the attribution summed over the sketch.
      best: [b, s], the photo place that each sketch place matches best.
      mutual: [b, s], whether that photo place also matches it best of all places with strokes;
        False for blank places.
      ink: [b, s], share of each sketch place's pixels that hold strokes, 0 to 1; 0 where the
        system dropped the place. All 0 for a sketch without strokes, which has nothing to show.
      sketch_attention: [b, t, u], what each sketch token looks at in the photo, or None.
      photo_attention: [b, u, t], the other way, or None.
      sketch_importance: [b, t], how much the image's summary looks at each token, or None.
      photo_importance: [b, u], the same of the photo, or None.
      evidence: what all this is, in words for figures.
      sketch_places: [b, kept], the sketch places that the system did not drop; None: all.
      photo_places: [b, kept], the same of the photo.
    """

    similarity: Float[np.ndarray, "b"]
    match: Float[np.ndarray, "b s p"]
    attribution: Float[np.ndarray, "b s p"]
    sketch_relevance: Float[np.ndarray, "b s"]
    photo_relevance: Float[np.ndarray, "b p"]
    best: Int[np.ndarray, "b s"]
    mutual: Bool[np.ndarray, "b s"]
    ink: Float[np.ndarray, "b s"]
    sketch_attention: Float[np.ndarray, "b t u"] | None = None
    photo_attention: Float[np.ndarray, "b u t"] | None = None
    sketch_importance: Float[np.ndarray, "b t"] | None = None
    photo_importance: Float[np.ndarray, "b u"] | None = None
    evidence: str = ""
    sketch_places: Int[np.ndarray, "b kept"] | None = None
    photo_places: Int[np.ndarray, "b kept"] | None = None


class Explainer:
    """Explains pairs of images by one retriever, in evaluation mode whatever the retriever's own.

    Compiles once for each number of pairs. What depends on the retriever alone is done here once:
    for a small network on a CPU it takes longer than an explanation.
    """

    def __init__(self, retriever: Encoder):
        """The retriever's present parameters count; it is not copied.

        Raises:
          ValueError: the system is not `Explainable`.
        """
        if not isinstance(retriever, Explainable):
            raise ValueError(
                f"{type(retriever).__name__} has no local evidence to explain a result with: it "
                "compares whole images."
            )
        self._retriever, self._evaluated = retriever, _evaluated(retriever)

    def __call__(
        self, sketches: Num[np.ndarray | Array, "..."], photos: Num[np.ndarray | Array, "..."]
    ) -> Explanation:
        """Explains the pairs (sketch i, photo i); arguments and errors as for `explain`."""
        check_images(self._retriever, sketches, photos)
        found, attribution = jax.device_get(_run(*self._evaluated, sketches, photos))
        match = found.match
        sketch_places, photo_places = found.sketch_places, found.photo_places
        if sketch_places is not None:
            tokens = found.sketch_importance.shape[1], found.photo_importance.shape[1]
            match, attribution = (
                _on_whole_grid(values, tokens, sketch_places, photo_places, fill)
                for values, fill in ((match, NO_EVIDENCE), (attribution, 0.0))
            )
        ink = ink_share(np.asarray(sketches), grid_side(match.shape[1]))
        if sketch_places is not None:
            ink *= np.stack([np.isin(np.arange(ink.shape[1]), row) for row in sketch_places])
        best, mutual = best_matches(match, ink >= BLANK)
        return Explanation(
            similarity=found.similarity,
            match=match,
            attribution=attribution,
            sketch_relevance=attribution.sum(axis=2),
            photo_relevance=attribution.sum(axis=1),
            best=best,
            mutual=mutual,
            ink=ink,
            sketch_attention=found.sketch_attention,
            photo_attention=found.photo_attention,
            sketch_importance=found.sketch_importance,
            photo_importance=found.photo_importance,
            evidence=self._retriever.local_evidence,
            sketch_places=sketch_places,
            photo_places=photo_places,
        )


def explain(
    retriever: Encoder,
    sketches: Num[np.ndarray | Array, "..."],
    photos: Num[np.ndarray | Array, "..."],
) -> Explanation:
    """Explains the pairs (sketch i, photo i), once; for many, `Explainer` is faster.

    Args:
      retriever: a system with local evidence.
      sketches: uint8 [b, h, w, 3], prepared (`data_pipelines.images.prepare_sketch`).
      photos: uint8 [b, h, w, 3], prepared (`prepare_photo`).

    Raises:
      ValueError: images of another size, type or number, or a system without local evidence.
    """
    return Explainer(retriever)(sketches, photos)


def best_matches(
    match: Float[np.ndarray, "b s p"], inked: Bool[np.ndarray, "b s"]
) -> tuple[Int[np.ndarray, "b s"], Bool[np.ndarray, "b s"]]:
    """Each sketch place's best photo place, and whether it is best the other way round too.

    Of several that are equally good, the first counts.

    Args:
      match: similarity of each sketch place with each photo place.
      inked: sketch places that are not blank; only they can be mutual best matches.
    """
    best = match.argmax(axis=2)
    back = np.where(inked[..., None], match, -np.inf).argmax(axis=1)
    returned = np.take_along_axis(back, best, axis=1) == np.arange(match.shape[1])
    return best, inked & returned


def ink_share(
    sketches: UInt8[np.ndarray, "b h w 3"], side: int
) -> Float[np.ndarray, "b {side*side}"]:
    """The share of pixels that hold strokes in each cell of a `side` x `side` grid, row by row.

    Ink is what differs by `INK_CONTRAST` from the paper, whose grey value is the median; so strokes
    may be darker or lighter.
    """
    grey = sketches.mean(axis=3, dtype=np.float32)
    paper = np.median(grey, axis=(1, 2), keepdims=True)
    ink = (np.abs(grey - paper) >= INK_CONTRAST).astype(np.float32)
    for axis in (1, 2):
        length = ink.shape[axis]
        bounds = np.arange(side + 1) * length // side
        ink = np.add.reduceat(ink, bounds[:-1], axis=axis)
        ink /= np.diff(bounds).reshape([-1 if i == axis else 1 for i in range(3)])
    return ink.reshape(len(ink), -1)


def deletion_curve(
    retriever: Explainable,
    explanation: Explanation,
    order: Int[np.ndarray, "b n"],
    steps: int = 32,
) -> Float[np.ndarray, "b _"]:
    """The similarity that the matches make as more and more of them are removed (set to 0).

    Args:
      retriever: the system that was explained.
      explanation: of its pairs.
      order: the matches of each pair from the first that goes to the last: indices into
        [s * p], each once, as `(-attribution.reshape(b, -1)).argsort(axis=1)`.
      steps: how many removals; the number of matches removed at once is as equal as can be.

    Returns:
      [b, steps + 1], `similarity_of` the whole at first, of nothing at last.

    Raises:
      ValueError: an order that is none of these matches, or a number of steps below 1.
    """
    pairs, s, p = explanation.match.shape
    if (
        order.shape != (pairs, s * p)
        or steps < 1
        or not (np.sort(order, axis=1) == np.arange(s * p)).all()
    ):
        raise ValueError(
            f"order must hold each of the {s} x {p} matches of {pairs} pairs once, shape "
            f"{(pairs, s * p)}, and steps={steps} be at least 1; its shape is {order.shape}."
        )
    rank = np.argsort(order, axis=1).reshape(pairs, s, p)
    match = explanation.match
    places = explanation.sketch_places, explanation.photo_places
    if places[0] is not None and places[1] is not None:
        rows, columns = places[0][:, :, None], places[1][:, None, :]
        pair = np.arange(pairs)[:, None, None]
        match, rank = match[pair, rows, columns], rank[pair, rows, columns]
        kept = rank.reshape(pairs, -1)
        rank = kept.argsort(axis=1).argsort(axis=1).reshape(match.shape)
    graphdef, state = _evaluated(retriever)
    count = match[0].size
    curve = [
        _similarity_without(graphdef, state, match, rank, step * count // steps)
        for step in range(steps + 1)
    ]
    return np.stack(jax.device_get(curve), axis=1)


def grid_side(places: int) -> int:
    """Cells on a side of a square grid of so many places.

    Raises:
      ValueError: that is no square.
    """
    side = math.isqrt(places)
    if side * side != places:
        raise ValueError(
            f"{places} places are no square grid, so they cannot be shown on an image."
        )
    return side


def check_images(
    retriever: Encoder,
    sketches: Num[np.ndarray | Array, "..."],
    photos: Num[np.ndarray | Array, "..."],
) -> None:
    """Checks pairs of images that are to be explained.

    Raises:
      ValueError: images of another size, type or number than the retriever takes.
    """
    size = retriever.image_size
    for name, images in (("sketches", sketches), ("photos", photos)):
        if images.shape[1:] != (size, size, 3) or images.dtype != np.uint8 or not len(images):
            raise ValueError(
                f"{name} to explain must be uint8 of shape [pairs, {size}, {size}, 3], but are "
                f"{images.dtype} of shape {tuple(images.shape)}: prepare each with "
                f"data_pipelines.images.prepare_{name.removesuffix('es').removesuffix('s')}"
                f"(image, {size})."
            )
    if len(sketches) != len(photos):
        raise ValueError(
            f"There are {len(sketches)} sketches and {len(photos)} photos: an explanation is of "
            "pairs, sketch i with photo i."
        )


def _evaluated(retriever: Explainable) -> tuple[Any, nnx.State]:
    """The retriever in evaluation mode, split for `jax.jit`."""
    return nnx.split(
        nnx.view(retriever, deterministic=True, use_running_average=True, raise_if_not_found=False)
    )


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef: Any, state: nnx.State, sketches: Array, photos: Array) -> Any:
    retriever = nnx.merge(graphdef, state)
    found = retriever.correspond(sketches, photos)
    gradient = jax.grad(lambda match: retriever.similarity_of(match).sum())(found.match)
    return found, gradient * found.match


@functools.partial(jax.jit, static_argnums=0)
def _similarity_without(graphdef: Any, state: nnx.State, match: Any, rank: Any, count: Any) -> Any:
    return nnx.merge(graphdef, state).similarity_of(jnp.where(rank < count, REMOVED, match))


def _on_whole_grid(
    values: Float[np.ndarray, "b s p"],
    cells: tuple[int, int],
    rows: Int[np.ndarray, "b s"],
    columns: Int[np.ndarray, "b p"],
    fill: float,
) -> Float[np.ndarray, "b t u"]:
    whole = np.full((len(values), *cells), fill, values.dtype)
    pair = np.arange(len(values))[:, None, None]
    whole[pair, rows[:, :, None], columns[:, None, :]] = values
    return whole
