"""CMCA: "Cross-Domain Matrix Compression Adaptation for Zero-Shot SBIR".

Liu et al., IJCNN 2025. DINOv2 is adapted by low-rank matrices beside its linear layers
(`zse_jax.models.lora`): sketches and photos share them in all blocks but the last, which has
separate ones for each. Only these train. The facts are from the published code,
https://github.com/zermatt-luo/CMCA.

An option is the loss of MCC (IJCAI 2024), `losses.mean_similarity`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num, UInt8

from zse_jax.losses import cosine_triplet, mean_similarity, unit
from zse_jax.models import lora
from zse_jax.models.backbone import BACKBONES, create_backbone
from zse_jax.models.dinov2 import DINOv2
from zse_jax.models.layers import normalise
from zse_jax.retrievers.base import Correspondence, Explainable, Modality, Preprocessing, Retriever

Trainable = Literal["adapters", "all"]


class CMCA(Retriever, Explainable):
    """DINOv2 with adapters; its feature is the class token after the final LayerNorm.

    Attributes:
      backbone: the network, with the adapters.
    """

    batch_kind: ClassVar[str] = "triplet"
    preprocessing: Preprocessing = "pad"
    parameter_groups: ClassVar[Sequence[str]] = ("adapter", "backbone")

    def __init__(
        self,
        *,
        backbone: str = "dinov2_vitb14",
        image_size: int = 224,
        rank: int = 64,
        trainable: Trainable = "adapters",
        triplet_margin: float = 0.2,
        mcc_weights: Sequence[float] = (0.0, 0.0),
        mcc_targets: Sequence[float] = (0.1, 0.0),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Random weights; `pretrained.dinov2.load` loads those of the backbone.

        Args:
          backbone: a DINOv2 of `models.backbone.BACKBONES`.
          image_size: pixels, a multiple of the patches'.
          rank: of the adapters; at first they change nothing.
          trainable: "adapters", as published, or "all" parameters (ours, to start from random
            values).
          triplet_margin: in cosine distance.
          mcc_weights, mcc_targets: of `losses.mean_similarity`, of sketches and of photos; a term
            of weight 0 is not computed, and both are 0 as published for CMCA.
          dtype: of activations; parameters, features and losses are float32.
          rngs: stream `params`.

        Raises:
          ValueError: a network that is not a DINOv2, a rank below 1, sizes that do not fit, or
            unknown choices.
        """
        if trainable not in get_args(Trainable):
            raise ValueError(
                f"config.model.trainable={trainable!r}: choose one of "
                f"{', '.join(get_args(Trainable))}."
            )
        if len(mcc_weights) != 2 or len(mcc_targets) != 2:
            raise ValueError(
                f"config.model.mcc_weights={tuple(mcc_weights)} and mcc_targets="
                f"{tuple(mcc_targets)} must have two numbers each: of sketches and of photos."
            )
        network = create_backbone(backbone, {}, dtype=dtype, rngs=rngs)
        if not isinstance(network, DINOv2):
            usable = ", ".join(name for name in BACKBONES if name.startswith("dinov2"))
            raise ValueError(f"config.model.backbone={backbone!r}: choose one of {usable}.")
        if image_size < 1 or image_size % network.patch:
            raise ValueError(
                f"config.model.image_size={image_size} must be a multiple of {network.patch}, the "
                f"side of the patches of {backbone}."
            )
        if rank < 1:
            raise ValueError(
                f"config.model.rank={rank}: the rank of the adapters must be at least 1 (64 as "
                "published). For DINOv2 without training, use the variant raw."
            )
        self.image_size, self.trainable, self.triplet_margin = image_size, trainable, triplet_margin
        self.mcc_weights, self.mcc_targets = tuple(mcc_weights), tuple(mcc_targets)
        *lower, last = network.blocks
        for block in lower:
            lora.adapt(block, rank, rngs=rngs)
        lora.adapt(last, rank, modalities=get_args(Modality), rngs=rngs)
        self.backbone = network

    def features(self, images: Float[Array, "b h w 3"], modality: Modality) -> Float[Array, "b d"]:
        """The class token after the final LayerNorm, float32, not L2-normalised.

        Args:
          images: normalised; sides are multiples of the patches'.
          modality: of the images.

        Raises:
          ValueError: other sides.
        """
        return lora.for_modality(self.backbone, modality)(images)[0]

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b d"]:
        """`features` of the pixels, computed with the adapters merged into the kernels."""
        return lora.merged(self.backbone, modality)(self._normalise(images))[0]

    def embedding(self, features: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """The features, L2-normalised, in float32."""
        return unit(features)

    def loss(self, batch: Mapping[str, Num[Array, "..."]]) -> tuple[Array, dict[str, Array]]:
        """The triplet loss, and the weighted terms of MCC if there are any.

        Args:
          batch: `sketches` [b, 1, h, w, 3] and `photos` [b, 2, h, w, 3], one of the sketch's class
            and one of another; uint8 pixels or normalised floats.

        Returns:
          The loss, and its terms before weighting: `triplet`, `mcc_sketch`, `mcc_photo`.
        """
        sketches, photos = (
            self._normalise(batch[name].reshape(-1, *batch[name].shape[2:]))
            for name in ("sketches", "photos")
        )
        sketch, photo = self.features(sketches, "sketch"), self.features(photos, "photo")
        positive, negative = photo.reshape(len(sketch), 2, -1).swapaxes(0, 1)
        loss = cosine_triplet(sketch, positive, negative, margin=self.triplet_margin)
        terms = {"triplet": loss}
        for i, (modality, features) in enumerate((("sketch", sketch), ("photo", photo))):
            if self.mcc_weights[i]:
                term = mean_similarity(features, self.mcc_targets[i])
                terms[f"mcc_{modality}"] = term
                loss = loss + self.mcc_weights[i] * term
        return loss, terms

    @property
    def across_samples(self) -> tuple[str, ...]:
        """The terms of MCC, which compare all images of a batch."""
        return ("mcc",) if any(self.mcc_weights) else ()

    def parameter_group(self, path: tuple[Any, ...]) -> str | None:
        """The group "adapter", or "backbone" for the rest; None: frozen."""
        if lora.is_adapter(path):
            return "adapter"
        return "backbone" if self.trainable == "all" else None

    @property
    def local_evidence(self) -> str:
        """Patches of the last block: CMCA trains only the class token."""
        return (
            "similarity of patches of the last block (they were never trained to match), and "
            "attention rollout"
        )

    def correspond(
        self, sketches: UInt8[Array, "b h w 3"], photos: UInt8[Array, "b h w 3"]
    ) -> Correspondence:
        """Cosines of the patches after the final LayerNorm; importance by attention rollout.

        The similarity is the cosine of the embeddings; it is not a function of `match`.
        """

        def local(images: Array, modality: Modality) -> tuple[Array, Array, Array]:
            network = lora.merged(self.backbone, modality)
            tokens, importance = network.attended(self._normalise(images))
            embedding = self.embed(tokens[:, 0], modality)
            return embedding, unit(tokens[:, -importance.shape[1] :]), importance

        sketch, photo = local(sketches, "sketch"), local(photos, "photo")
        return Correspondence(
            (sketch[0] * photo[0]).sum(axis=1),
            jnp.einsum("bsd,bpd->bsp", sketch[1], photo[1], precision="float32"),
            sketch_importance=sketch[2],
            photo_importance=photo[2],
        )

    def _normalise(self, images: Num[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return normalise(images, self.backbone.mean, self.backbone.std)
