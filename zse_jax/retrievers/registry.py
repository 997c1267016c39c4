"""The registry of retrieval systems: everything that the rest of the library knows about each.

A new system is one file beside this one, one entry in `SYSTEMS` and one config.
"""

import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from zse_jax.models.rematerialisation import rematerialise
from zse_jax.retrievers import base
from zse_jax.retrievers.base import (
    DomainMeans,
    Encoder,
    Preprocessing,
    Retriever,
)

REMAT = ("none", "blocks")
"""What the backward pass recomputes instead of storing: nothing, or the inside of each block."""


@dataclass(frozen=True)
class Pretrained:
    """How a system uses the weights of one publisher.

    Attributes:
      part: attribute of the retriever that they fill; "" is the retriever itself.
      uninferred: settings that cannot be inferred from the arrays, but change what the network
        computes.
      settings: of a system that is converted from these weights alone.
      random: parts of the system that they do not fill, and which keep random values.
    """

    part: str = ""
    uninferred: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    random: Sequence[str] = ()


@dataclass(frozen=True)
class System:
    """One retrieval system.

    Attributes:
      implementation: "module:class", imported on first use.
      title: what it is, for model cards.
      paper: its address.
      config: file in `configs/` with the config of converted weights.
      pretrained: the publishers (`zse_jax.pretrained.publishers`) whose files it accepts.
      initialization: how training starts: at "random" values, or with "distillation" of a teacher
        (`zse_jax.training.distillation`).
      copy_parameters: "module:function" of (target, source), which takes over the parameters of
        another retriever of this system.
    """

    implementation: str
    title: str
    paper: str
    config: str
    pretrained: Mapping[str, Pretrained] = field(default_factory=dict)
    initialization: Literal["random", "distillation"] = "random"
    copy_parameters: str = "zse_jax.retrievers.base:copy_parameters"


_CLIP = Pretrained(
    uninferred=("heads", "text_heads", "activation"),
    # The original CLIP: without prompts, with its own pixel statistics and its text tower.
    settings={"prompt_length": 0, "encoders": "shared", "pixels": "clip", "text_tower": True},
)

_CNN = Pretrained(
    part="backbone",
    uninferred=("image_size",),
    settings={"knowledge_weight": 0.0},  # training prepares the teacher's knowledge
    random=("embedding", "classifier of the seen classes"),
)
_NOT_IN_VIT = ("scale embedding", "cross-attention", "anchors", "relation network")

SYSTEMS: Mapping[str, System] = {
    "zse": System(
        "zse_jax.retrievers.zse:ZSE",
        title="ZSE: a ViT with a retrieval token, cross-attention between sketch and photo, and a "
        "relation network over their matching places",
        paper="https://arxiv.org/abs/2303.14348",
        config="default",
        pretrained={
            "zse_sbir": Pretrained(uninferred=("heads", "cross_heads", "anchor_map")),
            "google_vit": Pretrained(uninferred=("cross_heads", "anchor_map"), random=_NOT_IN_VIT),
            "timm_vit": Pretrained(
                uninferred=("heads", "cross_heads", "anchor_map"), random=_NOT_IN_VIT
            ),
            "efficientnet_lite": Pretrained(
                part="backbone",
                uninferred=("image_size", "depth", "width", "heads", "cross_heads", "anchor_map"),
                random=("projection", "transformer", *_NOT_IN_VIT[1:]),
            ),
        },
    ),
    "clip_prompt": System(
        "zse_jax.retrievers.clip_prompt:ClipPrompt",
        title="CLIP-AT: CLIP with prompts for sketches and photos",
        paper="https://arxiv.org/abs/2303.13440",
        config="clip_default",
        pretrained={"openai_clip": _CLIP, "huggingface_clip": _CLIP},
        copy_parameters="zse_jax.retrievers.clip_prompt:copy_parameters",
    ),
    "efficient_cnn": System(
        "zse_jax.retrievers.efficient_cnn:EfficientCNN",
        title="EfficientCNN: one CNN for sketches and photos",
        paper="https://arxiv.org/abs/2102.04016",
        config="efficient_default",
        pretrained={
            "torchvision_resnet": _CNN,
            "efficientnet_lite": _CNN,
            "dinov2": _CNN,
            "huggingface_dinov2": _CNN,
        },
        initialization="distillation",
        copy_parameters="zse_jax.retrievers.efficient_cnn:copy_parameters",
    ),
    "cmca": System(
        "zse_jax.retrievers.cmca:CMCA",
        title="CMCA: DINOv2 with low-rank adapters for sketches and photos",
        paper="https://github.com/zermatt-luo/CMCA",
        config="cmca_default",
        pretrained={
            # Without adapters they are DINOv2 itself: new adapters change nothing.
            name: Pretrained(part="backbone", uninferred=("image_size",))
            for name in ("published_cmca", "dinov2", "huggingface_dinov2")
        },
    ),
}
"""Name in `config.model.system` -> the system."""


