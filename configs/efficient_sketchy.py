r"""EfficientCNN on Sketchy Extended, split 1 (100 seen, 25 unseen classes).

    python -m zse_jax.main --config=configs/efficient_sketchy.py --workdir=runs/efficient_sketchy \
        --config.data.manual_dir=DIR

DIR contains the unpacked benchmark (256x256/, EXTEND_image_sketchy*/). The weights, which the run
downloads, are torchvision's, and also those of the teacher. The teacher's knowledge of each seen
class is computed on first use (one pass over the seen photos), or in advance:

    python -m zse_jax.training.distillation --prepare --config=configs/efficient_sketchy.py \
        --config.data.manual_dir=DIR --config.teacher.knowledge=sketchy.npz

Variants: ResNet-50 (default); lite0 and lite2, our recipe for few images of each class (see
docs/systems.md), which starts from installed packages; and tiny, which trains from random values on
the built-in data set without a download: `--config=configs/efficient_sketchy.py:tiny`. Overrides
follow after commas.

Published: no verified result. Measured here: Sketchy not measured yet; tiny (exact mAP@all, 384 x
384, seed 0): 0.735, with 64-bit codes (python -m zse_jax.hashing) 0.701; untrained 0.185.
"""

from ml_collections import ConfigDict

from configs import efficient_default


def get_config(arg: str = "") -> ConfigDict:
    """The setting, modified by `arg`: comma-separated variants and key=value overrides."""
    return efficient_default.with_arg(efficient_default.get_config(), arg)
