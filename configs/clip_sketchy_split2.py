r"""CLIP-AT on Sketchy Extended, split 2 (104 seen, 21 unseen classes, none of them in ImageNet).

    python -m zse_jax.main --config=configs/clip_sketchy_split2.py --workdir=runs/clip_split2 \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (256x256/, EXTEND_image_sketchy*/). Training starts from
OpenAI's CLIP, which config.init_from names and the run downloads.

Variants and overrides follow a colon: `--config=configs/clip_sketchy_split2.py:B/16,steps=5000`.
Variants: sizes B/32 (default, as published), B/16, L/14, L/14@336; `published`, the published code
where it differs from the paper; baselines `raw` (unchanged CLIP) and `text` (class names instead of
sketches); ablations `frozen_norms`, `deep`, `single_prompt`, `one_token`, `no_classification`
(configs/clip_default.py); `tiny`, a small network trained from random values on doodles in minutes.

Published (CLIP-AT, CVPR 2023): mAP@200 72.3, P@200 72.5 (table 2 calls the first mAP@all). `text`
52.3, 61.2; `frozen_norms` 69.1, 71.1 (table 1; 69.8, 70.1 in table 2); `deep` 70.2, 71.8;
`no_classification` 70.3, 71.0; `one_token` mAP@200 67.5.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import clip_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = clip_default.get_config()
    return clip_default.with_arg(config, arg)
