r"""ZSE across data sets: trained on Sketchy Extended, split 1, tested on QuickDraw Extended.

    python -m zse_jax.main --config=configs/cross_sketchy_quickdraw.py --workdir=runs/cross \
        --config.data.manual_dir=DIR --config.target.manual_dir=TARGET_DIR

DIR and TARGET_DIR hold the unpacked benchmarks; see configs/sketchy.py and configs/quickdraw.py.
Of the target's 30 unseen classes, those are left out that training saw, whatever they are called
there; the run prints them. Variants and shorthands are those of configs/sketchy.py.

Published: ZSE (CVPR 2023) reports this kind of setting; no figure that we could check is at hand.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: a variant and comma-separated key=value shorthands."""
    config = default.get_config()
    config.target.name = config.target.split = "quickdraw"
    config.evaluation.sketch_stride = 120
    config.evaluation.photo_stride = 30
    return default.with_arg(config, arg)
