"""The interfaces of retrieval systems.

Evaluation, index and search use only `Encoder`, the train loop only `Retriever`, explanations only
`Explainable`. `zse_jax.retrievers.registry` lists the systems.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    get_args,
    runtime_checkable,
)

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from zse_jax.losses import unit
from zse_jax.models.backbone import Backbone

Modality = Literal["sketch", "photo"]

Preprocessing = Literal["crop", "pad"]
"""How images become squares, see `data_pipelines.images`."""

Features = Any
"""What a system keeps of each image: a pytree of arrays whose leading axis is the item."""


MeanOf = Callable[[Callable[[Features], Array]], tuple[Array, Array]]
"""The means of a function of the features over training sketches, and over training photos."""

AnyEncoder = TypeVar("AnyEncoder", bound="Encoder")


class DomainMeans(nnx.Variable):
    """The mean embedding of sketches and of photos over training images, [2, d]; not trained."""


class Correspondence(NamedTuple):
    """Which places of B sketches and photos correspond (sketch i with photo i).

    Places and tokens are cells of square grids over the prepared images, row by row; the grid of
    `match` may be coarser than that of the tokens.

    Attributes:
      similarity: [b], the value that the system ranks by, before any squashing (ZSE: the relation
        logit).
      match: [b, s, p], similarity of each sketch place with each photo place.
      sketch_attention: [b, t, u], attention of each sketch token to the photo's tokens, mean over
        the heads; None without cross-attention. Rows sum to at most 1: the rest goes to tokens
        that are not places.
      photo_attention: [b, u, t], the same from photo to sketch.
      sketch_importance: [b, t], weight of each token in the summary of the image; sums to 1, or
        None. Tokens that the network dropped have 0.
      photo_importance: [b, u], the same for the photo.
      sketch_places: [b, s], grid cell of each sketch place of `match`, ascending, for systems that
        drop places; None: all cells, in order.
      photo_places: [b, p], the same for the photo.
    """

    similarity: Float[Array, "b"]
    match: Float[Array, "b s p"]
    sketch_attention: Float[Array, "b t u"] | None = None
    photo_attention: Float[Array, "b u t"] | None = None
    sketch_importance: Float[Array, "b t"] | None = None
    photo_importance: Float[Array, "b u"] | None = None
    sketch_places: Int[Array, "b s"] | None = None
    photo_places: Int[Array, "b p"] | None = None


def check_images(images: Any, modality: Any, size: int) -> None:
    """Checks the arguments of `Encoder.encode`; reads no values, so that it works under `jax.jit`.

    Raises:
      ValueError: the images are not uint8 [b, size, size, 3], or the modality does not exist.
    """
    if modality not in get_args(Modality):
        raise ValueError(f"modality={modality!r} must be 'sketch' or 'photo'.")
    dtype, shape = getattr(images, "dtype", None), tuple(getattr(images, "shape", ()))
    if dtype == np.uint8 and len(shape) == 4 and shape[1:] == (size, size, 3):
        return
    found = f"{dtype} of shape {list(shape)}" if dtype is not None else f"a {type(images).__name__}"
    if dtype == np.uint8 and shape == (size, size, 3):
        advice = "add the axis of the batch: images[None]"
    else:
        advice = (
            f"prepare each image with data_pipelines.images.prepare_{modality}(x, "
            "size=retriever.image_size, preprocessing=retriever.preprocessing), which takes uint8 "
            "[height, width, 3], and stack them"
        )
    raise ValueError(
        f"{modality} images must be uint8 arrays of shape [n, {size}, {size}, 3] with values from "
        f"0 to 255, but these are {found}: {advice}."
    )


def _checking_one(encode: Callable[..., Features]) -> Callable[..., Features]:
    @functools.wraps(encode)
    def checked(self: Any, images: Any, modality: Any) -> Features:
        check_images(images, modality, self.image_size)
        return encode(self, images, modality)

    return checked


def _checking_pairs(correspond: Callable[..., Correspondence]) -> Callable[..., Correspondence]:
    @functools.wraps(correspond)
    def checked(self: Any, sketches: Any, photos: Any) -> Correspondence:
        check_images(sketches, "sketch", self.image_size)
        check_images(photos, "photo", self.image_size)
        return correspond(self, sketches, photos)

    return checked


class Encoder(nnx.Module):
    """Encodes images and scores them: all that evaluation, index and search need.

    `encode` and `correspond` of every subclass check their arguments first (`check_images`).

    Attributes:
      rankings: the literature's names for the ways in which this system can rank a gallery, and
        how each is computed: "embedding" (cosine of `embedding`, one vector per image) or "score"
        (`score` of every pair).
      image_size: side of the square input images, in pixels.
      preprocessing: how images are prepared; "crop" unless `config.model.preprocessing` is "pad".
      means: what `embed` subtracts; None: nothing. `config.model.centred` adds it to any system.
    """

    rankings: ClassVar[Mapping[str, Literal["embedding", "score"]]] = {"embedding": "embedding"}
    image_size: int
    preprocessing: Preprocessing = "crop"
    means: DomainMeans | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, checking in (("encode", _checking_one), ("correspond", _checking_pairs)):
            if (method := vars(cls).get(name)) is not None:
                setattr(cls, name, checking(method))

    @abstractmethod
    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Features:
        """Everything this system needs to know about each image to rank it, computed once.

        Args:
          images: [b, image_size, image_size, 3], each prepared by
            `data_pipelines.images.prepare_sketch` or `prepare_photo`; values 0 to 255.
          modality: what they are; some systems encode sketches and photos differently.

        Raises:
          ValueError: another type, shape or modality.
        """

    def with_pooled_tokens(self) -> "Encoder":
        """This system with the same parameters, but with scores of pairs from fewer tokens.

        Raises:
          ValueError: it has no such scores.
        """
        raise ValueError(
            f"config.evaluation.pooled_tokens: {type(self).__name__} does not score pairs by "
            "tokens that can be pooled. Leave it out."
        )

    @abstractmethod
    def embedding(self, features: Features) -> Float[Array, "b d"]:
        """One L2-normalised vector per item, before `means` are subtracted."""

    @property
    def vector_width(self) -> int:
        """The width of `embedding`; by default found by tracing `encode`."""
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jax.numpy.uint8)

        def vector(encoder: Encoder, images: Array) -> Array:
            return encoder.embedding(encoder.encode(images, "photo"))

        return nnx.eval_shape(vector, evaluation_view(self), image).shape[1]

    def embed(self, features: Features, modality: Modality) -> Float[Array, "b d"]:
        """One L2-normalised vector per item, for nearest-neighbour search.

        The `embedding`, minus the mean of its modality if the system has `means`. (Sketches and
        photos of all classes lie apart; without the means, what remains is the class.)
        """
        embedding = self.embedding(features)
        if self.means is None:
            return embedding
        return unit(embedding - self.means[...][get_args(Modality).index(modality)])

    def score(self, sketches: Features, photos: Features) -> Float[Array, "q g"]:
        """Similarity of every sketch with every photo; larger is better.

        By default the cosine of the embeddings.
        """
        queries, gallery = self.embed(sketches, "sketch"), self.embed(photos, "photo")
        return jax.numpy.matmul(queries, gallery.T, precision="float32")

    def score_pairs(self, sketches: Features, photos: Features) -> Float[Array, "b"]:
        """Similarity of sketch i with photo i: the diagonal of `score`.

        By default `score` of each pair alone.
        """

        def one(*pair: Features) -> Float[Array, ""]:
            return self.score(*jax.tree.map(lambda leaf: leaf[None], pair))[0, 0]

        return jax.vmap(one)(sketches, photos)


class Retriever(Encoder):
    """An encoder that can be trained.

    Attributes:
      batch_kind: which sampler of `data_pipelines.sampling` feeds `loss`: "quadruplet", ...
      parameter_groups: the groups that `parameter_group` can return.
    """

    batch_kind: ClassVar[str]
    parameter_groups: ClassVar[Sequence[str]] = ("all",)

    @abstractmethod
    def loss(self, batch: dict[str, Array]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The training loss of one batch, and its named terms, for the log."""

    @property
    def across_samples(self) -> tuple[str, ...]:
        """The parts of `loss` that relate the samples of a batch; none if it is a mean over them.

        Such a loss cannot be computed from micro-batches (`config.train.accumulate`).
        """
        return ()

    @property
    def frozen_layers(self) -> tuple[Backbone, int] | None:
        """A backbone and the number of its first blocks that do not train; None: all layers train.

        `loss` accepts the output of these blocks (`backbone.frozen_output`) in place of images, so
        that training can compute it once for every image (`config.train.cache_frozen`).
        """
        return None

    def parameter_group(self, path: tuple[Any, ...]) -> str | None:
        """The optimizer group of the parameter at `path` below the model; None: it is frozen.

        Each group can have its own learning rate (`config.optimizer.learning_rates`). Frozen
        parameters get no gradients and no optimizer state.
        """
        del path
        return "all"

    def start_from(self, source: Encoder) -> None:
        """Sets initial values outside the backbone, which was copied from another system.

        Args:
          source: that retriever. By default, nothing but its backbone is used.
        """
        del source

    def start_from_training(self, mean: MeanOf) -> None:
        """Sets initial values from the training images, after `config.init_from` was read.

        By default, nothing. It computes with the present parameters.
        """
        del mean


