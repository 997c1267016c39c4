r"""EfficientCNN on QuickDraw Extended (80 seen, 30 unseen classes).

    python -m zse_jax.main --config=configs/efficient_quickdraw.py \
        --workdir=runs/efficient_quickdraw --config.data.manual_dir=DIR

DIR is as in configs/quickdraw.py; weights, variants and overrides are as in
configs/efficient_sketchy.py.

Published: no verified result. Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import efficient_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = efficient_default.get_config()
    config.data.name = config.data.split = "quickdraw"
    config.model.seen_classes = 80
    config.evaluation.sketch_stride = 120  # as many as the published subset
    config.evaluation.photo_stride = 30
    return efficient_default.with_arg(config, arg)
