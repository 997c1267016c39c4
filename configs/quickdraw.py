r"""ZSE on QuickDraw Extended (80 seen, 30 unseen classes).

    python -m zse_jax.main --config=configs/quickdraw.py --workdir=runs/quickdraw \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (sketches/, images/), or Google's .ndjson drawings instead of
the sketches. Variants and overrides are as in configs/sketchy.py.

Published (ZSE, CVPR 2023): retrieval token mAP@all 14.2; relation mAP@all 14.5, P@200 21.6. The
full test set is 92,291 sketches x 54,151 photos.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.name = config.data.split = "quickdraw"
    config.evaluation.sketch_stride = 120  # as many as the published subset
    config.evaluation.photo_stride = 30
    return default.with_arg(config, arg)
