r"""ZSE on Sketchy, fine-grained: find the very photo that was drawn (104 seen, 21 unseen classes).

    python -m zse_jax.main --config=configs/sketchy_fine_grained.py --workdir=runs/sketchy_fg \
        --config.data.manual_dir=DIR

Trains on quadruplets of instances instead of classes (our reading: the published ZSE code has no
fine-grained training) and reports Acc@1, 5 and 10 of the photo that was drawn, among the photos of
its class and among all. DIR, variants and shorthands are those of configs/sketchy.py; the
extension's photos belong to no sketch and take no part.

Published: ZSE no result in this setting; CLIP-AT (CVPR 2023) Acc@1 28.68, Acc@5 62.34, within the
class.
Measured here: not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: a variant and comma-separated key=value shorthands."""
    config = default.get_config()
    config.data.split = "sketchy_split2"
    config.train.sampler = "instance_quadruplet"
    config.evaluation.protocol = "fine_grained"
    config.evaluation.sketch_stride = 5  # of the sketches whose photo is in the thinned gallery
    config.evaluation.photo_stride = 10
    config.evaluation.select = "relation/class/Acc@1"
    return default.with_arg(config, arg)
