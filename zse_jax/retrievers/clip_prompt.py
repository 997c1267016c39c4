"""CLIP-AT: "CLIP for All Things Zero-Shot SBIR, Fine-Grained or Not" (Sain et al., CVPR 2023).

arXiv 2303.13440. CLIP, adapted by a few learned tokens (prompts) and its LayerNorms. One network
with two recipes of training: by categories, and by instances within them (fine-grained).

The published code has the category-level triplet alone. The classification term, all of the
fine-grained recipe (hard negatives, L_delta, patch shuffling), `encoders="separate"` and the
weights of the terms follow the paper's text and re-implementers' notes; they are our reading.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num, UInt8

from zse_jax.losses import (
    cosine_distance,
    cosine_triplet,
    relative_distance_divergence,
    shuffle_patches,
    text_classification,
    unit,
)
from zse_jax.models.clip import CLIP, LocalImage, VisionTower, tokenize
from zse_jax.retrievers import base
from zse_jax.retrievers.base import Correspondence, Explainable, Modality, Retriever

PIXELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # CLIP-AT's published code
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of the channels, of pixels in [0, 1]."""

CHOICES: Mapping[str, Sequence[str]] = {
    "recipe": ("category", "fine_grained"),
    "prompts": ("separate", "shared"),
    "encoders": ("shared", "separate"),
    "trainable": ("layer_norm", "published", "all"),
    "pixels": tuple(PIXELS),
}

# What the published code's freezing rule leaves trainable beside LayerNorms.
_PUBLISHED = {"class_token", "positions", "projection", "qkv"}

# Every order of 2 x 2 patches.
_ORDERS = tuple(itertools.permutations(range(4)))

Terms = dict[str, Array]


class ClassText(nnx.Variable):
    """Text features of the seen classes, L2-normalised: no parameter, but saved with them."""


