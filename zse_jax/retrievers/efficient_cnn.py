"""EfficientCNN: one CNN for sketches and photos, three losses, no teacher during training.

Tursun et al., "An efficient framework for zero-shot sketch-based image retrieval", Pattern
Recognition 126, 2022, arXiv 2102.04016. The abstract states the parts; their formulas are our
reading, in `zse_jax.losses`. The teacher's predictions for each seen class are computed once,
before training:

    python -m zse_jax.training.distillation --prepare \
        --config=configs/efficient_sketchy.py --config.teacher.knowledge=sketchy.npz
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num, UInt8

from zse_jax.losses import (
    domain_balanced_quadruplet,
    knowledge_preservation,
    semantic_classification,
    supervised_contrastive,
    unit,
)
from zse_jax.models.backbone import (
    Backbone,
    Divisible,
    check_frozen,
    create_backbone,
    frozen_output,
    is_frozen,
    statistics_move,
)
from zse_jax.models.layers import linear, normalise
from zse_jax.retrievers import base
from zse_jax.retrievers.base import Correspondence, Encoder, Explainable, Modality, Retriever

RetrievalLayer = Literal["projection", "features", "root_features"]


class Knowledge(nnx.Variable):
    """The teacher's distribution over ImageNet's classes for each seen class; not trained."""


class EfficientCNN(Retriever, Explainable):
    """A backbone (ResNet-50 by default) with an embedding and a classifier of the seen classes.

    The classifier reads the embedding before normalisation.

    Attributes:
      backbone: the network with its ImageNet head; it starts with the teacher's weights.
      knowledge: [seen_classes, imagenet_classes], saved with the parameters; NaN until it is
        computed, None if `knowledge_weight` is 0.
    """

    batch_kind: ClassVar[str] = "class_group"
    parameter_groups: ClassVar[Sequence[str]] = ("backbone", "head")
    # Added later: these values leave the fingerprint of an older model as it was.
    frozen_blocks: int = 0
    contrastive_weight: float = 0.0
    temperature: float = 0.1
    classifier_scale: float = 0.0
    retrieval_layer: RetrievalLayer = "projection"

    def __init__(
        self,
        *,
        backbone: str = "resnet50",
        image_size: int = 224,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        imagenet_classes: int = 1000,
        embedding_width: int = 512,
        seen_classes: int = 100,
        frozen_statistics: bool = False,
        frozen_blocks: int = 0,
        margin: float = 0.3,
        cross_margin: float = 0.15,
        label_smoothing: float = 0.0,
        quadruplet_weight: float = 1.0,
        classification_weight: float = 1.0,
        knowledge_weight: float = 1.0,
        contrastive_weight: float = 0.0,
        temperature: float = 0.1,
        classifier_scale: float = 0.0,
        retrieval_layer: RetrievalLayer = "projection",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; the default weights and margins are our choices.

        Args:
          backbone: key of `models.backbone.BACKBONES`.
          image_size: pixels.
          depths, width: of the backbone; see `models.resnet.ResNet50`.
          imagenet_classes: classes of the teacher.
          embedding_width: 512 in the paper.
          seen_classes: number of classes of the training split.
          frozen_statistics: keep the batch statistics that come with the backbone's weights.
          frozen_blocks: first blocks of the backbone that do not train, with the stem; 0: none.
          margin, cross_margin, label_smoothing: see `losses`.
          quadruplet_weight, classification_weight, knowledge_weight: of the three losses; a loss
            of weight 0 is not computed.
          contrastive_weight, temperature: of `losses.supervised_contrastive`, a fourth loss, which
            the paper does not have.
          classifier_scale: the classifier reads the normalised embedding times this number; 0, as
            we read the paper: the embedding before normalisation.
          retrieval_layer: the vector that ranks photos: "projection", as published, or "features",
            the pooled features before it, which are less specific to the seen classes (Chen et al.,
            "A simple framework for contrastive learning of visual representations", ICML 2020,
            section 4.2), or "root_features", the square roots of these with their signs, in which
            a few strong features dominate less (Perronnin et al., "Improving the Fisher kernel for
            large-scale image classification", ECCV 2010, section 3.2). The losses act on the
            projection in all cases.
          dtype: of activations; parameters, embeddings and losses are float32.

        Raises:
          ValueError: sizes that are not positive, or settings that the backbone does not support.
        """
        if min(image_size, embedding_width, seen_classes) < 1:
            raise ValueError(
                f"image_size={image_size}, embedding_width={embedding_width} and "
                f"seen_classes={seen_classes} must be positive."
            )
        if retrieval_layer not in get_args(RetrievalLayer):
            raise ValueError(
                f"config.model.retrieval_layer={retrieval_layer!r} is unknown: choose one of "
                f"{', '.join(get_args(RetrievalLayer))}."
            )
        self.image_size = image_size
        self.seen_classes = seen_classes
        self.margin, self.cross_margin = margin, cross_margin
        self.label_smoothing = label_smoothing
        self.quadruplet_weight = quadruplet_weight
        self.classification_weight = classification_weight
        self.knowledge_weight = knowledge_weight
        self.contrastive_weight, self.temperature = contrastive_weight, temperature
        self.classifier_scale, self.frozen_blocks = classifier_scale, frozen_blocks
        self.retrieval_layer = retrieval_layer
        settings = {
            "depths": tuple(depths), "width": width, "classes": imagenet_classes,
            "frozen_statistics": frozen_statistics,
        }  # fmt: skip
        self.backbone: Backbone = create_backbone(backbone, settings, dtype=dtype, rngs=rngs)
        if self.backbone.image_size not in (None, image_size):
            raise ValueError(
                f"The backbone {backbone!r} takes images of {self.backbone.image_size} pixels: set "
                f"config.model.image_size to that, not to {image_size}."
            )
        check_frozen(self.backbone, backbone, frozen_blocks, frozen_statistics)
        if knowledge_weight and not self.backbone.classes:
            raise ValueError(
                f"The backbone {backbone!r} has no ImageNet classifier, which the knowledge "
                "preservation loss needs: set config.model.knowledge_weight to 0."
            )
        float32 = jnp.dtype("float32")
        self.projection = linear(self.backbone.features, embedding_width, dtype=float32, rngs=rngs)
        self.classifier = linear(embedding_width, seen_classes, dtype=float32, rngs=rngs)
        shape = seen_classes, self.backbone.classes
        self.knowledge = Knowledge(jnp.full(shape, jnp.nan)) if knowledge_weight else None

    def loss(self, batch: Mapping[str, Num[Array, "..."]]) -> tuple[Array, dict[str, Array]]:
        """Weighted sum of the three losses on P classes with K sketches and K photos each.

        Args:
          batch: `sketches` and `photos` [P, K, h, w, 3], uint8 pixels or normalised floats, or the
            output of `frozen_layers` for them [P, K, u, v, d], with
            `sketch_labels` and `photo_labels` [P, K]. Row p of all four belongs to one class, and
            at least two rows differ (`data_pipelines.sampling`, "class_group").

        Returns:
          The loss, its terms before weighting (`quadruplet`, `classification`, `knowledge`), and
          the `accuracy` of the seen-class classifier.

        Raises:
          ValueError: see `check_groups`; under `jax.jit` only shapes are checked.
        """
        check_groups(batch, self.seen_classes)
        sketches, photos = batch["sketches"], batch["photos"]
        images = jnp.concatenate([sketches, photos], axis=1)  # a class stays on its device
        labels = jnp.concatenate([batch["sketch_labels"], batch["photo_labels"]], axis=1).ravel()
        images = images.reshape(-1, *images.shape[2:])
        features, imagenet_logits = self._pooled(images)
        embeddings = self.projection(features)
        read = self.classifier_scale * unit(embeddings) if self.classifier_scale else embeddings
        logits = self.classifier(read)
        terms = {"accuracy": (logits.argmax(axis=1) == labels).mean()}
        loss = jnp.zeros(())
        groups = embeddings.reshape(len(sketches), -1, embeddings.shape[1])
        both = [
            *(
                part.reshape(-1, embeddings.shape[1])
                for part in jnp.split(groups, [sketches.shape[1]], axis=1)
            ),
            batch["sketch_labels"].ravel(),
            batch["photo_labels"].ravel(),
        ]
        if self.quadruplet_weight:
            terms["quadruplet"] = domain_balanced_quadruplet(
                *both, margin=self.margin, cross_margin=self.cross_margin
            )
            loss += self.quadruplet_weight * terms["quadruplet"]
        if self.contrastive_weight:
            terms["contrastive"] = supervised_contrastive(*both, temperature=self.temperature)
            loss += self.contrastive_weight * terms["contrastive"]
        if self.classification_weight:
            terms["classification"] = semantic_classification(
                logits, labels, smoothing=self.label_smoothing
            )
            loss += self.classification_weight * terms["classification"]
        if self.knowledge is not None:
            assert imagenet_logits is not None  # checked in __init__
            terms["knowledge"] = knowledge_preservation(
                imagenet_logits, self.knowledge[...][labels]
            )
            loss += self.knowledge_weight * terms["knowledge"]
        return loss, terms

    def _pooled(
        self, images: Num[Array, "b h w c"]
    ) -> tuple[Float[Array, "b features"], Float[Array, "b classes"] | None]:
        """Pooled features and ImageNet logits, of images or of the output of `frozen_layers`."""
        if not self.frozen_blocks:
            return self.backbone(_normalise(images, self.backbone))
        assert isinstance(self.backbone, Divisible)  # checked in __init__
        maps = frozen_output(self.backbone, images, self.frozen_blocks)
        return self.backbone.upper(maps, self.frozen_blocks)

    @property
    def frozen_layers(self) -> tuple[Backbone, int] | None:
        """The backbone and its frozen blocks; None if there are none."""
        return (self.backbone, self.frozen_blocks) if self.frozen_blocks else None

    def parameter_group(self, path: tuple[Any, ...]) -> str | None:
        """The group "backbone", or "head" for embedding and classifier; None: a frozen block."""
        if path[0] != "backbone":
            return "head"
        return None if is_frozen(self.backbone, path[1:], self.frozen_blocks) else "backbone"

    @property
    def across_samples(self) -> tuple[str, ...]:
        """The hardest examples of the batch, and batch normalisation unless it is frozen."""
        weights = {"quadruplet": self.quadruplet_weight, "contrastive": self.contrastive_weight}
        related = tuple(name for name, weight in weights.items() if weight)
        return related + ("batch statistics",) * statistics_move(self.backbone)

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b d"]:
        """The L2-normalised embedding of each image; both modalities share the network."""
        del modality
        features, _ = self.backbone(_normalise(images, self.backbone))
        return unit(self._retrieved(features[:, None])[:, 0])

    def _retrieved(self, places: Float[Array, "b n features"]) -> Float[Array, "b n d"]:
        """Shares of places in the vector that `retrieval_layer` names, which is their mean."""
        if self.retrieval_layer == "projection":
            return self.projection(places)
        if self.retrieval_layer == "root_features":
            pooled = places.mean(axis=1, keepdims=True)
            return places / jnp.sqrt(jnp.abs(pooled) + 1e-12)
        return places

    def embedding(self, features: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """The features, unchanged."""
        return features

    @property
    def vector_width(self) -> int:
        """Of the projection, or of the backbone's features."""
        if self.retrieval_layer == "projection":
            return self.projection.out_features
        return self.backbone.features

    @property
    def local_evidence(self) -> str:
        """The contributions of pairs of places; summed over one image, its class activation map."""
        return "how much each pair of places adds to the similarity of the two images"

    def correspond(
        self, sketches: UInt8[Array, "b h w 3"], photos: UInt8[Array, "b h w 3"]
    ) -> Correspondence:
        """The cosine of the embeddings, decomposed over the cells of the local features.

        Pooling and projection are linear, so the cosine is exactly the mean over pairs of cells of
        the product of their embeddings, divided by the norms of both embeddings (Stylianou et
        al., "Visualizing deep similarity networks", WACV 2019). A root is divided among the cells
        in proportion to their features. `match` may exceed 1, and its mean is the similarity. The
        domain means, if there are any, are subtracted from every cell.
        """
        images = jnp.concatenate([sketches, photos])
        local = self.backbone.local_features(_normalise(images, self.backbone))
        places = self._retrieved(local.reshape(len(local), -1, local.shape[-1]))
        places = places / _norm(places.mean(axis=1))
        if self.means is not None:
            places = places - jnp.repeat(self.means[...], len(sketches), axis=0)[:, None]
            places = places / _norm(places.mean(axis=1))
        sketch, photo = jnp.split(places, 2)
        match = jnp.einsum("bsd,bpd->bsp", sketch, photo, precision="float32")
        return Correspondence(match.mean(axis=(1, 2)), match)


class Teacher(Encoder):
    """The pretrained network; its features are its softmax over ImageNet's classes."""

    def __init__(self, backbone: Backbone, image_size: int):
        """`backbone` has a classifier; it is shared, not copied."""
        self.backbone, self.image_size = backbone, image_size

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b n"]:
        """The predicted distribution over classes for each image."""
        del modality
        _, logits = self.backbone(_normalise(images, self.backbone))
        assert logits is not None
        return jax.nn.softmax(logits)

    def embedding(self, features: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """The features, L2-normalised."""
        return unit(features)


def copy_parameters(target: EfficientCNN, source: EfficientCNN) -> None:
    """Takes over all parameters, in place; without the classifier if the source has other classes.

    Raises:
      ValueError: a network of another size.
    """
    others = target.seen_classes != source.seen_classes
    base.copy_parameters(target, source, without=("classifier",) if others else ())


def class_knowledge(
    predictions: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"], classes: Sequence[str]
) -> Float[np.ndarray, "c k"]:
    """The mean prediction for the photos of each class, float32.

    Args:
      predictions: the teacher's distribution for each photo.
      labels: an index into `classes` for each photo.
      classes: names.

    Raises:
      ValueError: classes without photos, listed.
    """
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"The teacher has no photos of {len(empty)} of {len(classes)} seen classes: "
            f"{', '.join(empty)}. Add photos of them, or remove them from the split."
        )
    means = [
        predictions[labels == label].mean(axis=0, dtype=np.float64) for label in range(len(classes))
    ]
    return np.stack(means).astype(np.float32)


def _norm(vectors: Float[Array, "b d"]) -> Float[Array, "b 1 1"]:
    return jnp.maximum(jnp.linalg.norm(vectors, axis=1), 1e-12)[:, None, None]


def _normalise(images: Num[Array, "b h w 3"], backbone: Backbone) -> Float[Array, "b h w 3"]:
    return normalise(images, backbone.mean, backbone.std)


def check_groups(batch: Mapping[str, Any], seen_classes: int) -> None:
    """Raises ValueError unless a batch has groups of at least two classes, each in both domains."""
    sketches, photos = (batch[name].shape for name in ("sketches", "photos"))
    if len(sketches) != 5 or len(photos) != 5 or sketches[0] != photos[0]:
        raise ValueError(
            "sketches and photos must be [P, K, h, w, 3] with the same P classes, but have shapes "
            f"{sketches} and {photos}: sample them with 'class_group'."
        )
    if not sketches[1] or not photos[1]:
        missing = "sketches" if not sketches[1] else "photos"
        raise ValueError(
            f"The {sketches[0]} classes of this batch have no {missing}: every class needs images "
            "of both domains."
        )
    if sketches[0] < 2:
        raise ValueError(
            f"This batch has {sketches[0]} class: set config.train.batch_size to at least 2 "
            "classes."
        )
    labels = batch["sketch_labels"], batch["photo_labels"]
    if any(isinstance(x, jax.core.Tracer) for x in labels):
        return  # The values are unknown while jit traces; the sampler guarantees them.
    of_sketches, of_photos = (set(np.asarray(x).ravel().tolist()) for x in labels)
    if alone := of_sketches ^ of_photos:
        kinds = [f"{c} ({'sketches' if c in of_sketches else 'photos'})" for c in sorted(alone)]
        raise ValueError(
            f"Classes with images of only one domain in this batch: {', '.join(kinds)}. Every "
            "class needs sketches and photos: sample with 'class_group'."
        )
    if len(of_sketches) < 2:
        raise ValueError(
            f"All images of this batch are of class {min(of_sketches)}: at least two classes are "
            "needed for negatives."
        )
    if max(of_sketches) >= seen_classes or min(of_sketches) < 0:
        raise ValueError(
            f"A label of this batch is {max(of_sketches)}, but the network has seen_classes="
            f"{seen_classes}: set config.model.seen_classes to the number of classes of the split."
        )
