"""The default values of all CLIP-AT settings (Sain et al., CVPR 2023, arXiv 2303.13440).

Not a setting: configs such as `configs/clip_sketchy_split2.py` call `get_config` and change values.
The values are those of the paper, whose sections are named; what it does not specify is marked
"published code" or "ours".
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import default

VARIANTS: dict[str, dict[str, Any]] = {
    "B/32": {},  # as published
    "B/16": {"patch_size": 16, "init_from": "hf://openai/clip-vit-base-patch16"},
    "L/14": {
        "init_from": "hf://openai/clip-vit-large-patch14",
        "patch_size": 14, "width": 1024, "depth": 24, "heads": 16, "embed_dim": 768,
        "text_width": 768, "text_heads": 12,
    },
    "L/14@336": {
        "init_from": "hf://openai/clip-vit-large-patch14-336",
        "image_size": 336, "patch_size": 14, "width": 1024, "depth": 24, "heads": 16,
        "embed_dim": 768, "text_width": 768, "text_heads": 12,
    },
    # The published code, where it differs from the paper.
    "published": {
        "encoders": "shared", "trainable": "published", "triplet_margin": 0.2,
        "classification_weight": 0.0, "train.batch_size": 192,
        "optimizer.learning_rate": 1e-6, "optimizer.learning_rates.prompt": 1e-4,
    },
    # Baselines and ablations of the paper's tables 1 and 2 and of section 6.3. Its B-IP is
    # "frozen_norms", its K = 1 "one_token"; "single_prompt" is for category level, the last two of
    # "no_*" are for fine-grained.
    "frozen_norms": {"encoders": "shared", "trainable": "prompts"},
    "deep": {"encoders": "shared", "trainable": "prompts", "prompt_depth": 9},
    "single_prompt": {"prompts": "shared"},
    "one_token": {"prompt_length": 1},
    "no_classification": {"classification_weight": 0.0},
    "no_delta": {"delta_weight": 0.0},
    "no_shuffle": {"shuffle_weight": 0.0},
    # Baselines without training: unchanged CLIP; class names instead of sketches as queries.
    "raw": {
        "encoders": "shared", "prompt_length": 0, "train.steps": 0, "optimizer.warmup_steps": 0,
    },
    "text": {
        "encoders": "shared", "prompt_length": 0, "train.steps": 0, "optimizer.warmup_steps": 0,
        "text_tower": True, "evaluation.queries": "text",
    },
    # From random values, on the built-in data set, in minutes on two cores.
    "tiny": {
        "init_from": "random",
        "image_size": 64, "patch_size": 8, "width": 64, "depth": 4, "heads": 4, "embed_dim": 64,
        "text_width": 32, "text_depth": 2, "text_heads": 2, "prompt_std": 0.02,
        "position_std": 1.0, "encoders": "shared", "trainable": "all", "preprocessing": "crop",
        "template": "{}",  # a random text tower separates bare names best
        "data.name": "doodles", "data.split": "doodles", "data.workers": 0,
        "train.steps": 800, "train.batch_size": 16,
        "optimizer.learning_rate": 1e-3, "optimizer.learning_rates.prompt": 1e-3,
        "optimizer.weight_decay": 0.05, "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 100, "optimizer.clip_norm": 1.0,
        "evaluation.every": 200, "evaluation.batch_size": 64, "evaluation.sketch_stride": 3,
        "evaluation.photo_stride": 2, "checkpoint.every": 200,
    },
}  # fmt: skip
"""Sizes of OpenAI's CLIP models, baselines and recipes; keys as in `configs.default.VARIANTS`."""


def get_config() -> ConfigDict:
    """The shared defaults, for category-level training of ViT-B/32."""
    config = default.get_config()
    config.init_from = "hf://openai/clip-vit-base-patch32"

    config.model = model = ConfigDict()
    model.system = "clip_prompt"  # see docs/systems.md
    model.image_size = 224  # pixels, square
    model.patch_size = 32  # pixels
    model.width = 768  # of the image tower's tokens
    model.depth = 12  # blocks of the image tower
    model.heads = 12  # attention heads of its blocks
    model.embed_dim = 512  # of the shared space of images and texts
    model.context_length = 77  # token ids per text
    model.text_width = 512  # of the text tower's tokens
    model.text_depth = 12  # blocks of the text tower
    model.text_heads = 8  # attention heads of its blocks
    model.position_std = placeholder(float)  # of initial positions; None: width**-0.5, as CLIP
    model.mlp_width = placeholder(int)  # of the image tower; None: 4 * width
    model.activation = placeholder(str)  # "quick_gelu" or "gelu"; None: of the weights
    model.text_tower = False  # True: keep it in checkpoints, for text queries
    model.recipe = "category"  # "category" or "fine_grained"
    model.prompts = "separate"  # "separate" for each modality (section 4), or "shared" (section 5)
    model.prompt_length = 3  # tokens; 0: unchanged CLIP [section 6]
    model.prompt_depth = 1  # blocks that get a prompt (section 3: shallow prompts)
    model.prompt_std = 1.0  # of the initial values; published code
    # "separate_norms" (section 4), "shared" (section 5), or "separate": copies.
    model.encoders = "separate_norms"
    # What trains: "prompts" only; "layer_norm": LayerNorms as well (section 4); "published": what
    # the released code trains; or "all" image weights.
    model.trainable = "layer_norm"
    model.preprocessing = "pad"  # "pad" to a square, as the published code, or "crop", as ZSE
    model.pixels = "imagenet"  # statistics that normalise: "imagenet", as published, or "clip"
    model.class_names = placeholder(tuple)  # None: the seen classes, set when training starts
    model.template = "a photo of a {}"  # of the class texts [section 4]
    model.centred = False  # True: embeddings minus the mean of their modality in training
    model.triplet_margin = 0.3  # in cosine distance [section 6]
    model.classification_weight = 0.5  # of the loss against the class texts [section 6]
    model.delta_weight = 0.1  # fine-grained: of the loss of relative distances (section 6)
    model.shuffle_weight = 1.0  # fine-grained: of the loss of shuffled patches (section 6)
    model.hardest_negative = True  # fine-grained: the nearest other photo (ours); False: any

    config.data.split = "sketchy_split2"
    config.train.steps = 58_860  # [CLIP-AT (section 6): 60 epochs, here of 62,800 sketches]
    config.train.batch_size = 64  # [CLIP-AT (section 6)]

    optimizer = config.optimizer
    # [Section 6 gives the rate of the prompts; that LayerNorms have the same one is our reading]
    optimizer.learning_rate = 1e-5
    optimizer.learning_rates = ConfigDict({"prompt": 1e-5})  # of prompts [section 6; code: 1e-4]
    optimizer.weight_decay = 0.0  # [CLIP-AT (section 6): Adam]

    config.evaluation.every = config.checkpoint.every = 1000  # [about an epoch]
    config.evaluation.batch_size = 64
    config.evaluation.select = "embedding/exact/mAP@all"
    return config


def with_arg(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies variants and `key=value` overrides; see `configs.default.with_arg`."""
    return default.with_arg(config, arg, VARIANTS)
