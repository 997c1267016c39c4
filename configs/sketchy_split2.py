r"""ZSE on Sketchy Extended, split 2 (104 seen, 21 unseen classes, none of them in ImageNet).

    python -m zse_jax.main --config=configs/sketchy_split2.py --workdir=runs/sketchy_split2 \
        --config.data.manual_dir=DIR

DIR, variants and overrides are as in configs/sketchy.py. `:hybrid` is ZSE on a pretrained CNN's
map, for a few images of each class (docs/systems.md). The evaluation at its end takes every 100th
sketch and every 10th photo: the relation of all pairs takes days on a CPU (docs/evaluation.md).

Published (ZSE): retrieval token mAP@200 50.4; relation mAP@200 52.5, P@200 62.4.
Measured here: `:hybrid` only, 25 images per class: token mAP@200 45.8 (docs/results.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.split = "sketchy_split2"
    return default.with_arg(config, arg)
