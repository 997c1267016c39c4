"""Zero-shot sketch-based image retrieval in JAX: train, evaluate, explain and serve it.

retriever = zse_jax.load("WORKDIR")
sketches = retriever.encode(sketch_images, "sketch")
photos = retriever.encode(photo_images, "photo")
ranking = (-retriever.score(sketches, photos)).argsort(axis=1)
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from ml_collections import ConfigDict

    from zse_jax.retrievers.base import Retriever

from zse_jax.version import __version__ as __version__


def load(
    path: "str | os.PathLike",
    *,
    allow_fallback: bool = False,
    base: "str | os.PathLike | None" = None,
) -> "Retriever":
    """The trained retriever in a checkpoint: a workdir, or the folder of one step.

    Also reads the output of `save_pretrained`: a folder, or hf://owner/name (Hugging Face Hub);
    "default", the model that this package contains; and publishers' weights, such as
    hf://openai/clip-vit-base-patch32 or a file.
    If the best checkpoint of a workdir is damaged, that is an error, or, with `allow_fallback`, a
    warning, and the next best is read. `base` is where the base weights of a model are that was
    saved with `adapters_only`, if not where it names them.
    See `zse_jax.checkpoints.reading.load`. JAX is imported on the first call, TensorFlow never.
    """
    from zse_jax.checkpoints import reading

    return reading.load(path, allow_fallback=allow_fallback, base=base)


def save_pretrained(
    source: "Retriever | str | os.PathLike",
    target: str | os.PathLike,
    *,
    config: "ConfigDict | None" = None,
    metrics: "Mapping[str, float] | None" = None,
    license: str | None = None,
    private: bool = True,
    dtype: "Literal['float16'] | None" = None,
    adapters_only: bool = False,
    base: "str | os.PathLike | None" = None,
) -> str:
    """Writes a model with its config and model card to a folder, a bucket, or hf://owner/name.

    See `zse_jax.checkpoints.publishing.save_pretrained`.
    """
    from zse_jax.checkpoints import publishing

    return publishing.save_pretrained(
        source,
        target,
        config=config,
        metrics=metrics,
        license=license,
        private=private,
        dtype=dtype,
        adapters_only=adapters_only,
        base=base,
    )
