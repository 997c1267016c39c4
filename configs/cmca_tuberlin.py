r"""CMCA on TU-Berlin Extended (220 seen, 30 unseen classes).

    python -m zse_jax.main --config=configs/cmca_tuberlin.py --workdir=runs/cmca_tuberlin \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (png*/, ImageResized*/). Variants and overrides are as in
configs/cmca_sketchy_split2.py.

Published (CMCA, IJCNN 2025): its numbers are not at hand.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import cmca_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = cmca_default.get_config()
    config.data.name = config.data.split = "tuberlin"
    config.model.triplet_margin = 0.04
    config.train.steps = 19_067  # 65 epochs of its 17,600 sketches
    config.evaluation.every = config.checkpoint.every = 586
    config.evaluation.sketch_stride = 3
    config.evaluation.photo_stride = 20
    return cmca_default.with_arg(config, arg)
