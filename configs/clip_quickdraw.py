r"""CLIP-AT on QuickDraw Extended (80 seen, 30 unseen classes).

    python -m zse_jax.main --config=configs/clip_quickdraw.py --workdir=runs/clip_quickdraw \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (sketches/, images/), or Google's .ndjson drawings instead of
the sketches. Variants and overrides are as in configs/clip_sketchy_split2.py.

Published (CLIP-AT, CVPR 2023): mAP@all 20.2, P@200 38.8.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import clip_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = clip_default.get_config()
    config.data.name = config.data.split = "quickdraw"
    config.train.steps = 222_900  # section 6: 60 epochs, of its 237,700 sketches; 60,000 are 16
    config.evaluation.every = config.checkpoint.every = 3715  # an epoch
    config.evaluation.sketch_stride = 120
    config.evaluation.photo_stride = 30
    return clip_default.with_arg(config, arg)
