r"""ZSE on DomainNet, sketch -> real (245 seen, 45 unseen classes), downloaded by TFDS.

    python -m zse_jax.main --config=configs/domainnet.py --workdir=runs/domainnet

TFDS downloads the two domains (about 10 GB) into ~/tensorflow_datasets or --config.data.data_dir.
Checkpoints are selected by the protocol's 55 validation classes, which do not train.
The classes and their source are in data_pipelines/splits.py. Variants and overrides are as
in configs/sketchy.py.

Published: no result of ZSE in this setting.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.name = config.data.split = "domainnet"
    return default.with_arg(config, arg)
