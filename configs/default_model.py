r"""The model that comes with the package, `zse_jax.load("default")`: all 125 classes of Sketchy.

    python -m zse_jax.main --config=configs/default_model.py --workdir=runs/default \
        --config.data.manual_dir=DIR

DIR is as in configs/sketchy_split2.py. All classes train, so that nothing is evaluated as unseen.
The recipe is that of `configs/efficient_sketchy_split2.py:lite0` with no block frozen, whose
results on unseen classes are in docs/results.md. The weights in zse_jax/default_model were
written by

    zse_jax.save_pretrained("runs/default", "zse_jax/default_model", dtype="float16",
                            license="apache-2.0")

and their calibration by

    python -m zse_jax.evaluation.calibration --checkpoint=runs/all --into=zse_jax/default_model

where runs/all is the first run of docs/results.md. Training is deterministic on one machine.
Another processor or version rounds differently: the model is then equivalent, but not equal to the
bit. The weights in zse_jax/default_model were trained on the images that its card describes.

Published: none.
"""

from ml_collections import ConfigDict

from configs import efficient_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = efficient_default.with_arg(efficient_default.get_config(), "lite0")
    config.data.split = None
    config.model.frozen_blocks = 0
    config.train.cache_frozen = False
    config.evaluation.classes = "unseen"
    return efficient_default.with_arg(config, arg)
