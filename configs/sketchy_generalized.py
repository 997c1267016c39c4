r"""ZSE on Sketchy Extended, split 1, generalized: the gallery holds photos of seen classes as well.

    python -m zse_jax.main --config=configs/sketchy_generalized.py --workdir=runs/sketchy_gzs \
        --config.data.manual_dir=DIR

20 % of each seen class's photos do not train and stand in the gallery (Dutta and Akata, CVPR 2019;
drawn from config.data.held_out_seed, recorded with the results). For a gallery with all seen
photos, those trained on included: `:seen_gallery=all,held_out=0.0`. DIR, variants and shorthands
are those of configs/sketchy.py; `:split=sketchy_split2` is the other split.

Published: no result of ZSE in this setting.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: a variant and comma-separated key=value shorthands."""
    config = default.get_config()
    config.data.held_out = 0.2
    config.evaluation.seen_gallery = "held_out"
    return default.with_arg(config, arg)
