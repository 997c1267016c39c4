r"""CLIP-AT on Sketchy Extended, split 2, generalized: the gallery includes seen classes.

    python -m zse_jax.main --config=configs/clip_sketchy_generalized.py --workdir=runs/clip_gzs \
        --config.data.manual_dir=DIR

20 % of each seen class's photos are held out from training and added to the gallery, as in
configs/sketchy_generalized.py. DIR, variants and overrides are as in
configs/clip_sketchy_split2.py.

Published: no verified result of CLIP-AT in this setting.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import clip_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = clip_default.get_config()
    config.data.held_out = 0.2
    config.evaluation.seen_gallery = "held_out"
    return clip_default.with_arg(config, arg)
