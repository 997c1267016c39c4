"""The demo: a small ZSE on the embedded data set of drawn things (24 seen, 8 unseen classes).

    python -m zse_jax.main --config=configs/doodles.py --workdir=runs/doodles

Needs no download; takes minutes on two cores. Chance is mAP@all 0.13.

Published: nothing, the data set is made here. Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The demo, changed by `arg`: a variant and comma-separated key=value shorthands."""
    config = default.get_config()
    config.data.name = config.data.split = "doodles"
    config.train.steps = 600
    config.train.batch_size = 16
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.evaluation.every = 150
    config.evaluation.batch_size = 64
    config.evaluation.sketch_stride = config.evaluation.photo_stride = 1
    config.checkpoint.every = 150
    return default.with_arg(config, arg, variant="demo")
