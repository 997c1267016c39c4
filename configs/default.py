"""The values every setting starts from: ZSE as published (Lin et al., arXiv 2303.14348).

Not run by itself: `configs/sketchy.py` and its like call `get_config` and change what differs.
`with_arg` reads what stands behind the colon of `--config=configs/sketchy.py:Ti/16,steps=500`.
"""

import ast
import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS: dict[str, dict[str, Any]] = {
    "B/16": {},  # as published
    "S/16": {
        "width": 384, "heads": 6, "mlp_width": 1536, "cross_heads": 4, "cross_mlp_width": 512,
        "anchor_width": 256,
    },
    "Ti/16": {
        "width": 192, "heads": 3, "mlp_width": 768, "cross_heads": 2, "cross_mlp_width": 256,
        "anchor_width": 128,
    },
}  # fmt: skip
"""Sizes of the network: S and Ti as in DeiT (arXiv 2012.12877), the rest of ZSE scaled along."""


def get_config() -> ConfigDict:
    """The shared defaults. A `placeholder` is None until it is given a value of that type."""
    config = ConfigDict()
    config.seed = 0
    config.profile = ()  # (start, stop): the steps of which a profile is written into the workdir
    # Where training starts: a publisher's file of weights, or a checkpoint; None: at random values.
    config.init_from = placeholder(str)
    config.compute_dtype = "float32"  # or "bfloat16"; parameters are float32 in either case

    config.model = _model()

    config.data = data = ConfigDict()
    data.name = "sketchy"  # the prepared data set
    data.split = "sketchy_split1"  # which of its classes are seen, which unseen
    data.unseen = placeholder(str)  # with split=None: the unseen classes, separated by commas
    data.manual_dir = placeholder(str)  # the folder you downloaded and unpacked
    data.data_dir = placeholder(str)  # of prepared data sets; None: ~/tensorflow_datasets
    data.skip_unreadable = False  # True: prepare without unreadable images, and name them
    data.held_out = 0.0  # share of each seen class's photos that does not train
    data.held_out_seed = 0
    data.workers = 2  # processes that decode images; 0: this one

    config.target = target = ConfigDict()  # another data set to evaluate on; None: that of data
    target.name = placeholder(str)
    target.split = placeholder(str)
    target.unseen = placeholder(str)
    target.manual_dir = placeholder(str)

    config.train = train = ConfigDict()
    train.steps = 20_000  # 30 epochs of 10,000 samples
    train.batch_size = 15  # samples, each of two sketches and two photos
    train.accumulate = 1  # micro-batches into which a batch is cut, one after the other
    train.remat = "none"  # or "blocks": keep less for the backward pass, compute it again
    train.spike = 0.0  # stop at a loss so many times the median of the last 100; 0: never
    train.stall_seconds = 1800.0  # without a finished step: an error; 0: wait for ever
    train.augment = 0.0  # mirror half of the pairs, move them by up to this share of their side
    train.sampler = placeholder(str)  # None: the system's own; "instance_quadruplet": fine-grained

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = 1e-5
    optimizer.weight_decay = 1e-2
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8
    optimizer.schedule = "constant"  # or "cosine"
    optimizer.warmup_steps = 0
    optimizer.final_fraction = 0.0  # of the learning rate, at the end of "cosine"
    optimizer.clip_norm = placeholder(float)  # largest norm of the whole gradient

    config.evaluation = _evaluation()

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 667  # steps; a new best one is saved in any case
    checkpoint.keep_last = 2

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices that see different samples; -1: all that fsdp leaves
    mesh.fsdp = 1  # devices over which each large parameter is split

    config.log = log = ConfigDict()
    log.every = 20  # steps
    log.tensorboard = True
    return config


