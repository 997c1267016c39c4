r"""CLIP-AT on TU-Berlin Extended (220 seen, 30 unseen classes).

    python -m zse_jax.main --config=configs/clip_tuberlin.py --workdir=runs/clip_tuberlin \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (png*/, ImageResized*/). Variants and overrides are as in
configs/clip_sketchy_split2.py.

Published (CLIP-AT, CVPR 2023): mAP@all 65.1, P@100 73.2.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import clip_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = clip_default.get_config()
    config.data.name = config.data.split = "tuberlin"
    config.train.steps = 16_500  # section 6: 60 epochs, of its 17,600 sketches
    config.evaluation.every = config.checkpoint.every = 550  # two epochs
    config.evaluation.sketch_stride = 3
    config.evaluation.photo_stride = 20
    return clip_default.with_arg(config, arg)
