"""The values every EfficientCNN setting starts from (Tursun et al., arXiv 2102.04016).

Not run by itself: `configs/efficient_sketchy.py` and its like call `get_config` and change what
differs. The paper's abstract gives the network, the width of the embedding and the three losses;
weights, margins and the way of training are our choices.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import default

VARIANTS: dict[str, dict[str, Any]] = {
    "ResNet-50": {},
    # From scratch on the embedded data set, in minutes on two cores. The teacher is the network as
    # it is drawn.
    "tiny": {
        "image_size": 64, "depths": (1, 1, 1, 1), "width": 16, "seen_classes": 24,
        "data.name": "doodles", "data.split": "doodles", "data.workers": 0,
        "train.steps": 500, "train.batch_size": 8,
        "optimizer.learning_rate": 2e-3, "optimizer.weight_decay": 0.05,
        "optimizer.warmup_steps": 50, "optimizer.clip_norm": 5.0,
        "evaluation.every": 100, "evaluation.batch_size": 64, "evaluation.sketch_stride": 3,
        "evaluation.photo_stride": 2, "checkpoint.every": 100,
    },
}  # fmt: skip
"""Sizes, and what is trained at them. Keys without a dot are the model's."""


def get_config() -> ConfigDict:
    """The shared defaults, for Sketchy, split 1."""
    config = default.get_config()

    config.model = model = ConfigDict()
    model.system = "efficient_cnn"
    model.backbone = "resnet50"  # see zse_jax/models/backbone.py
    model.image_size = 224  # pixels, square
    model.depths = (3, 4, 6, 3)  # blocks of the four stages: ResNet-50
    model.width = 64  # channels after the stem
    model.imagenet_classes = 1000  # of the head that the weights bring along
    model.embedding_width = 512
    model.seen_classes = 100  # of the split
    model.frozen_statistics = False  # True: batch statistics stay those of the weights
    model.margin = 0.3  # of the quadruplet loss, in Euclidean distance of unit vectors
    model.cross_margin = 0.15  # of its term without the anchor
    model.label_smoothing = 0.0
    model.quadruplet_weight = 1.0  # the three losses; weight 0 leaves one out
    model.classification_weight = 1.0
    model.knowledge_weight = 1.0

    config.teacher = teacher = ConfigDict()  # the untouched network, with which training starts
    teacher.weights = placeholder(str)  # torchvision's resnet50, .safetensors or .pth; None: random
    teacher.knowledge = placeholder(
        str
    )  # file of what it knows of each class; None: in the workdir

    config.train.steps = 10_000
    config.train.batch_size = 16  # P classes
    config.train.sampler = "class_group:4"  # K sketches and K photos of each: 128 images in all

    optimizer = config.optimizer
    optimizer.learning_rate = 1e-4
    optimizer.schedule = "cosine"
    optimizer.warmup_steps = 500

    config.evaluation.every = config.checkpoint.every = 1000
    config.evaluation.batch_size = 64
    config.evaluation.select = "embedding/exact/mAP@all"
    return config


def with_arg(config: ConfigDict, arg: str) -> ConfigDict:
    """`config` changed by variants and shorthands; see `configs.default.with_arg`."""
    return default.with_arg(config, arg, VARIANTS)
