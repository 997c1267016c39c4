"""Whose weights a file holds, and which system starts from them.

    publishers.start(retriever, "best_checkpoint.pth")

fills a retriever from any file of weights whose publisher is known here, recognised by its names.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import NamedTuple

import numpy as np

from zse_jax.pretrained import files
from zse_jax.retrievers.base import Retriever


class Publisher(NamedTuple):
    """One source of weights.

    Attributes:
      system: name in `config.model.system` of the systems that start from it.
      mark: a name that every one of its files has, and no other publisher's.
      loader: "module:function" of (retriever, arrays), strict in both directions.
      part: the part of the retriever that it fills; "" is the whole.
      about: what it is, for people.
    """

    system: str
    mark: str
    loader: str
    part: str
    about: str


_HERE = "zse_jax.pretrained"

PUBLISHERS: Mapping[str, Publisher] = {
    "zse_sbir": Publisher(
        "zse", "sa.model.cls", f"{_HERE}.zse_sbir:load", "", "the published ZSE code's best_*.pth"
    ),
    "google_vit": Publisher(
        "zse", "Transformer/encoder_norm/scale", f"{_HERE}.google_vit:load", "",
        "Google's sam/ViT-B_16.npz, from which ZSE starts",
    ),
    "openai_clip": Publisher(
        "clip_prompt", "visual.conv1.weight", f"{_HERE}.openai_clip:load", "", "OpenAI's ViT-*.pt"
    ),
    "huggingface_clip": Publisher(
        "clip_prompt", "vision_model.pre_layrnorm.weight", f"{_HERE}.openai_clip:load", "",
        "openai/clip-vit-* on Hugging Face, model.safetensors",
    ),
    "torchvision_resnet": Publisher(
        "efficient_cnn", "layer1.0.conv3.weight", f"{_HERE}.torchvision_resnet:load", "backbone",
        "torchvision's resnet50-*.pth",
    ),
}  # fmt: skip


def publisher_of(names: Iterable[str]) -> str:
    """Whose parameter names these are: a key of `PUBLISHERS`.

    Raises:
      ValueError: nobody's who is known here.
    """
    names = set(names)
    for name, publisher in PUBLISHERS.items():
        if publisher.mark in names:
            return name
    known = "; ".join(f"{name}: {x.about} (has {x.mark})" for name, x in PUBLISHERS.items())
    raise ValueError(
        f"Weights named {', '.join(sorted(names)[:4])}, ... are nobody's who is known here. Known "
        f"are {known}."
    )


def start(
    retriever: Retriever, path: str | os.PathLike, system: str, publisher: str | None = None
) -> str:
    """Fills `retriever` in place from a file of weights.

    Args:
      retriever: of the size of the weights; what its publisher's network lacks stays as it is.
      path: see `files.read`.
      system: the retriever's `config.model.system`.
      publisher: whose file it is, a key of `PUBLISHERS`; None: recognised by its names.

    Returns:
      Whose weights they were.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, is of another publisher or for another system, or does not fit.
    """
    if publisher is not None and publisher not in PUBLISHERS:
        raise ValueError(f"There is no publisher {publisher!r}: choose {', '.join(PUBLISHERS)}.")
    return fill(retriever, files.read(path), os.fspath(path), system, publisher)


def fill(
    retriever: Retriever,
    arrays: Mapping[str, np.ndarray],
    path: str,
    system: str,
    publisher: str | None = None,
) -> str:
    """As `start`, from the arrays that were read from the file `path`."""
    found = publisher_of(arrays)
    if publisher not in (None, found):
        raise ValueError(f"{path} holds the weights of {found}, not of {publisher}.")
    one = PUBLISHERS[found]
    if one.system != system:
        fitting = ", ".join(name for name, x in PUBLISHERS.items() if x.system == system)
        raise ValueError(
            f"{path} holds the weights of {found}, from which the system {one.system!r} starts, "
            f"not {system!r}: choose a config of that system, or weights of {fitting}."
        )
    part = getattr(retriever, one.part) if one.part else retriever
    try:
        _function(one.loader)(part, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


def _function(name: str) -> Callable[[object, Mapping[str, np.ndarray]], None]:
    module, function = name.split(":")
    return getattr(import_module(module), function)
