r"""ZSE on Sketchy, fine-grained: retrieve the photo that was drawn (104 seen, 21 unseen classes).

    python -m zse_jax.main --config=configs/sketchy_fine_grained.py --workdir=runs/sketchy_fg \
        --config.data.manual_dir=DIR

Trains on quadruplets of instances instead of classes (our reading: the published ZSE code has no
fine-grained training) and reports Acc@1, 5 and 10 of the drawn photo, within its class and among
all photos. DIR, variants and overrides are as in configs/sketchy.py. The extension's photos have no
sketches and are not used.

Published: no result of ZSE in this setting; CLIP-AT (CVPR 2023, within the class) Acc@1 28.68,
Acc@5 62.34.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    config = default.get_config()
    config.data.split = "sketchy_split2"
    config.train.sampler = "instance_quadruplet"
    config.evaluation.protocol = "fine_grained"
    config.evaluation.sketch_stride = 5  # among sketches with their photo in the reduced gallery
    config.evaluation.photo_stride = 10
    config.evaluation.select = "relation/class/Acc@1"
    return default.with_arg(config, arg)
