r"""EfficientCNN on Sketchy Extended, split 2 (104 seen, 21 unseen classes).

    python -m zse_jax.main --config=configs/efficient_sketchy_split2.py \
        --workdir=runs/efficient_sketchy_split2 --config.data.manual_dir=DIR

DIR is as in configs/sketchy_split2.py; weights, variants and overrides are as in
configs/efficient_sketchy.py.

Published: no verified result. Measured here, from EfficientNet-Lite0 (`:lite0`): docs/results.md.
"""

from ml_collections import ConfigDict

from configs import efficient_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = efficient_default.get_config()
    config.data.split = "sketchy_split2"
    config.model.seen_classes = 104
    return efficient_default.with_arg(config, arg)
