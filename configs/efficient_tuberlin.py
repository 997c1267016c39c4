r"""EfficientCNN on TU-Berlin Extended (220 seen, 30 unseen classes).

    python -m zse_jax.main --config=configs/efficient_tuberlin.py \
        --workdir=runs/efficient_tuberlin --config.data.manual_dir=DIR

DIR is as in configs/tuberlin.py; weights, variants and overrides are as in
configs/efficient_sketchy.py.

Published: no verified result. Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import efficient_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = efficient_default.get_config()
    config.data.name = config.data.split = "tuberlin"
    config.model.seen_classes = 220
    config.evaluation.sketch_stride = 3  # as many as the published subset
    config.evaluation.photo_stride = 20
    return efficient_default.with_arg(config, arg)
