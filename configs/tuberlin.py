r"""ZSE on TU-Berlin Extended (220 seen, 30 unseen classes).

    python -m zse_jax.main --config=configs/tuberlin.py --workdir=runs/tuberlin \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (png*/, ImageResized*/). Variants and overrides are as in
configs/sketchy.py.

Published (ZSE, CVPR 2023): retrieval token mAP@all 56.9, P@100 63.7; relation mAP@all 54.2, P@100
65.7. The full test set is 2,400 sketches x 27,989 photos.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.name = config.data.split = "tuberlin"
    config.evaluation.sketch_stride = 3  # as many as the published subset
    config.evaluation.photo_stride = 20
    return default.with_arg(config, arg)
