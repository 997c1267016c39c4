r"""ZSE across data sets: trained on TU-Berlin Extended, tested on QuickDraw Extended.

    python -m zse_jax.main --config=configs/cross_tuberlin_quickdraw.py --workdir=runs/cross \
        --config.data.manual_dir=DIR --config.target.manual_dir=TARGET_DIR

DIR and TARGET_DIR contain the unpacked benchmarks; see configs/tuberlin.py and
configs/quickdraw.py. Unseen classes of the target that are seen in training, even under another
name, are excluded and printed. Variants and overrides are as in configs/sketchy.py.

Published: ZSE (CVPR 2023) reports cross-data-set results, but we have no verified number for this
one.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.name = config.data.split = "tuberlin"
    config.target.name = config.target.split = "quickdraw"
    config.evaluation.sketch_stride = 120
    config.evaluation.photo_stride = 30
    return default.with_arg(config, arg)