def system(name: object) -> System:
    """The entry of `SYSTEMS`; raises ValueError, with the nearest name, if there is none."""
    if name not in SYSTEMS:
        raise ValueError(f"config.model.system={name!r} is unknown{_nearest(name, SYSTEMS)}")
    return SYSTEMS[str(name)]


def create(
    config: Mapping[str, Any] | ConfigDict,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    rngs: nnx.Rngs,
) -> Retriever:
    """The retriever that `config.model` describes.

    Args:
      config: `system`, and any keyword arguments of its class; the others are as published. With
        `centred`, the retriever has `Encoder.means`, which are zero until they are measured.
        `preprocessing` sets `Encoder.preprocessing`.
      dtype: of activations ("float32" or "bfloat16"); parameters are float32.
      remat: one of `REMAT`.
      rngs: streams `params` and `dropout`.

    Raises:
      ValueError: an unknown system or key (the message gives the nearest valid name), or values
        that are not compatible.
    """
    arguments = dict(config)
    name = arguments.pop("system", None)
    cls = implementation(name)
    centred = arguments.pop("centred", False)
    chosen = preprocessing(config)
    arguments.pop("preprocessing", None)
    known = set(inspect.signature(cls.__init__).parameters) - {"self", "dtype", "rngs"}
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"config.model.{key} is not a setting of system {name!r}"
                f"{_nearest(key, known | {'centred', 'preprocessing'})}"
            )
    if remat not in REMAT:
        raise ValueError(f"config.train.remat={remat!r}: choose one of {', '.join(REMAT)}.")
    model = cls(**arguments, dtype=jnp.dtype(dtype), rngs=rngs)
    if chosen != model.preprocessing:
        model.preprocessing = chosen
    if centred:
        model.means = DomainMeans(jnp.zeros((2, model.vector_width)))
    if remat == "blocks" and not rematerialise(model):
        raise ValueError(
            f"config.train.remat='blocks': the system {name!r} has no blocks that can be "
            "recomputed; set it to 'none'."
        )
    return model


def preprocessing(config: Mapping[str, Any] | ConfigDict) -> Preprocessing:
    """How the system that `config.model` describes takes its images; its own by default.

    Raises:
      ValueError: an unknown system or choice.
    """
    chosen = config.get("preprocessing", implementation(config.get("system")).preprocessing)
    if chosen not in get_args(Preprocessing):
        raise ValueError(
            f"config.model.preprocessing={chosen!r}: choose one of "
            f"{', '.join(get_args(Preprocessing))}."
        )
    return chosen


def copy_parameters(name: str, target: Encoder, source: Encoder) -> None:
    """Takes over the parameters of another retriever, in place.

    Of a retriever of another system, the backbone, if `target` has a backbone of the same network.
    What the rest of `target` takes over is the choice of its system (`Retriever.start_from`).

    Args:
      name: the system of `target`.

    Raises:
      ValueError: it is of another size, or of another system without a common backbone; nothing
        is copied then.
    """
    if type(source) is type(target):
        imported(system(name).copy_parameters)(target, source)
        return
    own, given = getattr(target, "backbone", None), getattr(source, "backbone", None)
    if own is None or given is None:
        raise ValueError(
            f"it contains a {type(source).__name__}, but this config trains a "
            f"{type(target).__name__}, and they have no backbone in common: choose a config of "
            "that system, or another source."
        )
    # Such as an ImageNet classifier.
    not_used = [part for part in vars(given) if getattr(own, part, None) is None]
    base.copy_parameters(own, given, without=not_used)
    if isinstance(target, Retriever):
        target.start_from(source)


def implementation(name: object) -> Any:
    """The class of a system, a `Retriever`; raises ValueError for an unknown name."""
    return imported(system(name).implementation)


def imported(path: str) -> Any:
    """The object at "module:name"."""
    module, name = path.split(":")
    return getattr(import_module(module), name)


def _nearest(name: object, known: Collection[str]) -> str:
    match = difflib.get_close_matches(str(name), known, n=1)
    hint = f": did you mean {match[0]!r}?" if match else "."
    return f"{hint} Known: {', '.join(sorted(known))}."
