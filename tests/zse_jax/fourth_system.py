"""A fourth retrieval system, as a user would add one: its class, its config, its registry entry."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from configs import default
from zse_jax.losses import unit
from zse_jax.models.resnet import ResNet50
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Correspondence, Explainable, Modality, Retriever

NAME = "pooled"


class Pooled(Retriever, Explainable):
    """The pooled maps of a ResNet, trained with a triplet loss on the embedding."""

    batch_kind: ClassVar[str] = "quadruplet"
    local_evidence = "cosine of the places of the last maps"

    def __init__(
        self, *, image_size: int = 32, depths: tuple[int, ...] = (1, 1), width: int = 8,
        imagenet_classes: int = 12, margin: float = 0.2, dtype: jnp.dtype, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.image_size, self.margin = image_size, margin
        self.network = ResNet50(
            depths=depths, width=width, classes=imagenet_classes, dtype=dtype, rngs=rngs
        )

    def maps(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b u v d"]:
        return self.network.maps(images.astype(jnp.float32) / 127.5 - 1)

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b d"]:
        return self.maps(images).mean(axis=(1, 2))

    def embedding(self, features: Float[Array, "b d"]) -> Float[Array, "b d"]:
        return unit(features)

    def loss(self, batch: Any) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        images = jnp.concatenate([batch["sketches"], batch["photos"]], axis=1)
        flat = self.encode(images.reshape(-1, *images.shape[2:]), "photo")
        sketch, _, positive, negative = flat.reshape(*images.shape[:2], -1).swapaxes(0, 1)
        near, far = (optax.cosine_distance(sketch, x, epsilon=1e-6) for x in (positive, negative))
        triplet = jax.nn.relu(near - far + self.margin).mean()
        return triplet, {"triplet": triplet}

    def correspond(
        self, sketches: UInt8[Array, "b h w 3"], photos: UInt8[Array, "b h w 3"]
    ) -> Correspondence:
        sketch, photo = (
            x.reshape(len(x), -1, x.shape[-1]) for x in map(self.maps, (sketches, photos))
        )
        match = jnp.einsum("bsd,bpd->bsp", unit(sketch), unit(photo))
        similarity = jnp.sum(unit(sketch.mean(axis=1)) * unit(photo.mean(axis=1)), axis=1)
        return Correspondence(similarity, match)


def get_config() -> ConfigDict:
    """The config of `Pooled`, on the data that the tests install."""
    config = default.get_config()
    config.model = ConfigDict(
        {"system": NAME, "image_size": 32, "depths": (1, 1), "width": 8, "imagenet_classes": 12}
    )
    config.data.update(name="doodles", split="doodles", workers=0)
    config.train.update(steps=2, batch_size=8)
    config.optimizer.update(schedule="constant", warmup_steps=0)
    config.evaluation.update(
        every=2, batch_size=8, sketch_stride=1, photo_stride=1, select="embedding/exact/mAP@all"
    )
    config.log.update(every=1, tensorboard=False)
    return config


ENTRY = registry.System(
    f"{__name__}:Pooled",
    title="Pooled: a ResNet's pooled maps",
    paper="https://example.org/pooled",
    config=NAME,
    pretrained={
        "torchvision_resnet": registry.Pretrained(part="network", uninferred=("image_size",))
    },
)
