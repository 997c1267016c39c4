r"""CLIP-AT on Sketchy, fine-grained: find the very photo that was drawn (104 seen, 21 unseen).

    python -m zse_jax.main --config=configs/clip_sketchy_fine_grained.py --workdir=runs/clip_fg \
        --config.data.manual_dir=DIR

One prompt for both modalities; batches of classes x K pairs (`train.sampler`, `train.batch_size`),
a sketch's negative the nearest other photo of its class in the batch; L_delta and patch shuffling.
None of this was published as code. Acc@1, 5 and 10 of the photo that was drawn, among the photos of
its class and among all. DIR, variants and shorthands are those of configs/clip_sketchy_split2.py.

Published (CLIP-AT, CVPR 2023), within the class: Acc@1 28.68, Acc@5 62.34.
Measured here: Sketchy not yet; `:tiny` from scratch on doodles, seeds 0 and 1: Acc@1 within the
class 0.065, 0.060 (chance 0.021), 4 to 5 minutes on two busy cores.
"""

from ml_collections import ConfigDict

from configs import clip_default, default

VARIANTS = clip_default.VARIANTS | {
    "tiny": clip_default.VARIANTS["tiny"]
    | {
        "depth": 2,
        "hardest_negative": False,  # the nearest ones let training from scratch collapse
        "classification_weight": 0.2,  # 0.5 leaves little but the class
        "train.batch_size": 6, "train.steps": 2000, "train.augment": 0.0625,
        "optimizer.weight_decay": 0.0,
        "evaluation.every": 1000, "evaluation.sketch_stride": 1, "evaluation.photo_stride": 1,
        "checkpoint.every": 200,
    }
}  # fmt: skip
"""Those of `clip_default`, the small one changed to what instances need."""


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: variants and comma-separated key=value shorthands."""
    config = clip_default.get_config()
    config.model.recipe = "fine_grained"
    config.model.prompts = "shared"
    config.train.sampler = "instance_group:4"  # K pairs of each class
    config.train.batch_size = 16  # classes
    config.evaluation.protocol = "fine_grained"
    config.evaluation.select = "embedding/class/Acc@1"
    config.evaluation.sketch_stride = 5  # of the sketches whose photo is in the thinned gallery
    return default.with_arg(config, arg, VARIANTS)
