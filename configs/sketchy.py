r"""ZSE on Sketchy Extended, split 1 (100 seen, 25 unseen classes).

    python -m zse_jax.main --config=configs/sketchy.py --workdir=runs/sketchy \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (256x256/, EXTEND_image_sketchy*/). Training starts from a ViT
trained on ImageNet, which config.init_from names and the run downloads; `--config.init_from=FILE`
starts from other weights. Variants: B/16 (default, as published), S/16, Ti/16:
`--config=configs/sketchy.py:Ti/16`. Overrides follow after commas:
`--config=configs/sketchy.py:Ti/16,steps=2000,batch_size=16`.

Published (ZSE, retrieval token, initialized from ImageNet weights trained with SAM): mAP@all 73.6,
P@100 80.8.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    return default.with_arg(default.get_config(), arg)
