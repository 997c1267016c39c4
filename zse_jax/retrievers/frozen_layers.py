"""The frozen first blocks of a backbone, as an encoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zse_jax.models.backbone import Backbone, frozen_output, is_frozen
from zse_jax.retrievers.base import Encoder, Modality


class FrozenLayers(Encoder):
    """Frozen blocks of a backbone: features are their output for image and mirror image.

    All other parameters are zero: the features, and the fingerprint, are those of the frozen ones.
    """

    def __init__(self, backbone: Backbone, blocks: int, image_size: int, mirror: bool):
        """Copies the backbone; without `mirror`, the second output is left out."""
        self.backbone = nnx.clone(backbone)
        self.blocks, self.image_size, self.mirror = blocks, image_size, mirror
        state = nnx.to_flat_state(nnx.state(self.backbone))
        trained = [
            (path, jax.tree.map(jnp.zeros_like, value))
            for path, value in state
            if not is_frozen(self.backbone, path, blocks)
        ]
        nnx.update(self.backbone, nnx.from_flat_state(trained))

    def encode(
        self, images: UInt8[Array, "b h w 3"], modality: Modality
    ) -> Float[Array, "b n ..."]:
        """The outputs for each image, and for its mirror image."""
        del modality
        both = (images, images[:, :, ::-1]) if self.mirror else (images,)
        outputs = [frozen_output(self.backbone, some, self.blocks) for some in both]
        return jnp.stack(outputs, axis=1)

    def embedding(self, features: Float[Array, "b n ..."]) -> Float[Array, "b d"]:
        """The mean over images and places, L2-normalised."""
        mean = features.mean(axis=range(1, features.ndim - 1))
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
