r"""ZSE on Sketchy Extended, split 1, generalized: the gallery includes photos of seen classes.

    python -m zse_jax.main --config=configs/sketchy_generalized.py --workdir=runs/sketchy_gzs \
        --config.data.manual_dir=DIR

20 % of each seen class's photos are held out from training and added to the gallery (Dutta and
Akata, CVPR 2019). config.data.held_out_seed selects them and is recorded with the results. For a
gallery with all photos of seen classes, including training photos, use
`:seen_gallery=all,held_out=0.0`. DIR, variants and overrides are as in configs/sketchy.py;
`:split=sketchy_split2` selects the other split.

Published: no result of ZSE in this setting.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.held_out = 0.2
    config.evaluation.seen_gallery = "held_out"
    return default.with_arg(config, arg)