def _model() -> ConfigDict:
    """ZSE as published: B/16."""
    model = ConfigDict()
    model.system = "zse"
    model.image_size = 224  # pixels, square
    model.patch_size = 16
    model.scale_channels = 64  # of the first convolution of the scale embedding
    model.width = 768
    model.depth = 12
    model.heads = 12
    model.mlp_width = 3072
    model.cross_heads = 8
    model.cross_mlp_width = 1024
    model.cross_value = "own"  # or "other": the textbook's cross-attention
    model.anchors = 49  # 196: every token (144 at keep_rate 0.9)
    model.anchor_width = 512
    model.anchor_map = "published"  # or "spatial": an anchor is a place in the image
    model.keep_rate = 1.0  # 0.9: the paper's token selection, in these blocks
    model.keep_blocks = (4, 7, 10)
    model.dropout = 0.1
    model.position_std = 1.0  # of the initial positions and retrieval token
    model.triplet_weight = 2.0
    model.triplet_margin = 1.0
    model.relation_weight = 4.0
    return model


def _evaluation() -> ConfigDict:
    """Whom to rank, when, and what of it to keep."""
    evaluation = ConfigDict()
    evaluation.protocol = "category"  # or "fine_grained": the photo that was drawn
    evaluation.seen_gallery = "none"  # "all" or "held_out": seen classes' photos are in the gallery
    evaluation.rankings = ()  # of the system's; (): all
    evaluation.shortlists = ()  # K of two-stage rankings, measured beside the exact one at the end
    evaluation.storage = "auto"  # of features: "device", "host" or "disk"; auto: where they fit
    evaluation.storage_dtype = placeholder(str)  # "bfloat16": half of the memory
    evaluation.queries = "sketch"  # or "text": the class's name, for systems that know words
    evaluation.every = 667  # steps: an epoch; 0: never
    evaluation.batch_size = 16  # images
    evaluation.sketch_stride = 20  # while training: every 20th sketch of the unseen classes
    evaluation.photo_stride = 10
    evaluation.test_sketch_stride = 1  # at the end, and by zse_jax.evaluate: all of them
    evaluation.test_photo_stride = 1
    evaluation.select = "relation/exact/mAP@all"  # ranking/convention/metric of the best step
    return evaluation


def with_arg(
    config: ConfigDict, arg: str, variants: Mapping[str, Mapping[str, Any]] = VARIANTS
) -> ConfigDict:
    """`config` changed by a comma-separated `arg`: variants, and `key=value` shorthands.

    A key is a full one (`evaluation.batch_size`) or its end; where ends are the same, that of
    `train` or `data` is meant (`batch_size`, `split`).

    Raises:
      ValueError: an unknown variant or key, with the nearest one; an ambiguous key, with the
        candidates.
    """
    for part in filter(None, (part.strip() for part in arg.split(","))):
        name, equals, value = part.partition("=")
        if equals:
            config.update_from_flattened_dict({_full_key(config, name): _literal(value)})
        elif name in variants:
            full = {key if "." in key else f"model.{key}": v for key, v in variants[name].items()}
            config.update_from_flattened_dict(full)
        else:
            near = difflib.get_close_matches(name, variants, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"There is no variant {name!r}: did you mean {near!r}? Known are "
                f"{', '.join(variants)}."
            )
    return config


def _full_key(config: ConfigDict, name: str) -> str:
    keys = [
        f"{group}.{key}" for group in config if isinstance(config[group], ConfigDict)
        for key in config[group]
    ] + [group for group in config if not isinstance(config[group], ConfigDict)]  # fmt: skip
    found = [key for key in keys if name in (key, key.rpartition(".")[2])]
    found = [key for key in found if key in (name, f"train.{name}", f"data.{name}")] or found
    if not found:
        near = difflib.get_close_matches(name, keys, n=1, cutoff=0.0)[0]
        raise ValueError(f"The config has no key {name!r}: did you mean {near!r}?")
    if len(found) > 1:
        raise ValueError(f"The key {name!r} could be {' or '.join(found)}: write it in full.")
    return found[0]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
