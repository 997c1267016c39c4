"""The activation and the numbers of heads of a CLIP, which its weights do not determine.

OpenAI's networks use x · sigmoid(1.702 x), and most of OpenCLIP, such as LAION's, the exact
GELU, with the same parameter names and shapes.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zse_jax.models.clip import ACTIVATIONS, CLIP
from zse_jax.pretrained import torch_files
from zse_jax.retrievers.clip_prompt import ClipPrompt

# SHA-256 of OpenAI's files, from their addresses in github.com/openai/CLIP, clip/clip.py.
_OPENAI = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",  # ViT-B-32.pt
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",  # ViT-B-16.pt
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",  # ViT-L-14.pt
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",  # ViT-L-14-336px.pt
}


def described(file: Path) -> dict[str, Any]:
    """The settings that arrays do not determine, as far as the file, or one beside it, has them.

    Sources: OpenCLIP's `open_clip_config.json` and Hugging Face's `config.json` beside the file;
    for TorchScript archives, in which OpenAI publishes CLIP, the activation among its modules; and
    the SHA-256 of OpenAI's files.

    Returns:
      "activation", "heads" and "text_heads", or some of them.

    Raises:
      ValueError: a damaged config, or one of a CLIP with other parts.
    """
    for name, read in (("open_clip_config.json", _open_clip), ("config.json", _hugging_face)):
        config = file.with_name(name)
        if not config.is_file():
            continue
        try:
            found = read(json.loads(config.read_bytes()))
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise ValueError(f"{config} cannot be used: {error}. Download it again.") from error
        if found:
            return found
    if activation := _script_activation(file):
        return {"activation": activation}
    with file.open("rb") as stream:
        published = hashlib.file_digest(stream, "sha256").hexdigest() in _OPENAI
    return {"activation": "quick_gelu"} if published else {}


def check_described(model: CLIP | ClipPrompt, found: Mapping[str, Any]) -> None:
    """Raises ValueError if `described` contradicts the model, or neither sets the activation."""
    sizes = dataclasses.asdict((model.clip if isinstance(model, ClipPrompt) else model).sizes)
    if sizes["activation"] is None and "activation" not in found:
        raise ValueError(
            "nothing says which activation this CLIP uses, and the file is not one of OpenAI's. "
            "Give --config.model.activation=quick_gelu for OpenAI's networks and those trained "
            "like them, or --config.model.activation=gelu for LAION's and most others of OpenCLIP; "
            "or put the publisher's open_clip_config.json or config.json beside the file."
        )
    sizes["activation"] = sizes["activation"] or "quick_gelu"
    if differing := [key for key, value in found.items() if sizes[key] != value]:
        own = ", ".join(f"{key}={sizes[key]!r}" for key in differing)
        options = " ".join(f"--config.model.{key}={found[key]}" for key in differing)
        raise ValueError(f"these weights need {options}, but the model has {own}.")


def _open_clip(config: Any) -> dict[str, Any]:
    """From `open_clip_config.json`; see `open_clip/model_configs`."""
    config = config.get("model_cfg", config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    other = [
        f"{key}={part[key]!r}"
        for part, defaults in (
            (vision, {"pool_type": "tok", "no_ln_pre": False, "attentional_pool": False}),
            (text, {"pool_type": "argmax", "no_causal_mask": False}),
        )
        for key, default in defaults.items()
        if part.get(key, default) != default
    ]
    if "timm_model_name" in vision or not isinstance(vision.get("layers", 12), int):
        other.append("an image tower that is not a Vision Transformer of CLIP")
    if other:
        raise ValueError(f"it describes a CLIP with {', '.join(other)}, which is not supported")
    return {
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "heads": vision.get("width", 768) // vision.get("head_width", 64),
        "text_heads": text.get("heads", 8),
    }


def _hugging_face(config: Any) -> dict[str, Any]:
    """From `config.json` of transformers, with the defaults of its `CLIPConfig`."""
    if config.get("model_type") != "clip":
        return {}
    vision = config.get("vision_config") or config.get("vision_config_dict") or {}
    text = config.get("text_config") or config.get("text_config_dict") or {}
    activations = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    if not activations <= ACTIVATIONS.keys() or len(activations) > 1:
        raise ValueError(f"its activation is {' and '.join(sorted(activations))}")
    return {
        "activation": activations.pop(),
        "heads": vision.get("num_attention_heads", 12),
        "text_heads": text.get("num_attention_heads", 8),
    }


def _script_activation(file: Path) -> str | None:
    """The activation among the modules of a TorchScript archive; None: it is another file."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        entries = {PurePosixPath(entry.filename).name: entry for entry in archive.infolist()}
        if not {"constants.pkl", "data.pkl"} <= entries.keys():
            return None
        modules = torch_files.unpacked(archive, entries["data.pkl"])
    return "gelu" if b"\nGELU\n" in modules and b"QuickGELU\n" not in modules else "quick_gelu"