class ClipPrompt(Retriever, Explainable):
    """CLIP with visual prompts; its features are the projected class tokens.

    Args:
      image_size, ..., position_std: sizes and initial values of CLIP; see `models.clip.CLIP`.
      text_tower: keep the text tower after the class texts are encoded, to rank by words too.
      recipe: "category" (sampler "triplet") or "fine_grained" (sampler "instance_group").
      prompts: one for each modality, or one for both (the paper's fine-grained model).
      prompt_length: tokens of a prompt; 0 is CLIP as it is.
      prompt_std: standard deviation of the prompts' initial values.
      encoders: one image tower for both modalities, or a copy for each.
      trainable: beside the prompts, "layer_norm" (the image towers' LayerNorms), "published" (also
        what the published code's rule leaves: query, key and value projections, class token,
        positions, output projection), or "all" of the image towers. The text tower and the scale
        of the cosines are frozen.
      pixels: whose statistics normalise them.
      class_names: the seen classes, in the order of the labels; None: only retrieval.
      template: of the class texts; {} stands for the class.
      triplet_margin: in cosine distance.
      classification_weight, delta_weight, shuffle_weight: of the terms beside the triplet; the
        last two are of the fine-grained recipe. 0 leaves a term out.
      hardest_negative: a sketch's negative is the nearest other photo of its group, not any.
      dtype: of activations; parameters are float32.

    Attributes:
      clip: the photos' image tower (also the sketches', if shared), the scale of the cosines, and
        the text tower where it is kept.
      sketch_visual: the sketches' image tower, or None where it is shared.
      photo_prompt, sketch_prompt: [prompt_length, width]; None without prompts, the latter also
        where it is shared.
      class_text: text features of the classes, [classes, embed_dim], or None without names.
    """

    batch_kind: ClassVar[str] = "triplet"
    parameter_groups: ClassVar[Sequence[str]] = ("prompt", "layer_norm", "encoder")

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        embed_dim: int = 512,
        context_length: int = 77,
        text_width: int = 512,
        text_depth: int = 12,
        text_heads: int = 8,
        position_std: float | None = None,
        text_tower: bool = False,
        recipe: Literal["category", "fine_grained"] = "category",
        prompts: Literal["separate", "shared"] = "separate",
        prompt_length: int = 3,
        prompt_std: float = 1.0,
        encoders: Literal["shared", "separate"] = "shared",
        trainable: Literal["layer_norm", "published", "all"] = "layer_norm",
        pixels: Literal["imagenet", "clip"] = "imagenet",
        class_names: Sequence[str] | None = None,
        template: str = "a photo of a {}",
        triplet_margin: float = 0.3,
        classification_weight: float = 0.5,
        delta_weight: float = 0.1,
        shuffle_weight: float = 1.0,
        hardest_negative: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Random weights; `pretrained.openai_clip.load` fills in CLIP's.

        Raises:
          ValueError: an unknown choice, sizes that do not fit, class names longer than the context.
        """
        chosen = (recipe, prompts, encoders, trainable, pixels)
        for (key, known), value in zip(CHOICES.items(), chosen, strict=True):
            if value not in known:
                raise ValueError(f"config.model.{key}={value!r}: choose one of {', '.join(known)}.")
        self._sizes: tuple[Any, ...] = (
            image_size, patch_size, width, depth, heads, embed_dim,
            context_length, text_width, text_depth, text_heads, position_std, dtype,
        )  # fmt: skip
        self.image_size, self.context_length = image_size, context_length
        self.recipe, self.trainable, self.pixels = recipe, trainable, pixels
        self.class_names, self.template = tuple(class_names or ()), template
        self.triplet_margin, self.hardest_negative = triplet_margin, hardest_negative
        self.classification_weight = classification_weight
        self.delta_weight, self.shuffle_weight = delta_weight, shuffle_weight

        def prompt() -> nnx.Param | None:
            values = prompt_std * jax.random.normal(rngs.params(), (prompt_length, width))
            return nnx.Param(values) if prompt_length else None

        self.clip = self.new_clip(rngs=rngs)
        separate = encoders == "separate"
        self.sketch_visual = nnx.clone(self.clip.visual) if separate else None
        self.photo_prompt = prompt()
        self.sketch_prompt = prompt() if prompts == "separate" else None
        named = bool(self.class_names)
        self.class_text = ClassText(self._class_features(self.clip)) if named else None
        if not text_tower:
            self.clip.text = None
        self.orders = rngs.dropout.fork() if recipe == "fine_grained" else None

    def new_clip(self, *, rngs: nnx.Rngs) -> CLIP:
        """A CLIP of this retriever's sizes, both towers, with random weights."""
        names = (
            "image_size", "patch_size", "width", "depth", "heads", "embed_dim",
            "context_length", "text_width", "text_depth", "text_heads", "position_std", "dtype",
        )  # fmt: skip
        return CLIP(**dict(zip(names, self._sizes, strict=True)), rngs=rngs)

    def adopt(self, clip: CLIP) -> None:
        """Takes over the weights of a complete CLIP, in place; prompts stay as they are.

        Both image towers start from its one, and the class texts are encoded anew.
        """
        for tower in (self.clip.visual, self.sketch_visual):
            if tower is not None:
                nnx.update(tower, jax.tree.map(jnp.copy, nnx.state(clip.visual)))
        if self.clip.text is not None:
            nnx.update(self.clip.text, jax.tree.map(jnp.copy, nnx.state(clip.text)))
        self.clip.logit_scale[...] = jnp.copy(clip.logit_scale[...])
        if self.class_text is not None:
            self.class_text[...] = self._class_features(clip)

    def _class_features(self, clip: CLIP) -> Float[Array, "c e"]:
        texts = tokenize(self._sentences(self.class_names), self.context_length)
        return unit(clip.encode_text(jnp.asarray(texts)))

    def _sentences(self, class_names: Sequence[str]) -> list[str]:
        return [self.template.format(name.replace("_", " ")) for name in class_names]

    def parameter_group(self, path: tuple[Any, ...]) -> str | None:
        """One of "prompt", "layer_norm", "encoder" (more of the image towers); None: frozen."""
        if path[0] in ("photo_prompt", "sketch_prompt"):
            return "prompt"
        if path[:2] in (("clip", "text"), ("clip", "logit_scale")):
            return None
        if any(str(name).startswith("norm") for name in path):
            return "layer_norm"
        published = self.trainable == "published" and not _PUBLISHED.isdisjoint(path)
        return "encoder" if published or self.trainable == "all" else None

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b e"]:
        """CLIP's embedding of each image, with its modality's prompt; not L2-normalised."""
        return self._encode(images, modality)

    def _encode(self, images: Num[Array, "b h w 3"], modality: Modality) -> Float[Array, "b e"]:
        tower, prompt = self._side(modality)
        return tower(self._normalise(images), prompt)

    def _side(self, modality: Modality) -> tuple[VisionTower, Array | None]:
        """The tower of a modality and its prompt."""
        sketch = modality == "sketch"
        own_tower, own_prompt = sketch and self.sketch_visual, sketch and self.sketch_prompt
        tower, prompt = own_tower or self.clip.visual, own_prompt or self.photo_prompt
        return tower, None if prompt is None else prompt[...]

    @property
    def local_evidence(self) -> str:
        """Patches in the joint space: CLIP-AT trains only the embedding of the whole image."""
        return (
            "similarity of patches in CLIP's joint space (they were never trained to match), and "
            "attention rollout"
        )

    def correspond(
        self, sketches: UInt8[Array, "b h w 3"], photos: UInt8[Array, "b h w 3"]
    ) -> Correspondence:
        """Cosines of the patch tokens in the space of the embeddings; importance by rollout.

        The similarity is the cosine of the embeddings, and no function of `match`.
        """

        def local(images: Array, modality: Modality) -> LocalImage:
            tower, prompt = self._side(modality)
            return tower.local(self._normalise(images), prompt)

        sketch, photo = local(sketches, "sketch"), local(photos, "photo")

        def cosine(places: str, left: Array, right: Array) -> Array:
            return jnp.einsum(places, unit(left), unit(right), precision="float32")

        return Correspondence(
            cosine("be,be->b", sketch.embedding, photo.embedding),
            cosine("bse,bpe->bsp", sketch.places, photo.places),
            sketch_importance=sketch.rollout,
            photo_importance=photo.rollout,
        )

    def encode_text(self, texts: Sequence[str]) -> Float[Array, "b e"]:
        """CLIP's embedding of each text as it stands, to rank photos by words.

        Raises:
          ValueError: a text is longer than the context, or the text tower was left out.
        """
        return self.clip.encode_text(jnp.asarray(tokenize(texts, self.context_length)))

    def encode_classes(self, names: Sequence[str]) -> Float[Array, "b e"]:
        """CLIP's embedding of "a photo of a [class]"; errors as `encode_text`."""
        return self.encode_text(self._sentences(names))

    def embedding(self, features: Float[Array, "b e"]) -> Float[Array, "b e"]:
        """The features, L2-normalised, in float32."""
        return unit(features)

    def _normalise(self, images: Num[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """uint8 pixels to the chosen mean and deviation; floats pass through."""
        if images.dtype != jnp.uint8:
            return images
        mean, deviation = (jnp.asarray(values) for values in PIXELS[self.pixels])
        return (images.astype(jnp.float32) / 255 - mean) / deviation

    def loss(self, batch: dict[str, Num[Array, "..."]]) -> tuple[Array, Terms]:
        """The chosen recipe's weighted sum of terms, and the terms before weighting.

        "category": triplet + 0.5 · (classification of sketch + of photo); batches of sampler
        "triplet", `sketches` [b, 1, h, w, 3] and `photos` [b, 2, h, w, 3], the matching one first.
        "fine_grained": triplet + 0.5 · classification + 0.1 · delta + 1.0 · shuffle; batches of
        sampler "instance_group", `sketches` and `photos` [b, k, h, w, 3], pair by pair. Pixels are
        uint8, or floats already normalised. `sketch_labels` [b, 1 or k] count `class_names`.

        Raises:
          ValueError: a batch of another sampler, or a classification without class names.
        """
        shape = batch["sketches"].shape[1], batch["photos"].shape[1]
        fine = self.recipe == "fine_grained"
        if (shape[0] != shape[1] or shape[0] < 2) if fine else shape != (1, 2):
            wanted = "instance_group" if fine else "triplet"
            raise ValueError(
                f"The recipe {self.recipe!r} trains on other samples than {shape[0]} sketches and "
                f"{shape[1]} photos: set config.train.sampler={wanted!r}."
            )
        terms = self._fine_grained(batch) if fine else self._category(batch)
        zero = jnp.zeros(())
        weights = {
            "triplet": 1.0,
            "classification": self.classification_weight,
            "delta": self.delta_weight,
            "shuffle": self.shuffle_weight,
        }
        return sum((weights[name] * terms[name] for name in weights if name in terms), zero), terms

    def _category(self, batch: dict[str, Array]) -> Terms:
        sketch = self._encode(batch["sketches"][:, 0], "sketch")
        photos = self._encode(_flat(batch["photos"]), "photo").reshape(
            *batch["photos"].shape[:2], -1
        )
        positive, negative = photos[:, 0], photos[:, 1]
        triplet = cosine_triplet(sketch, positive, negative, margin=self.triplet_margin)
        nearer = cosine_distance(sketch, positive) < cosine_distance(sketch, negative)
        return {
            "triplet": triplet,
            **self._classification(sketch, positive, batch["sketch_labels"][:, 0]),
            "triplet_accuracy": nearer.mean(),
        }

    def _fine_grained(self, batch: dict[str, Array]) -> Terms:
        b, k = batch["sketches"].shape[:2]
        sketches, photos = [_flat(batch["sketches"])], [_flat(batch["photos"])]
        if self.shuffle_weight:
            same, other = self._two_orders(b * k)
            sketches += [shuffle_patches(sketches[0], same)]
            photos += [shuffle_patches(photos[0], same), shuffle_patches(photos[0], other)]
        sketch, *sketch_shuffled = self._encode_all(sketches, "sketch")
        photo, *photo_shuffled = self._encode_all(photos, "photo")

        sketch_units, photo_units = (unit(x).reshape(b, k, -1) for x in (sketch, photo))
        cosine = jnp.einsum("bsd,bpd->bsp", sketch_units, photo_units, precision="float32")
        distance = 1 - cosine  # of every sketch to every photo of its group
        pair = jnp.arange(k)
        others = jnp.where(jnp.eye(k, dtype=bool), jnp.inf, distance)
        nearest = others.min(axis=2) if self.hardest_negative else others[:, pair, (pair + 1) % k]
        delta = distance[:, pair, pair] - nearest
        labels = batch["sketch_labels"]
        terms = {
            "triplet": jnp.maximum(delta + self.triplet_margin, 0).mean(),
            **self._classification(sketch, photo, labels.reshape(-1)),
            "triplet_accuracy": (delta < 0).mean(),
        }
        if self.delta_weight:
            terms["delta"] = relative_distance_divergence(delta, labels[:, 0])
        if self.shuffle_weight:
            terms["shuffle"] = cosine_triplet(
                *sketch_shuffled, *photo_shuffled, margin=self.triplet_margin
            )
        return terms

    def _encode_all(self, images: list[Array], modality: Modality) -> list[Array]:
        # Side by side and not one after the other: a batch split over devices stays split.
        features = self._encode(_flat(jnp.stack(images, axis=1)), modality)
        together = features.reshape(-1, len(images), features.shape[-1])
        return [together[:, i] for i in range(len(images))]

    def _classification(self, sketch: Array, photo: Array, labels: Array) -> Terms:
        if not self.classification_weight:
            return {}
        if self.class_text is None:
            raise ValueError(
                "The classification term needs the names of the seen classes: set "
                "config.model.class_names, or config.model.classification_weight to 0."
            )
        texts, scale = self.class_text[...], jnp.exp(self.clip.logit_scale[...])
        terms = [text_classification(x, texts, labels, scale=scale) for x in (sketch, photo)]
        return {"classification": terms[0] + terms[1]}

    def _two_orders(self, count: int) -> tuple[Int[Array, "n 4"], Int[Array, "n 4"]]:
        """Two different random orders of 2 x 2 patches for each of `count` pairs."""
        assert self.orders is not None
        first, second = jax.random.split(self.orders())
        table = jnp.asarray(_ORDERS)
        one = jax.random.randint(first, (count,), 0, len(table))
        other = (one + jax.random.randint(second, (count,), 1, len(table))) % len(table)
        return table[one], table[other]


def copy_parameters(target: ClipPrompt, source: ClipPrompt) -> None:
    """Takes over a complete CLIP (`text_tower`) and its prompts, or else all parameters, in place.

    Raises:
      ValueError: another size, or a source without text tower for other classes.
    """
    if source.clip.text is None:
        if source._sentences(source.class_names) != target._sentences(target.class_names):
            raise ValueError(
                "it has no text tower to encode other class names with: use CLIP's own weights."
            )
        base.copy_parameters(target, source)
        if target.class_text is not None and (given := source.class_text) is not None:
            target.class_text[...] = jnp.copy(given[...])
        return
    if source._sizes[:-2] != target._sizes[:-2]:
        raise ValueError("it is a CLIP of another size.")
    target.adopt(source.clip)
    prompts = (
        (target.photo_prompt, source.photo_prompt),
        (target.sketch_prompt, source.sketch_prompt),
    )
    for own, given in prompts:
        if own is not None and given is not None:
            own[...] = jnp.copy(given[...])


def _flat(images: Array) -> Array:
    """[b, k, h, w, 3] -> [b · k, h, w, 3]."""
    return images.reshape(-1, *images.shape[2:])
