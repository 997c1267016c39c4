r"""ZSE on your own images: DIR/sketch/<class>/... and DIR/photo/<class>/...

    python -m zse_jax.main --config=configs/folder.py --workdir=runs/mine \
        --config.data.manual_dir=DIR --config.data.unseen=cat,dog

The unseen classes are for evaluation; all others are for training. Images may be at any depth below
a class and of any common type. data_pipelines/builders/folder/layout.py describes how sketches are
paired with photos. Variants and overrides are as in configs/sketchy.py. Check the data first:
`python -m data_pipelines.check --help`.

Published, measured here: none.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.name, config.data.split = "folder", None
    config.evaluation.sketch_stride = 1
    config.evaluation.photo_stride = 1
    return default.with_arg(config, arg)
