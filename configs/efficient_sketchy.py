r"""EfficientCNN on Sketchy Extended, split 1 (100 seen, 25 unseen classes).

    python -m zse_jax.main --config=configs/efficient_sketchy.py --workdir=runs/efficient_sketchy \
        --config.data.manual_dir=DIR --config.teacher.weights=resnet50.safetensors

DIR holds the unpacked benchmark (256x256/, EXTEND_image_sketchy*/); the weights are torchvision's.
What they know of each seen class is computed on first use (a pass over the seen photos), or before:

    python -m zse_jax.training.distillation --prepare --config=configs/efficient_sketchy.py \
        --config.teacher.weights=resnet50.safetensors --config.teacher.knowledge=sketchy.npz

Variants: ResNet-50 (default), and tiny, which trains from scratch on the embedded data set without
any download: `--config=configs/efficient_sketchy.py:tiny`. Shorthands follow after commas.

Published: no figures at hand. Measured here: Sketchy not yet; tiny (exact mAP@all, 384 x 384, seed
0): 0.735, with 64-bit codes (python -m zse_jax.hashing) 0.701; untrained 0.185.
"""

from ml_collections import ConfigDict

from configs import efficient_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, changed by `arg`: a variant and comma-separated key=value shorthands."""
    return efficient_default.with_arg(efficient_default.get_config(), arg)
