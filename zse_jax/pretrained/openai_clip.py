"""CLIP's published weights, with OpenAI's names or Hugging Face's (`openai/clip-vit-*`).

    retriever = zse_jax.retrievers.create({"system": "clip_prompt"}, rngs=nnx.Rngs(0))
    openai_clip.load(retriever, files.read("model.safetensors"))

`zse_jax.pretrained.files` reads Hugging Face's `model.safetensors` and OpenAI's TorchScript archives
(`ViT-B-32.pt`).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from zse_jax.models.clip import CLIP
from zse_jax.pretrained.mapping import Path, Source, fill, linear, norm, patch_matrix, transpose
from zse_jax.retrievers.clip_prompt import ClipPrompt

# Scalars in OpenAI's archives and counters in Hugging Face's files that are not weights.
_KNOWN = re.compile(
    r"input_resolution|context_length|vocab_size|(text|vision)_model\.embeddings\.position_ids"
)


def load(model: CLIP | ClipPrompt, arrays: Mapping[str, np.ndarray] | Any) -> None:
    """Fills `model` in place; a retriever's towers all start from the same published weights.

    Args:
      model: a CLIP of the same size, or a retriever, which keeps its prompts and encodes its class
        names again.
      arrays: the names of OpenAI's state dict, such as `visual.conv1.weight`, or Hugging Face's,
        such as `vision_model.embeddings.patch_embedding.weight`; float16 or float32.

    Raises:
      ValueError: weights of another size of CLIP, unused names, or parameters without a source or
        of another shape, all listed; or not a dict of arrays.
    """
    if not isinstance(arrays, Mapping):
        raise ValueError(
            f"CLIP's weights must be a dict of arrays by name, not a {type(arrays).__name__}. "
            "Read a file, OpenAI's TorchScript archives included, with "
            "zse_jax.pretrained.files.read."
        )
    if isinstance(model, ClipPrompt):
        clip = CLIP(model.clip.sizes, dtype=model.clip.dtype, rngs=nnx.Rngs(0))
        load(clip, arrays)
        model.adopt(clip)
        return
    if any(name.startswith(("vision_model.", "text_model.")) for name in arrays):
        arrays = from_hugging_face(arrays)
    _check_size(model, arrays)
    fill(model, arrays, table(model), ignored=lambda name: bool(_KNOWN.fullmatch(name)))


def table(model: CLIP) -> dict[Path, Source]:
    """Parameter path -> OpenAI's name and the change of layout."""
    entries: dict[Path, Source] = {
        ("logit_scale",): Source("logit_scale"),
        ("visual", "patch_embedding", "kernel"): Source("visual.conv1.weight", patch_matrix),
        ("visual", "class_token"): Source("visual.class_embedding"),
        ("visual", "positions"): Source("visual.positional_embedding"),
        ("visual", "projection"): Source("visual.proj"),
        **norm(("visual", "norm_pre"), "visual.ln_pre"),
        **norm(("visual", "norm_post"), "visual.ln_post"),
        **_blocks(("visual", "blocks"), "visual.transformer.resblocks", len(model.visual.blocks)),
    }
    if model.text is not None:
        entries |= {
            ("text", "tokens"): Source("token_embedding.weight"),
            ("text", "positions"): Source("positional_embedding"),
            ("text", "projection"): Source("text_projection"),
            **norm(("text", "norm"), "ln_final"),
            **_blocks(("text", "blocks"), "transformer.resblocks", len(model.text.blocks)),
        }
    return entries


def _blocks(here: Path, there: str, depth: int) -> dict[Path, Source]:
    entries: dict[Path, Source] = {}
    for i in range(depth):
        block, name = (*here, i), f"{there}.{i}"
        entries |= norm((*block, "norm_attention"), f"{name}.ln_1")
        entries |= norm((*block, "norm_mlp"), f"{name}.ln_2")
        qkv = (*block, "attention", "qkv")
        entries[(*qkv, "kernel")] = Source(f"{name}.attn.in_proj_weight", transpose)
        entries[(*qkv, "bias")] = Source(f"{name}.attn.in_proj_bias")
        entries |= linear((*block, "attention", "out"), f"{name}.attn.out_proj")
        entries |= linear((*block, "mlp_in"), f"{name}.mlp.c_fc")
        entries |= linear((*block, "mlp_out"), f"{name}.mlp.c_proj")
    return entries


