"""ZSE: "Zero-Shot Everything Sketch-Based Image Retrieval, and in Explainable Style" (CVPR 2023).

Lin et al., arXiv 2303.14348. Self-attention with a learnable tokenizer encodes each image;
cross-attention relates the tokens of a sketch and a photo; a kernel-based relation network scores
how well their local tokens correspond. Defaults are the published network, B/16.

With a `backbone`, the tokens are projections of a pretrained CNN's map instead of patches: the
hybrid form of Vision Transformers (Dosovitskiy et al., ICLR 2021, section 3.1); our addition.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num, UInt8

from zse_jax.losses import euclidean_triplet, relation_mse, supervised_contrastive
from zse_jax.models import layers
from zse_jax.models.backbone import (
    Backbone,
    Divisible,
    check_frozen,
    create_backbone,
    frozen_output,
    is_frozen,
    statistics_move,
)
from zse_jax.models.cross_attention import CrossAttention, Projected, Value
from zse_jax.models.relation_network import (
    AnchorMap,
    Anchors,
    RelationNetwork,
    cosine_matrix,
    default_anchors,
)
from zse_jax.models.tokenizer import MapTokenizer, Tokenizer
from zse_jax.models.vit import Encoder, tokens_after_selection
from zse_jax.retrievers import base
from zse_jax.retrievers.base import Correspondence, Explainable, Modality, Retriever

# Bytes of photo tokens that are scored together on a CPU: 8 photos of B/16 in float32.
_CACHED_BYTES = 5 * 2**20


class PairOutput(NamedTuple):
    """The network's outputs for B pairs (sketch i, photo i).

    Attributes:
      sketch_tokens, photo_tokens: [b, n, d] after cross-attention, the retrieval token first.
      cosine: [b, a, a], sketch anchors by photo anchors, in [-1, 1].
      logit: [b], that both are of the same class.
      score: [b], its sigmoid, in (0, 1).
    """

    sketch_tokens: Float[Array, "b n d"]
    photo_tokens: Float[Array, "b n d"]
    cosine: Float[Array, "b a a"]
    logit: Float[Array, "b"]
    score: Float[Array, "b"]


class ZSE(Retriever, Explainable):
    """The ZSE network; its features are each image's tokens before cross-attention.

    Attributes:
      backbone: a CNN that ends with the map of stride `patch_size`; None: as published.
      pooled_tokens: whether `encode` averages 2 x 2 local tokens, see `with_pooled_tokens`.
      anchors_are_places: whether each anchor corresponds to one place of the image. It does not if
        tokens are merged with `anchor_map="published"` or after token selection.
    """

    batch_kind: ClassVar[str] = "quadruplet"
    rankings: ClassVar[Mapping[str, Literal["embedding", "score"]]] = {
        "token": "embedding",
        "relation": "score",
    }
    parameter_groups: ClassVar[Sequence[str]] = ("all", "backbone", "head")
    # Added later: these values leave the fingerprint of an older model as it was.
    frozen_blocks: int = 0
    contrastive_weight: float = 0.0
    temperature: float = 0.1
    pooled_tokens: bool = False

    def __init__(
        self,
        *,
        backbone: str | None = None,
        frozen_blocks: int = 0,
        frozen_statistics: bool = False,
        pyramid: bool = False,
        map_norm: layers.MapNorm = "place",
        image_size: int = 224,
        patch_size: int = 16,
        scale_channels: int = 64,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_width: int = 3072,
        cross_heads: int = 8,
        cross_mlp_width: int = 1024,
        cross_value: Value = "own",
        anchors: int | None = None,
        anchor_width: int = 512,
        anchor_map: AnchorMap = "published",
        keep_rate: float = 1.0,
        keep_blocks: Sequence[int] = (4, 7, 10),
        dropout: float = 0.1,
        position_std: float = 1.0,
        triplet_weight: float = 2.0,
        triplet_margin: float = 1.0,
        relation_weight: float = 4.0,
        contrastive_weight: float = 0.0,
        temperature: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; every default is the published value.

        Args:
          backbone: key of `models.backbone.BACKBONES` whose map of stride `patch_size` becomes the
            local tokens; None: the published tokenizer.
          frozen_blocks: first blocks of the backbone that do not train, with the stem; 0: none.
          frozen_statistics: keep the batch statistics that come with the backbone's weights.
          pyramid: add the backbone's last map, enlarged, to the map that becomes the local tokens,
            and the mean of these to every token; ours.
          map_norm: how the backbone's maps are normalised; see `layers.normalise_map`.
          image_size, patch_size: pixels.
          scale_channels: of the scale embedding's first convolution; each later one has twice as
            many.
          keep_rate: share of local tokens kept in each of `keep_blocks` (counted from 1); 0.9 is
            the paper's token selection, 1 the published code.
          cross_value: "own" as published, or "other"; see `models.cross_attention`.
          anchors: all local tokens or a quarter of them; None: `default_anchors`, 49 of 196.
          anchor_map: "published" or "spatial"; see `models.relation_network.Anchors`.
          position_std: initial standard deviation of the positions and the retrieval token.
          contrastive_weight, temperature: of `losses.supervised_contrastive` between the retrieval
            tokens before cross-attention, by which `token` ranks; ours, not published.
          dtype: of activations; parameters are float32.

        Raises:
          ValueError: sizes that are not compatible, or settings that the backbone does not have.
        """
        dtype = jnp.dtype(dtype)
        if map_norm not in get_args(layers.MapNorm):
            raise ValueError(
                f"config.model.map_norm={map_norm!r}: choose one of "
                f"{', '.join(get_args(layers.MapNorm))}."
            )
        if patch_size < 1 or (backbone is None and image_size % patch_size):
            raise ValueError(
                f"image_size={image_size} is not a multiple of patch_size={patch_size}: change one."
            )
        keep_rates = dict.fromkeys(keep_blocks, keep_rate) if keep_rate != 1 else {}
        self.image_size = image_size
        self.triplet_weight = triplet_weight
        self.triplet_margin = triplet_margin
        self.relation_weight = relation_weight
        self.contrastive_weight, self.temperature = contrastive_weight, temperature
        self.frozen_blocks = frozen_blocks
        common: dict[str, Any] = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
        self.backbone: Backbone | None
        self.tokenizer: Tokenizer | MapTokenizer
        if backbone is None:
            self.backbone = None
            if frozen_blocks:
                raise ValueError(
                    f"config.model.frozen_blocks={frozen_blocks} needs config.model.backbone: the "
                    "published network has none. Set frozen_blocks to 0."
                )
            self.tokenizer = Tokenizer(
                image_size, patch_size, width, scale_channels, position_std=position_std, **common
            )
        else:
            self.backbone = create_backbone(
                backbone,
                {"frozen_statistics": frozen_statistics},
                stride=patch_size,
                pyramid=pyramid,
                map_norm=map_norm,
                dtype=dtype,
                rngs=rngs,
            )
            check_frozen(self.backbone, backbone, frozen_blocks, frozen_statistics)
            grid, channels = -(-image_size // patch_size), self.backbone.features
            self.tokenizer = MapTokenizer(
                grid,
                channels,
                width,
                pooled=pyramid,
                map_norm=map_norm,
                position_std=position_std,
                **common,
            )
        self.encoder = Encoder(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            keep_rates=keep_rates,
            **common,
        )
        self.cross_attention = CrossAttention(
            width, cross_heads, cross_mlp_width, value=cross_value, **common
        )
        if self.backbone is not None:
            # Attention and MLPs change nothing at first, so that training starts from what the CNN
            # knows (zero-initialised residuals: Goyal et al., arXiv 1706.02677, section 5.1).
            for block in self.encoder.blocks:
                layers.start_at_zero(block.attention.out, block.mlp_out)
            self.cross_attention.start_at_zero()
        local_tokens = tokens_after_selection(self.tokenizer.grid**2, keep_rates)
        anchors = default_anchors(local_tokens) if anchors is None else anchors
        self.anchors = Anchors(
            local_tokens,
            width,
            anchors,
            anchor_width,
            anchor_map=anchor_map,
            dtype=dtype,
            rngs=rngs,
        )
        self.relation_network = RelationNetwork(anchors, **common)
        merged = self.anchors.merge is not None
        self.anchors_are_places = not merged or (anchor_map == "spatial" and not keep_rates)

    def tokens(self, images: Num[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Tokens of images; token 0 is the retrieval token.

        Args:
          images: uint8 pixels; floats normalised to mean 0.5 and std 0.5, or to the backbone's
            `mean` and `std`; or the output of `frozen_layers`.
        """
        return self.encoder(self._tokenized(images)).tokens

    def _tokenized(self, images: Num[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Tokens before self-attention: of images, or of the output of `frozen_layers`."""
        if self.backbone is None:
            return self.tokenizer(normalise(images))
        if not self.frozen_blocks:
            images = layers.normalise(images, self.backbone.mean, self.backbone.std)
            return self.tokenizer(self.backbone.local_features(images))
        assert isinstance(self.backbone, Divisible)  # checked in __init__
        maps = frozen_output(self.backbone, images, self.frozen_blocks)
        return self.tokenizer(self.backbone.upper_local(maps, self.frozen_blocks))

    @property
    def frozen_layers(self) -> tuple[Backbone, int] | None:
        """The backbone and its frozen blocks; None if there are none."""
        return (self.backbone, self.frozen_blocks) if self.backbone and self.frozen_blocks else None

    def parameter_group(self, path: tuple[Any, ...]) -> str | None:
        """The optimizer group.

        "all" without a backbone. With one, "backbone" for the parts that encode one image, "head"
        for cross-attention and relation network, and None for frozen blocks.
        """
        if self.backbone is None:
            return "all"
        if path[0] in ("tokenizer", "encoder"):
            return "backbone"
        if path[0] != "backbone":
            return "head"
        return None if is_frozen(self.backbone, path[1:], self.frozen_blocks) else "backbone"

    def start_from(self, source: base.Encoder) -> None:
        """With a pyramid, tokens start at what the classifier of `source` reads from the map."""
        tokenizer = self.tokenizer
        classifier = getattr(getattr(source, "backbone", None), "head", None)
        if isinstance(tokenizer, MapTokenizer) and tokenizer.pooled and classifier is not None:
            tokenizer.start_from(classifier.kernel[...])

    def start_from_training(self, mean: base.MeanOf) -> None:
        """With a backbone, the relation starts at the mean cosine of centred anchors.

        The tokens' mean of each modality is subtracted, as `Encoder.means` does for embeddings.
        A network whose cross-attention is already trained stays as it is.
        """
        if self.backbone is None or self.cross_attention.trained:
            return
        self.cross_attention.start_centred(*mean(lambda tokens: tokens[:, 1:].mean(axis=1)))
        self.anchors.start_at_mean()
        self.relation_network.start_at_mean()

    @property
    def across_samples(self) -> tuple[str, ...]:
        """The contrastive loss, and a backbone's batch normalisation unless it is frozen."""
        moving = self.backbone is not None and statistics_move(self.backbone)
        contrastive = ("contrastive",) if self.contrastive_weight else ()
        return contrastive + ("batch statistics",) * moving

    def pairs(
        self, sketch_tokens: Float[Array, "b n d"], photo_tokens: Float[Array, "b n d"]
    ) -> PairOutput:
        """The outputs for the pairs (sketch i, photo i)."""
        sketch_tokens, photo_tokens = self.cross_attention(sketch_tokens, photo_tokens)
        cosine, logit = self._relate(sketch_tokens[:, 1:], photo_tokens[:, 1:])
        return PairOutput(sketch_tokens, photo_tokens, cosine, logit, jax.nn.sigmoid(logit))

    def _relate(self, sketch: Array, photo: Array) -> tuple[Array, Array]:
        """Cosine matrices and logits of local tokens [b, t, d]."""
        cosine = cosine_matrix(self.anchors(sketch), self.anchors(photo))
        return cosine, self.relation_network(cosine)

    def loss(self, batch: dict[str, Num[Array, "..."]]) -> tuple[Array, dict[str, Array]]:
        """2 · triplet + 4 · relation on quadruplets (paper section 3.4; weights as published).

        Args:
          batch: `sketches` and `photos` [b, 2, h, w, 3]; on axis 1 a pair of the same class, then a
            pair of different classes. uint8 pixels, normalised floats, or the output of
            `frozen_layers` for them. With `contrastive_weight`, also `sketch_labels` and
            `photo_labels` [b, 2].

        Returns:
          The loss, and its terms before weighting: `triplet` on the retrieval tokens after
          cross-attention (anchor and positive from the matching pairs, negative from the other
          pairs' photos), `relation`, `relation_accuracy` at a score of 0.5, and `contrastive` if
          it has a weight, which is added.
        """
        count = batch["sketches"].shape[0]

        # Samples stay on the leading axis, so that a batch that is sharded over devices stays
        # sharded. The first of the two pairs of a sample is the matching one.
        images = jnp.concatenate([batch["sketches"], batch["photos"]], axis=1)
        tokens = self.tokens(images.reshape(4 * count, *images.shape[2:]))
        tokens = tokens.reshape(count, 4, *tokens.shape[1:])
        sketch_tokens, photo_tokens = (
            part.reshape(2 * count, *part.shape[2:]) for part in jnp.split(tokens, 2, axis=1)
        )
        out = self.pairs(sketch_tokens, photo_tokens)
        triplet = euclidean_triplet(
            out.sketch_tokens[0::2, 0],
            out.photo_tokens[0::2, 0],
            out.photo_tokens[1::2, 0],
            margin=self.triplet_margin,
        )
        target = (jnp.arange(2 * count) % 2 == 0).astype(jnp.float32)
        relation = relation_mse(out.score, target)
        loss = self.triplet_weight * triplet + self.relation_weight * relation
        accuracy = ((out.score > 0.5) == (target > 0.5)).mean()
        terms = {"triplet": triplet, "relation": relation, "relation_accuracy": accuracy}
        if self.contrastive_weight:
            terms["contrastive"] = supervised_contrastive(
                sketch_tokens[:, 0],
                photo_tokens[:, 0],
                batch["sketch_labels"].ravel(),
                batch["photo_labels"].ravel(),
                temperature=self.temperature,
            )
            loss += self.contrastive_weight * terms["contrastive"]
        return loss, terms

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b n d"]:
        """The tokens of each image, or with `pooled_tokens` the retrieval token and means of 2 x 2.

        One encoder serves both modalities.
        """
        del modality
        tokens = self.tokens(images)
        if not self.pooled_tokens:
            return tokens
        b, _, d = tokens.shape
        half = self.tokenizer.grid // 2
        means = tokens[:, 1:].reshape(b, half, 2, half, 2, d).mean(axis=(2, 4))
        return jnp.concatenate([tokens[:, :1], means.reshape(b, half * half, d)], axis=1)

    def with_pooled_tokens(self) -> "ZSE":
        """This network with features that have means of 2 x 2 tokens in place of the tokens.

        Cross-attention and relation network then have a quarter of the tokens to compare. Anchors
        merge 2 x 2 tokens anyway; what is lost is the attention of each of the four, and what
        differs between them. Inexact; ours. Embeddings and explanations do not change.

        Raises:
          ValueError: anchors do not merge 2 x 2 places.
        """
        if not (self.anchors_are_places and self.anchors.pools):
            raise ValueError(
                "config.evaluation.pooled_tokens needs anchors that each merge 2 x 2 places "
                '(config.model.anchor_map="spatial", no token selection), which this checkpoint '
                "does not have. Leave it out."
            )
        copy = nnx.merge(*nnx.split(self))
        copy.pooled_tokens = True
        return copy

    def embedding(self, features: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """The retrieval tokens before cross-attention, L2-normalised (the papers' "Ret")."""
        token = features[:, 0].astype(jnp.float32)
        return token / jnp.maximum(jnp.linalg.norm(token, axis=-1, keepdims=True), 1e-12)

    def score(
        self, sketches: Float[Array, "q n d"], photos: Float[Array, "g n d"]
    ) -> Float[Array, "q g"]:
        """Relation score of every sketch with every photo (the papers' "RN"), in (0, 1).

        Projections are computed once per image, and each sketch is scored with one group of photos
        at a time, so that memory is bounded by a group and the projections of all images. Only
        local tokens are computed after cross-attention: no score depends on the retrieval token.
        """
        count = len(photos)
        groups = -(-count // _photos_at_once(photos.size // count * photos.dtype.itemsize))
        size = -(-count // groups)
        padded = jnp.pad(photos, ((0, groups * size - count), (0, 0), (0, 0)), mode="edge")
        sketch = _local(self.cross_attention.project_sketches(sketches))

        def group_scores(group: Array) -> Array:
            photo = _local(self.cross_attention.project_photos(group))
            meet = self.cross_attention.meeting(photo)
            return jax.lax.map(lambda one: jax.nn.sigmoid(self._relate(*meet(one))[1]), sketch)

        scores = jax.lax.map(group_scores, padded.reshape(groups, size, *photos.shape[1:]))
        return scores.swapaxes(0, 1).reshape(len(sketches), -1)[:, :count]

    def score_pairs(
        self, sketches: Float[Array, "b n d"], photos: Float[Array, "b n d"]
    ) -> Float[Array, "b"]:
        """Relation score of sketch i with photo i, in (0, 1): the diagonal of `score`."""
        return self.pairs(sketches, photos).score

    @property
    def local_evidence(self) -> str:
        """Anchors if they are places, otherwise the tokens from which they are made."""
        if self.anchors_are_places:
            return "cosine of the relation network's anchors, and cross-attention"
        return (
            "cosine of the tokens after cross-attention (each anchor of this network mixes the "
            "whole image, so that its relation score has no places), and cross-attention"
        )

    def correspond(
        self, sketches: UInt8[Array, "b h w 3"], photos: UInt8[Array, "b h w 3"]
    ) -> Correspondence:
        """The relation network's input, the cross-attention, and the retrieval token's attention.

        `match` is the cosine of the anchors if they are places. Otherwise it is the cosine of the
        local tokens after cross-attention; the relation score (`similarity`) is not a function of
        these, and `similarity_of` is their mean.
        """
        encoded = self.encoder(self._tokenized(jnp.concatenate([sketches, photos])))
        sketch, photo = jnp.split(encoded.tokens, 2)
        tokens, attention = self.cross_attention.traced(
            self.cross_attention.project_sketches(sketch),
            self.cross_attention.project_photos(photo),
        )
        sketch, photo = (x[:, 1:] for x in tokens)
        cosine, logit = self._relate(sketch, photo)
        result = Correspondence(
            logit,
            cosine if self.anchors_are_places else cosine_matrix(sketch, photo),
            *(weights[:, :, 1:, 1:].mean(axis=1) for weights in attention),
            *jnp.split(_shares(encoded.importance), 2),
        )
        cells = self.tokenizer.grid**2
        if sketch.shape[1] == cells:
            return result
        return _on_whole_grid(result, cells, *jnp.split(encoded.kept, 2))

    def similarity_of(self, match: Float[Array, "b s p"]) -> Float[Array, "b"]:
        """The relation logit of the anchors' cosines; the mean if anchors are not places."""
        if self.anchors_are_places:
            return self.relation_network(match)
        return super().similarity_of(match)


def _shares(importance: Array | None) -> Array:
    assert importance is not None  # the encoder has blocks
    return importance / importance.sum(axis=1, keepdims=True)


def _on_whole_grid(
    result: Correspondence, cells: int, sketch: Array, photo: Array
) -> Correspondence:
    """Attention and importance of the remaining tokens, 0 for those that were dropped."""

    def spread(values: Array | None, places: Array) -> Array:
        assert values is not None
        whole = jnp.zeros((cells, *values.shape[2:]), values.dtype)
        return jax.vmap(lambda v, p: whole.at[p].set(v))(values, places)

    def spread_both(values: Array | None, rows: Array, columns: Array) -> Array:
        return spread(spread(values, rows).swapaxes(1, 2), columns).swapaxes(1, 2)

    return result._replace(
        sketch_attention=spread_both(result.sketch_attention, sketch, photo),
        photo_attention=spread_both(result.photo_attention, photo, sketch),
        sketch_importance=spread(result.sketch_importance, sketch),
        photo_importance=spread(result.photo_importance, photo),
        sketch_places=sketch,
        photo_places=photo,
    )


def _photos_at_once(photo_bytes: int) -> int:
    """The number of photos that are scored together, for a CPU's caches or a GPU's cores.

    Args:
      photo_bytes: size of the tokens of one photo: 605 kB in B/16 and float32.
    """
    if jax.default_backend() == "cpu":
        return max(1, min(64, _CACHED_BYTES // photo_bytes))
    return 256


def _local(projected: Projected) -> Projected:
    """Without the query of the retrieval token, which remains a key and value for the others."""
    return projected._replace(tokens=projected.tokens[:, 1:], query=projected.query[:, :, 1:])


def normalise(images: Num[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """uint8 pixels to mean 0.5 and std 0.5 per channel, in [-1, 1]; floats pass through."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images
