"""The one interface behind which every retrieval system stands.

The train loop, the evaluators, the index, search, explanation and the app know only this class. A
new system is one new file beside this one, one config, and nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

Modality = Literal["sketch", "photo"]

Features = Any
"""What a system keeps of each image: a pytree of arrays whose leading axis is the item."""


class Correspondence(NamedTuple):
    """How the places of B sketches and photos correspond (sketch i with photo i).

    Places and tokens are the cells of square grids over the prepared images, row by row; the grid
    of the match may be coarser than that of the tokens.

    Attributes:
      similarity: [b], what the system ranks by, before any squashing (ZSE: the relation logit).
      match: [b, s, p], similarity of each sketch place with each photo place.
      sketch_attention: [b, t, u], what each sketch token looks at in the photo, mean of the heads;
        None without cross-attention. Rows sum to at most 1: the rest goes to no place.
      photo_attention: [b, u, t], the other way.
      sketch_importance: [b, t], how much the image's summary looks at each token; sums to 1, or
        None. Tokens that the network dropped on the way have 0.
      photo_importance: [b, u], the same of the photo.
      sketch_places: [b, s], which cell of its grid each sketch place of `match` is, ascending, for
        systems that drop places on the way; None: all of them, in order.
      photo_places: [b, p], the same of the photo.
    """

    similarity: Float[Array, "b"]
    match: Float[Array, "b s p"]
    sketch_attention: Float[Array, "b t u"] | None = None
    photo_attention: Float[Array, "b u t"] | None = None
    sketch_importance: Float[Array, "b t"] | None = None
    photo_importance: Float[Array, "b u"] | None = None
    sketch_places: Int[Array, "b s"] | None = None
    photo_places: Int[Array, "b p"] | None = None


class Retriever(nnx.Module):
    """A sketch-based image retrieval system.

    Attributes:
      batch_kind: which sampler of `data_pipelines.sampling` feeds `loss`: "quadruplet", ...
      rankings: the names the literature gives to the ways this system can rank a gallery, each
        with the method that computes it: "embedding" (cosine of `embedding`, cheap: one vector
        per image) or "score" (`score` of every pair).
      parameter_groups: what `parameter_group` can say.
      starter: "module:function" that makes the train state before the first step, from (config,
        mesh, setup, workdir), for systems that start from more than random values; or None.
      image_size: side of the square images it takes, in pixels.
    """

    batch_kind: ClassVar[str]
    rankings: ClassVar[Mapping[str, Literal["embedding", "score"]]] = {"embedding": "embedding"}
    starter: ClassVar[str | None] = None
    parameter_groups: ClassVar[Sequence[str]] = ("all",)
    image_size: int

    def loss(self, batch: dict[str, Array]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The training loss of one batch, and the named terms it is made of, for the log."""
        raise NotImplementedError(f"{type(self).__name__} does not define loss()")

    def parameter_group(self, path: tuple[Any, ...]) -> str | None:
        """The optimizer's group of the parameter at `path` below the model; None: it is frozen.

        Each group can have a learning rate of its own (`config.optimizer.learning_rates`). Frozen
        parameters get no gradients and no optimizer state.
        """
        del path
        return "all"

    def start_from(self, source: "Retriever") -> None:
        """Takes over the parameters of a system of the same kind and size, in place.

        Raises:
          ValueError: parameters that one of them lacks or has in another shape, listed; then
            nothing is taken over.
        """
        self._check_kind(source)
        kinds = nnx.Any(nnx.Param, nnx.BatchStat)
        own, given = (dict(nnx.to_flat_state(nnx.state(x, kinds))) for x in (self, source))
        differing = [
            f"{'.'.join(map(str, path))} ({_shape(given, path)} there, {_shape(own, path)} here)"
            for path in own | given
            if _shape(own, path) != _shape(given, path)
        ]
        if differing:
            raise ValueError(
                f"its parameters are not those of this config.model: {', '.join(differing[:8])}"
                f"{', ...' if len(differing) > 8 else ''}. Give it the sizes of the source."
            )
        for path, parameter in own.items():
            parameter[...] = jax.numpy.asarray(given[path][...], parameter.dtype)

    def _check_kind(self, source: "Retriever") -> None:
        if type(source) is not type(self):
            raise ValueError(
                f"it holds a {type(source).__name__}, and this config trains a "
                f"{type(self).__name__}: choose a config of that system, or another source."
            )

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Features:
        """Everything this system needs to know of each image to rank it, computed once."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode()")

    def encode_classes(self, names: Sequence[str]) -> Features:
        """Features of classes known by their names, in place of sketches of them.

        Raises:
          ValueError: this system understands no words.
        """
        raise ValueError(
            f"{type(self).__name__} understands no words: it ranks by sketches "
            "(--config.evaluation.queries=sketch)."
        )

    def embedding(self, features: Features) -> Float[Array, "b d"]:
        """One L2-normalised vector per item, for nearest-neighbour search."""
        raise NotImplementedError(f"{type(self).__name__} does not define embedding()")

    def score(self, sketches: Features, photos: Features) -> Float[Array, "q g"]:
        """Similarity of every sketch with every photo; larger is better.

        Unless a system knows better, the cosine of the embeddings.
        """
        return jax.numpy.matmul(
            self.embedding(sketches), self.embedding(photos).T, precision="float32"
        )

    @property
    def local_evidence(self) -> str:
        """What `correspond` shows, in words for figures; empty where there is nothing to show."""
        return ""

    def correspond(
        self, sketches: UInt8[Array, "b h w 3"], photos: UInt8[Array, "b h w 3"]
    ) -> Correspondence:
        """Which places of sketch i and photo i the system takes for the same, and how surely.

        Raises:
          ValueError: this system compares images as wholes and has no local evidence.
        """
        raise ValueError(
            f"{type(self).__name__} has no local evidence to explain a result with: it compares "
            "images as wholes. Explain a system that defines correspond(), such as ZSE, CLIP-AT or "
            "EfficientCNN."
        )

    def similarity_of(self, match: Float[Array, "b s p"]) -> Float[Array, "b"]:
        """What the similarity would be, were the places to match like this; differentiable.

        `match` is over the places of `correspond`. Unless a system knows better, the mean: exact
        where the similarity is the sum of its places, otherwise what the places say by themselves.
        """
        return match.mean(axis=(1, 2))


def _shape(parameters: Mapping[tuple[Any, ...], Any], path: tuple[Any, ...]) -> str:
    found = parameters.get(path)
    return "none" if found is None else str(tuple(found.shape))
