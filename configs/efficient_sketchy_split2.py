r"""EfficientCNN on Sketchy Extended, split 2 (104 seen, 21 unseen classes).

    python -m zse_jax.main --config=configs/efficient_sketchy_split2.py \
        --workdir=runs/efficient_sketchy_split2 --config.data.manual_dir=DIR \
        --config.teacher.weights=resnet50.safetensors

DIR is that of configs/sketchy_split2.py; weights, variants and shorthands are those of
configs/efficient_sketchy.py.

Published: no figures at hand. Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import efficient_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: a variant and comma-separated key=value shorthands."""
    config = efficient_default.get_config()
    config.data.split = "sketchy_split2"
    config.model.seen_classes = 104
    return efficient_default.with_arg(config, arg)
