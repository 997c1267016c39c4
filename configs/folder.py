r"""ZSE on your own images: DIR/sketch/<class>/... and DIR/photo/<class>/...

    python -m zse_jax.main --config=configs/folder.py --workdir=runs/mine \
        --config.data.manual_dir=DIR --config.data.unseen=cat,dog

The classes named as unseen are kept from training and ranked in evaluation; all others train. Any
depth below a class and any common image type will do; how sketches find their own photos is told
in data_pipelines/builders/folder/layout.py. Variants and shorthands are those of
configs/sketchy.py. Look at the data first: `python -m data_pipelines.check --help`.

Published and measured: nothing, the data is yours.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: a variant and comma-separated key=value shorthands."""
    config = default.get_config()
    config.data.name, config.data.split = "folder", None
    config.evaluation.sketch_stride = 1
    config.evaluation.photo_stride = 1
    return default.with_arg(config, arg)
