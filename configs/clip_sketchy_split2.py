r"""CLIP-AT on Sketchy Extended, split 2 (104 seen, 21 unseen classes, none of them in ImageNet).

    python -m zse_jax.main --config=configs/clip_sketchy_split2.py --workdir=runs/clip_split2 \
        --config.data.manual_dir=DIR

DIR holds the unpacked benchmark (256x256/, EXTEND_image_sketchy*/). What stands behind a colon
changes the setting (`configs/clip_sketchy_split2.py:B/16,steps=5000`): sizes B/32 (default, as
published), B/16, L/14, L/14@336; `published`, what the published code does where it differs from
the paper; baselines `raw` (CLIP as it is, untrained) and `text` (the class's name in place of a
sketch); `tiny`, a small one from scratch on the embedded doodles, in minutes.

Published (CLIP-AT, CVPR 2023): mAP@200 72.3, P@200 72.5; a re-implementation with separate encoders
(`--config.model.encoders=separate`) mAP@200 71.9.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import clip_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: variants and comma-separated key=value shorthands."""
    config = clip_default.get_config()
    return clip_default.with_arg(config, arg)