class Explainable(Encoder):
    """An encoder that can show which places of a sketch and a photo correspond."""

    @property
    @abstractmethod
    def local_evidence(self) -> str:
        """What `correspond` shows, as a phrase for figures."""

    @abstractmethod
    def correspond(
        self, sketches: UInt8[Array, "b h w 3"], photos: UInt8[Array, "b h w 3"]
    ) -> Correspondence:
        """Which places of sketch i and photo i correspond, and how strongly."""

    def similarity_of(self, match: Float[Array, "b s p"]) -> Float[Array, "b"]:
        """The similarity that a given `match` would result in; differentiable.

        By default the mean, which is exact where the similarity is the sum over places, and
        otherwise only summarises them.
        """
        return match.mean(axis=(1, 2))


@runtime_checkable
class TextQueries(Protocol):
    """A system that can rank photos by class names."""

    def encode_classes(self, names: Sequence[str]) -> Features:
        """Features of classes known by their names, in place of sketches of them."""
        ...


def evaluation_view(encoder: AnyEncoder) -> AnyEncoder:
    """The encoder with dropout off and running batch statistics; shares the parameters."""
    return nnx.view(encoder, deterministic=True, use_running_average=True, raise_if_not_found=False)


def copy_parameters(
    target: nnx.Module, source: nnx.Module, *, without: Collection[str] = ()
) -> None:
    """Copies all parameters and batch statistics of `source` into `target`, in place.

    Args:
      target, source: retrievers of one system, or their backbones.
      without: attributes whose parameters stay as they are.

    Raises:
      ValueError: parameters that only one of them has, or that differ in shape, listed; nothing is
        copied then.
    """
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    own, given = (
        {path: x for path, x in nnx.to_flat_state(nnx.state(y, kinds)) if path[0] not in without}
        for y in (target, source)
    )
    differing = [
        f"{'.'.join(map(str, path))} (source: {_shape(given, path)}, model: {_shape(own, path)})"
        for path in own | given
        if _shape(own, path) != _shape(given, path)
    ]
    if differing:
        raise ValueError(
            f"its parameters do not fit this config.model: {', '.join(differing[:8])}"
            f"{', ...' if len(differing) > 8 else ''}. Use the sizes of the source."
        )
    for path, parameter in own.items():
        value = given[path][...]  # conversion compiles each shape, also if the type is the same
        parameter[...] = value if value.dtype == parameter.dtype else value.astype(parameter.dtype)


def _shape(parameters: Mapping[tuple[Any, ...], Any], path: tuple[Any, ...]) -> str:
    found = parameters.get(path)
    return "none" if found is None else str(tuple(found.shape))
