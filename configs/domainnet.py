r"""ZSE on DomainNet, sketch -> real (300 seen, 45 unseen classes), which downloads itself.

    python -m zse_jax.main --config=configs/domainnet.py --workdir=runs/domainnet

TFDS fetches the two domains (about 10 GB) into ~/tensorflow_datasets, or --config.data.data_dir.
Which classes are unseen, and where that comes from: data_pipelines/splits.py. Variants and
shorthands are those of configs/sketchy.py.

Published: no result of ZSE in this setting.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: a variant and comma-separated key=value shorthands."""
    config = default.get_config()
    config.data.name = config.data.split = "domainnet"
    return default.with_arg(config, arg)
