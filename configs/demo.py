"""The demo: a small ZSE on the built-in data set `doodles` (24 seen, 8 unseen classes).

    python -m zse_jax.main --config=configs/demo.py --workdir=runs/demo

Needs no download, starts from random values, and takes minutes on two cores. Chance is mAP@all
0.13. Overrides follow a colon: `--config=configs/demo.py:steps=200,seed=1`.

Published: none, the data set is part of this project. Measured here (exact mAP@all, 384 x 384,
seeds 0 and 1): relation 0.642, 0.629; token 0.270, 0.233; untrained 0.14 to 0.16. Rounding of other
processors moves these by up to 0.05.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The demo, modified by `arg`: comma-separated key=value overrides."""
    config = default.get_config()
    config.data.name = config.data.split = "doodles"
    config.data.workers = 0  # 64 x 64 images decode quickly
    config.init_from = "random"  # no published network has this size

    model = config.model  # 8 x 8 tokens, each an anchor
    model.image_size, model.patch_size, model.scale_channels = 64, 8, 16
    model.width, model.depth, model.heads, model.mlp_width = 96, 4, 4, 192
    model.cross_heads, model.cross_mlp_width = 4, 128
    # Training from scratch; the published value is for fine-tuning of ImageNet weights.
    model.dropout = 0.0

    config.train.steps = 800
    config.train.batch_size = 16
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.evaluation.every = 200
    config.evaluation.batch_size = 64
    config.evaluation.sketch_stride = 3
    config.evaluation.photo_stride = 2
    config.checkpoint.every = 200
    return default.with_arg(config, arg)