_HUGGING_FACE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # their spelling
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}

_HUGGING_FACE_BLOCK = {
    "attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attn.out_proj.": ("self_attn.out_proj.",),
    "mlp.c_fc.": ("mlp.fc1.",),
    "mlp.c_proj.": ("mlp.fc2.",),
    "ln_1.": ("layer_norm1.",),
    "ln_2.": ("layer_norm2.",),
}


def from_hugging_face(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face's names and arrays under OpenAI's names and in OpenAI's layout.

    Query, key and value are joined into one projection and the two output projections transposed.
    Names that are not Hugging Face's stay, and `load` reports them.

    Raises:
      ValueError: parts of a block's projection are missing; lists them.
    """
    found: dict[str, np.ndarray] = {}
    joined: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        target, part = _openai_name(name)
        if part:
            joined.setdefault(target, {})[name] = np.asarray(array)
        elif target in ("visual.proj", "text_projection"):
            found[target] = np.asarray(array).T
        else:
            found[target] = np.asarray(array)
    missing = []
    for target, parts in joined.items():
        some = next(iter(parts))
        names = [re.sub(r"\.[qkv]_proj\.", f".{letter}_proj.", some) for letter in "qkv"]
        missing += [name for name in names if name not in parts]
        if not missing:
            found[target] = np.concatenate([parts[name] for name in names])
    if missing:
        raise ValueError(
            "These weights of CLIP are incomplete; nothing was loaded. Missing: "
            + ", ".join(missing)
        )
    return found


def _openai_name(name: str) -> tuple[str, bool]:
    """OpenAI's name for one of Hugging Face's, and whether that is one of three parts."""
    if match := re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)", name):
        tower = "visual." if match[1] == "vision" else ""
        for ours, theirs in _HUGGING_FACE_BLOCK.items():
            for part in theirs:
                if match[3].startswith(part):
                    leaf = ours + match[3].removeprefix(part)
                    return f"{tower}transformer.resblocks.{match[2]}.{leaf}", len(theirs) > 1
    for ours, theirs in _HUGGING_FACE.items():
        if name == theirs or name in (f"{theirs}.weight", f"{theirs}.bias"):
            return ours + name.removeprefix(theirs), False
    return name, False


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes determine; a head is 64 wide as published."""
    if "vision_model.pre_layrnorm.weight" in arrays:
        arrays = from_hugging_face(arrays)
    sizes = size_of(arrays)
    return sizes | {
        "heads": max(1, sizes["width"] // 64),
        "text_heads": max(1, sizes["text_width"] // 64),
    }


def size_of(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes of CLIP that can be inferred from OpenAI's names and arrays."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}

    def depth(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return len({match[1] for name in shapes if (match := pattern.match(name))})

    sizes: dict[str, int] = {}
    if len(conv := shapes.get("visual.conv1.weight", ())) == 4:
        sizes |= {"width": conv[0], "patch_size": conv[3]}
        if len(positions := shapes.get("visual.positional_embedding", ())) == 2:
            sizes["image_size"] = round((positions[0] - 1) ** 0.5) * conv[3]
    if len(projection := shapes.get("text_projection", ())) == 2:
        sizes |= {"text_width": projection[0], "embed_dim": projection[1]}
    if len(positions := shapes.get("positional_embedding", ())) == 2:
        sizes["context_length"] = positions[0]
    depths = {"depth": "visual.transformer.resblocks", "text_depth": "transformer.resblocks"}
    return sizes | {key: n for key, prefix in depths.items() if (n := depth(prefix))}


def _check_size(model: CLIP, arrays: Mapping[str, np.ndarray]) -> None:
    given, own = size_of(arrays), dataclasses.asdict(model.sizes)
    differing = [
        f"{key}={value} (the model: {own[key]})"
        for key, value in given.items()
        if own[key] != value
    ]
    if differing:
        raise ValueError(
            f"These weights are of another size of CLIP: {', '.join(differing)}. Create the model "
            "with their sizes (the configs' variants are B/32, B/16, L/14 and L/14@336), or load "
            "the weights of the model's size."
        )
