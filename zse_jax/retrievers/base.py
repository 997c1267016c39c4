"""The one interface behind which every retrieval system stands.

The train loop, the evaluators, the index, search, explanation and the app know only this class. A
new system is one new file beside this one, one config, and nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, UInt8

Modality = Literal["sketch", "photo"]

Features = Any
"""What a system keeps of each image: a pytree of arrays whose leading axis is the item."""


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
