r"""CLIP-AT on Sketchy Extended, split 2, generalized: the gallery holds photos of seen classes too.

    python -m zse_jax.main --config=configs/clip_sketchy_generalized.py --workdir=runs/clip_gzs \
        --config.data.manual_dir=DIR

20 % of each seen class's photos do not train and stand in the gallery, as in
configs/sketchy_generalized.py. DIR, variants and shorthands are those of
configs/clip_sketchy_split2.py.

Published: no figure of CLIP-AT in this setting is at hand.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import clip_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: variants and comma-separated key=value shorthands."""
    config = clip_default.get_config()
    config.data.held_out = 0.2
    config.evaluation.seen_gallery = "held_out"
    return clip_default.with_arg(config, arg)
