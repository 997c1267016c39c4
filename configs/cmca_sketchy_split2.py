r"""CMCA on Sketchy Extended, split 2 (104 seen, 21 unseen classes).

    python -m zse_jax.main --config=configs/cmca_sketchy_split2.py --workdir=runs/cmca \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (256x256/, EXTEND_image_sketchy*/). Training starts from
Facebook's DINOv2, which config.init_from names and the run downloads.

Variants and overrides follow a colon: `--config=configs/cmca_sketchy_split2.py:S/14,steps=5000`.
Variants: sizes B/14 (default, as published), S/14, L/14; `mcc`, with the loss of MCC (IJCAI 2024);
`raw`, unchanged DINOv2; `tiny`, a small network trained from random values on doodles in
minutes.

Published (CMCA, IJCNN 2025): its numbers are not at hand.
Measured here: not measured yet; `tiny` on doodles 25.8 mAP@all, 16.0 untrained (seed 0).
"""

from ml_collections import ConfigDict

from configs import cmca_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = cmca_default.get_config()
    return cmca_default.with_arg(config, arg)
