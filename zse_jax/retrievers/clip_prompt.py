"""CLIP-AT: "CLIP for All Things Zero-Shot SBIR, Fine-Grained or Not" (Sain et al., CVPR 2023).

arXiv 2303.13440. CLIP is adapted by a few learned tokens (prompts) and its LayerNorms. There are
two training recipes: category-level, and instance-level within categories (fine-grained).

The published code contains only the category-level triplet. The classification term, the fine-
grained recipe (hard negatives, L_delta, patch shuffling), `encoders="separate_norms"` and the
weights of the terms follow the text of the paper (sections 4 to 6). `docs/systems.md` lists what it
leaves open, and what we chose.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num, UInt8

from zse_jax.losses import (
    cosine_distance,
    cosine_triplet,
    relative_distance_divergence,
    shuffle_patches,
    text_classification,
    unit,
)
from zse_jax.models.clip import (
    CLIP,
    CLIPSizes,
    LocalImage,
    VisionTower,
    tokenize,
    with_own_norms,
)
from zse_jax.models.layers import IMAGENET_MEAN, IMAGENET_STD, normalise
from zse_jax.retrievers import base
from zse_jax.retrievers.base import Correspondence, Explainable, Modality, Retriever

PIXELS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),  # CLIP-AT's published code
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by channel, for pixels in [0, 1]."""

CHOICES: Mapping[str, Sequence[str]] = {
    "recipe": ("category", "fine_grained"),
    "prompts": ("separate", "shared"),
    "encoders": ("separate_norms", "shared", "separate"),
    "trainable": ("layer_norm", "prompts", "published", "all"),
    "pixels": tuple(PIXELS),
}

# What the freezing rule of the published code leaves trainable in addition to LayerNorms.
_PUBLISHED = {"class_token", "positions", "projection", "qkv"}

# All orders of 2 x 2 patches.
_ORDERS = tuple(itertools.permutations(range(4)))

Terms = dict[str, Array]


class ClassText(nnx.Variable):
    """L2-normalised text features of the seen classes; saved with the parameters, not trained."""


