"""Why a photo was found: which places of sketch and photo match (ZSE, CVPR 2023, section 3.4).

Pure functions of a retriever and pairs of prepared images. Each system defines its places and
matches (`Explainable.correspond`). The similarity is attributed to matches by gradient x input.
`deletion_curve` measures whether that is faithful: the similarity must fall faster when the matches
with the largest attribution are removed than when random ones are (as in RISE, BMVC 2018).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from zse_jax.retrievers import base
from zse_jax.retrievers.base import Encoder, Explainable

INK_CONTRAST = 64
"""A pixel is ink if its grey value, 0 to 255, differs from the paper's by at least this much."""

BLANK = 0.02
"""A place with a smaller share of ink is blank."""

REMOVED = 0.0
"""The value of a match that `deletion_curve` removed: the cosine with an anchor that is zero."""

NO_EVIDENCE = -1.0
"""The match of places that the system dropped: the smallest possible cosine."""

LINE_STYLES = (
    "The thicker a line, the more the match contributes. Solid: each is the other's best match. "
    "Dashed: only the sketch place prefers this match."
)
"""The meaning of the lines that join matches, for captions."""


class Explanation(NamedTuple):
    """The explanation of B pairs (sketch i with photo i); numpy arrays.

    Places and tokens are the cells of square grids over the prepared images, row by row. Places
    that the system dropped (ZSE's token selection) have a match of -1.

    Attributes:
      similarity: [b], the value that the system ranks by, before any squashing.
      match: [b, s, p], similarity of each sketch place with each photo place.
      attribution: [b, s, p], contribution of each match to the similarity (gradient x input of
        `Explainable.similarity_of`).
      sketch_relevance: [b, s], attribution summed over the photo.
      photo_relevance: [b, p], attribution summed over the sketch.
      best: [b, s], the best-matching photo place of each sketch place.
      mutual: [b, s], whether the sketch place is also the best match of that photo place among all
        places with strokes; False for blank places.
      ink: [b, s], share of pixels with strokes in each sketch place, 0 to 1; 0 for dropped places.
        All 0 for a sketch without strokes, for which there is nothing to show.
      sketch_attention: [b, t, u], attention of each sketch token to the photo's tokens, or None.
      photo_attention: [b, u, t], the same from photo to sketch, or None.
      sketch_importance: [b, t], weight of each token in the summary of the image, or None.
      photo_importance: [b, u], the same for the photo, or None.
      evidence: a phrase for figures that describes the matches.
      sketch_places: [b, kept], the sketch places that were not dropped; None: all.
      photo_places: [b, kept], the same for the photo.
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
    """Explains pairs of images with one retriever, always in evaluation mode.

    Compiles once for each number of pairs. The retriever is split only once, because for a small
    network on a CPU that takes longer than an explanation.
    """

    def __init__(self, retriever: Encoder):
        """Uses the current parameters of the retriever; does not copy them.

        Raises:
          ValueError: the system is not `Explainable`.
        """
        if not isinstance(retriever, Explainable):
            raise ValueError(
                f"{type(retriever).__name__} has no local evidence with which to explain a result: "
                "it compares whole images."
            )
        self._retriever, self._evaluated = retriever, _evaluated(retriever)

    def __call__(
        self, sketches: Num[np.ndarray | Array, "..."], photos: Num[np.ndarray | Array, "..."]
    ) -> Explanation:
        """Explains the pairs (sketch i, photo i).

        Args:
          sketches: uint8 [b, h, w, 3], prepared (`data_pipelines.images.prepare_sketch`).
          photos: uint8 [b, h, w, 3], prepared (`prepare_photo`).

        Raises:
          ValueError: images of the wrong size, type or number.
        """
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
            **found._asdict() | {"match": match},
            attribution=attribution,
            sketch_relevance=attribution.sum(axis=2),
            photo_relevance=attribution.sum(axis=1),
            best=best,
            mutual=mutual,
            ink=ink,
            evidence=self._retriever.local_evidence,
        )


def best_matches(
    match: Float[np.ndarray, "b s p"], inked: Bool[np.ndarray, "b s"]
) -> tuple[Int[np.ndarray, "b s"], Bool[np.ndarray, "b s"]]:
    """The best photo place of each sketch place, and whether the match is mutual.

    Of several equal matches, the first is the best.

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
    """The share of pixels with strokes in each cell of a `side` x `side` grid, row by row.

    A pixel is ink if its grey value differs by `INK_CONTRAST` or more from that of the paper, which
    is the median; so strokes can be darker or lighter than the paper.
    """
    grey = sketches @ np.ones(3, np.float32) / 3  # equals `mean`, which is slower
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
    """The similarity while more and more matches are removed (set to 0).

    Args:
      retriever: the system that was explained.
      explanation: its explanation.
      order: the order in which the matches of each pair are removed: indices into [s * p], each
        once, for example `(-attribution.reshape(b, -1)).argsort(axis=1)`.
      steps: number of removals, each of about the same number of matches.

    Returns:
      [b, steps + 1], `similarity_of` from all matches to none.

    Raises:
      ValueError: `order` is not an order of these matches, or `steps` is below 1.
    """
    pairs, s, p = explanation.match.shape
    if (
        order.shape != (pairs, s * p)
        or steps < 1
        or not (np.sort(order, axis=1) == np.arange(s * p)).all()
    ):
        raise ValueError(
            f"order must contain each of the {s} x {p} matches of {pairs} pairs once, in shape "
            f"{(pairs, s * p)}, but has shape {order.shape}; steps={steps} must be at least 1."
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
    """The side of a square grid of `places` cells.

    Raises:
      ValueError: `places` is not a square number.
    """
    side = math.isqrt(places)
    if side * side != places:
        raise ValueError(
            f"{places} places do not form a square grid, so they cannot be drawn on an image."
        )
    return side


def check_images(
    retriever: Encoder,
    sketches: Num[np.ndarray | Array, "..."],
    photos: Num[np.ndarray | Array, "..."],
) -> None:
    """Checks pairs of images to explain.

    Raises:
      ValueError: images of the wrong size, type or number.
    """
    for images, modality in ((sketches, "sketch"), (photos, "photo")):
        base.check_images(images, modality, retriever.image_size)
    if not len(sketches):
        raise ValueError("There are no pairs to explain.")
    if len(sketches) != len(photos):
        raise ValueError(
            f"There are {len(sketches)} sketches and {len(photos)} photos, but explanations are of "
            "pairs: give one photo for each sketch."
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