class ClipPrompt(Retriever, Explainable):
    """CLIP with visual prompts; its features are the projected class tokens.

    Args:
      image_size, ..., activation: see `models.clip.CLIPSizes`.
      text_tower: keep the text tower after the class texts are encoded, to rank by words too.
      recipe: "category" (sampler "triplet") or "fine_grained" (sampler "instance_group").
      prompts: one for each modality (section 4), or one for both (section 5: fine-grained).
      prompt_length: tokens of a prompt; 0 is CLIP without prompts.
      prompt_depth: blocks that get a prompt; 1: the first (the paper's model); 9 in its baseline of
        deep prompts, in which we read that each block has its own and drops the one before it.
      prompt_std: standard deviation of the prompts' initial values.
      encoders: one image tower whose LayerNorms each modality has for itself ("separate_norms":
        section 4, category level), one for both modalities ("shared": section 5, fine-grained, and
        the published code), or a whole copy for each ("separate").
      trainable: in addition to the prompts, "layer_norm" (the image towers' LayerNorms: the
        paper), nothing ("prompts"), "published" (also what the rule of the published code leaves
        trainable: query, key and value projections, class token, positions, output projection), or
        "all" of the image towers. The text tower and the scale of the cosines are frozen.
      pixels: statistics that normalise the images, a key of `PIXELS`.
      class_names: the seen classes, in the order of the labels; None: only retrieval.
      template: of the class texts; {} is replaced by the class name.
      triplet_margin: in cosine distance.
      classification_weight, delta_weight, shuffle_weight: of the terms added to the triplet; the
        last two belong to the fine-grained recipe. A term of weight 0 is not computed.
      hardest_negative: use the nearest other photo of its group as a sketch's negative, instead of
        the next one.
      dtype: of activations; parameters are float32.

    Attributes:
      clip: the image tower of photos (and of sketches, if shared), the scale of the cosines, and
        the text tower if it is kept.
      sketch_visual: the image tower of sketches, or None if it is shared; with "separate_norms" it
        shares its parameters, except for those of the LayerNorms, with that of photos.
      photo_prompt, sketch_prompt: [prompt_length, width], or [prompt_depth, prompt_length, width]
        if more than one block gets a prompt; None without prompts. The latter is None if the prompt
        is shared.
      class_text: text features of the classes, [classes, embed_dim], or None without names.
    """

    # `preprocessing` is "pad" in every config of CLIP-AT. The class keeps "crop" for checkpoints of
    # earlier versions, whose configs do not name it.
    batch_kind: ClassVar[str] = "triplet"
    parameter_groups: ClassVar[Sequence[str]] = ("prompt", "layer_norm", "encoder")

    def __init__(
        self,
        *,
        image_size: int = CLIPSizes.image_size,
        patch_size: int = CLIPSizes.patch_size,
        width: int = CLIPSizes.width,
        depth: int = CLIPSizes.depth,
        heads: int = CLIPSizes.heads,
        embed_dim: int = CLIPSizes.embed_dim,
        context_length: int = CLIPSizes.context_length,
        text_width: int = CLIPSizes.text_width,
        text_depth: int = CLIPSizes.text_depth,
        text_heads: int = CLIPSizes.text_heads,
        position_std: float | None = CLIPSizes.position_std,
        mlp_width: int | None = CLIPSizes.mlp_width,
        activation: str | None = CLIPSizes.activation,
        text_tower: bool = False,
        recipe: Literal["category", "fine_grained"] = "category",
        prompts: Literal["separate", "shared"] = "separate",
        prompt_length: int = 3,
        prompt_depth: int = 1,
        prompt_std: float = 1.0,
        encoders: Literal["separate_norms", "shared", "separate"] = "separate_norms",
        trainable: Literal["layer_norm", "prompts", "published", "all"] = "layer_norm",
        pixels: Literal["imagenet", "clip"] = "imagenet",
        class_names: Sequence[str] | None = None,
        template: str = "a photo of a {}",
        triplet_margin: float = 0.3,
        classification_weight: float = 0.5,
        delta_weight: float = 0.1,
        shuffle_weight: float = 1.0,
        hardest_negative: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Random weights; `pretrained.openai_clip.load` loads CLIP's.

        Raises:
          ValueError: an unknown choice, sizes that do not fit, class names longer than the context.
        """
        chosen = (recipe, prompts, encoders, trainable, pixels)
        for (key, known), value in zip(CHOICES.items(), chosen, strict=True):
            if value not in known:
                raise ValueError(f"config.model.{key}={value!r}: choose one of {', '.join(known)}.")
        sizes = CLIPSizes(
            image_size, patch_size, width, depth, heads, embed_dim,
            context_length, text_width, text_depth, text_heads, position_std,
            mlp_width, activation,
        )  # fmt: skip
        self.image_size = image_size
        self.recipe, self.trainable, self.pixels = recipe, trainable, pixels
        self.class_names, self.template = tuple(class_names or ()), template
        self.triplet_margin, self.hardest_negative = triplet_margin, hardest_negative
        self.classification_weight = classification_weight
        self.delta_weight, self.shuffle_weight = delta_weight, shuffle_weight

        if not 1 <= prompt_depth <= depth:
            raise ValueError(
                f"config.model.prompt_depth={prompt_depth} must be from 1 to the {depth} blocks of "
                "config.model.depth."
            )
        shape = (
            (prompt_length, width) if prompt_depth == 1 else (prompt_depth, prompt_length, width)
        )

        def prompt() -> nnx.Param | None:
            values = prompt_std * jax.random.normal(rngs.params(), shape)
            return nnx.Param(values) if prompt_length else None

        self.clip = CLIP(sizes, dtype=dtype, rngs=rngs)
        copies = {"separate_norms": with_own_norms, "shared": lambda _: None, "separate": nnx.clone}
        self.sketch_visual: VisionTower | None = copies[encoders](self.clip.visual)
        self.photo_prompt = prompt()
        self.sketch_prompt = prompt() if prompts == "separate" else None
        named = bool(self.class_names)
        self.class_text = ClassText(self._class_features(self.clip)) if named else None
        if not text_tower:
            self.clip.text = None
        self.orders = rngs.dropout.fork() if recipe == "fine_grained" else None

    @property
    def encoders(self) -> str:
        """Which parameters sketches and photos share, as in the constructor."""
        if self.sketch_visual is None:
            return "shared"
        shared = self.sketch_visual.projection is self.clip.visual.projection
        return "separate_norms" if shared else "separate"

    def adopt(self, clip: CLIP) -> None:
        """Copies the weights of a CLIP with text tower, in place; prompts are not changed.

        Both image towers get the weights of its image tower, and the class texts are encoded again.
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
        texts = tokenize(self._sentences(self.class_names), clip.sizes.context_length)
        return unit(clip.encode_text(jnp.asarray(texts)))

    def _sentences(self, class_names: Sequence[str]) -> list[str]:
        return [self.template.format(name.replace("_", " ")) for name in class_names]

    def parameter_group(self, path: tuple[Any, ...]) -> str | None:
        """One of "prompt", "layer_norm", "encoder" (other image tower parameters); None: frozen."""
        if path[0] in ("photo_prompt", "sketch_prompt"):
            return "prompt"
        if path[:2] in (("clip", "text"), ("clip", "logit_scale")):
            return None
        if any(str(name).startswith("norm") for name in path):
            return None if self.trainable == "prompts" else "layer_norm"
        published = self.trainable == "published" and not _PUBLISHED.isdisjoint(path)
        return "encoder" if published or self.trainable == "all" else None

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b e"]:
        """CLIP's embedding of each image with its modality's prompt; not L2-normalised."""
        return self._encode(images, modality)

    def _encode(self, images: Num[Array, "b h w 3"], modality: Modality) -> Float[Array, "b e"]:
        tower, prompt = self._side(modality)
        return tower(self._normalise(images), prompt)

    def _side(self, modality: Modality) -> tuple[VisionTower, Array | None]:
        """The image tower and the prompt of a modality."""
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
        """Cosines of the patch tokens in the joint space; importance by attention rollout.

        The similarity is the cosine of the embeddings; it is not a function of `match`.
        """

        def local(images: Array, modality: Modality) -> LocalImage:
            tower, prompt = self._side(modality)
            return tower.local(self._normalise(images), prompt)

        sketch, photo = local(sketches, "sketch"), local(photos, "photo")

        def cosine(places: str, left: Array, right: Array) -> Array:
            return jnp.einsum(places, unit(left), unit(right), precision="float32")

        return Correspondence(
            cosine(
                "be,be->b",
                self.embed(sketch.embedding, "sketch"),
                self.embed(photo.embedding, "photo"),
            ),
            cosine("bse,bpe->bsp", sketch.places, photo.places),
            sketch_importance=sketch.rollout,
            photo_importance=photo.rollout,
        )

    def encode_text(self, texts: Sequence[str]) -> Float[Array, "b e"]:
        """CLIP's embedding of each text, without the template, to rank photos by words.

        Raises:
          ValueError: a text is longer than the context, or there is no text tower.
        """
        token_ids = tokenize(texts, self.clip.sizes.context_length)
        return self.clip.encode_text(jnp.asarray(token_ids))

    def encode_classes(self, names: Sequence[str]) -> Float[Array, "b e"]:
        """CLIP's embedding of each class name in the template; raises like `encode_text`."""
        return self.encode_text(self._sentences(names))

    def embedding(self, features: Float[Array, "b e"]) -> Float[Array, "b e"]:
        """The features, L2-normalised, in float32."""
        return unit(features)

    def _normalise(self, images: Num[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return normalise(images, *PIXELS[self.pixels])

    def loss(self, batch: dict[str, Num[Array, "..."]]) -> tuple[Array, Terms]:
        """The weighted sum of the recipe's terms, and the terms before weighting.

        "category": triplet + 0.5 · (classification of sketch + of photo), on batches of the sampler
        "triplet": `sketches` [b, 1, h, w, 3] and `photos` [b, 2, h, w, 3], the matching photo
        first. "fine_grained": triplet + 0.5 · classification + 0.1 · delta + 1.0 · shuffle, on
        batches of the sampler "instance_group": `sketches` and `photos` [b, k, h, w, 3], sketch i
        matching photo i. Pixels are uint8 or normalised floats. `sketch_labels` [b, 1 or k] index
        `class_names`.

        Raises:
          ValueError: a batch of another sampler, or a classification term without class names.
        """
        shape = batch["sketches"].shape[1], batch["photos"].shape[1]
        fine = self.recipe == "fine_grained"
        if (shape[0] != shape[1] or shape[0] < 2) if fine else shape != (1, 2):
            wanted = "instance_group" if fine else "triplet"
            raise ValueError(
                f"The recipe {self.recipe!r} cannot train on samples of {shape[0]} sketches and "
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

    @property
    def across_samples(self) -> tuple[str, ...]:
        """L_delta compares the classes of a batch."""
        return ("delta",) if self.recipe == "fine_grained" and self.delta_weight else ()

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
        # Stacked along axis 1, not concatenated along axis 0: a sharded batch stays sharded.
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
        """Two different random patch orders for each of `count` pairs."""
        assert self.orders is not None
        first, second = jax.random.split(self.orders())
        table = jnp.asarray(_ORDERS)
        one = jax.random.randint(first, (count,), 0, len(table))
        other = (one + jax.random.randint(second, (count,), 1, len(table))) % len(table)
        return table[one], table[other]


def copy_parameters(target: ClipPrompt, source: ClipPrompt) -> None:
    """Takes over a complete CLIP (`text_tower`) and its prompts, or else all parameters, in place.

    Raises:
      ValueError: another size or activation, a source without text tower for other classes, or a
        source whose sketches have an encoder that the target does not have.
    """
    own, given = (x.clip.sizes.activation or "quick_gelu" for x in (target, source))
    if own != given:
        raise ValueError(
            f"it is a CLIP of another kind: it needs --config.model.activation={given}."
        )
    if source.clip.text is None:
        if source._sentences(source.class_names) != target._sentences(target.class_names):
            raise ValueError(
                "it has no text tower to encode other class names with: use CLIP's own weights."
            )
        base.copy_parameters(target, source)
        if target.class_text is not None and (texts := source.class_text) is not None:
            target.class_text[...] = jnp.copy(texts[...])
        return
    if source.clip.sizes != target.clip.sizes:
        raise ValueError("it is a CLIP of another size.")
    if source.encoders not in ("shared", target.encoders):
        raise ValueError(
            "it encodes sketches with weights of their own: it needs "
            f"--config.model.encoders={source.encoders}."
        )
    target.adopt(source.clip)
    if target.sketch_visual is not None and source.sketch_visual is not None:
        nnx.update(target.sketch_visual, jax.tree.map(jnp.copy, nnx.state(source.sketch_visual)))
    prompts = (
        (target.photo_prompt, source.photo_prompt),
        (target.sketch_prompt, source.sketch_prompt),
    )
    for prompt, other in prompts:
        if prompt is not None and other is not None:
            prompt[...] = jnp.copy(other[...])


def _flat(images: Array) -> Array:
    """[b, k, h, w, 3] -> [b · k, h, w, 3]."""
    return images.reshape(-1, *images.shape[2:])
