"""What each of EfficientCNN's three losses is worth: the ablation, on the embedded data set.

    python -m tests.benchmarks.efficient_losses [--seeds 1] [--steps 500] [--rows all ...]

Trains `configs/efficient_sketchy.py:tiny` with every loss and without each of them, on the seen
classes, and ranks all unseen ones: exact mAP@all and P@100 of the last step, in percent, and the
time. The teacher is the network as it is drawn, so the last loss has no ImageNet to preserve here:
the table shows what it costs, not what it is worth with torchvision's weights.

Measured (300 steps, seed 0, 384 x 384 unseen images, 2 cores): mAP@all / P@100
    all three               70.5 / 64.9
    without quadruplet      69.4 / 62.9
    without classification  73.2 / 67.8
    without knowledge       72.0 / 66.6
    quadruplet alone        69.8 / 64.2
    classification alone    66.7 / 60.8
    untrained               18.5 (mAP@all of 128 x 192)
One seed: the 95 % interval of each is about 2.5 points to either side.
"""

import argparse
import contextlib
import io
import tempfile
import time

from absl import flags

from configs import efficient_sketchy
from tests.benchmarks.machine import describe
from zse_jax.runtime import cli
from zse_jax.training import loop

ROWS = {
    "all three": {},
    "without quadruplet": {"model.quadruplet_weight": 0.0},
    "without classification": {"model.classification_weight": 0.0},
    "without knowledge": {"model.knowledge_weight": 0.0},
    "quadruplet alone": {"model.classification_weight": 0.0, "model.knowledge_weight": 0.0},
    "classification alone": {"model.quadruplet_weight": 0.0, "model.knowledge_weight": 0.0},
}


def measure(changes: dict, seed: int, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of all unseen images after the last step, and of the untrained network's subset."""
    config = efficient_sketchy.get_config("tiny")
    config.update_from_flattened_dict(changes)
    config.update({"seed": seed})
    config.train.steps = steps
    config.evaluation.every = steps  # the last step is the best that is known
    config.checkpoint.every = 0
    config.log.tensorboard = False
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        results = loop.train(config.lock(), workdir)
    return results["test"], results["untrained"]


def main() -> None:
    """Trains every row and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    cli.quiet()
    cli.enable_compilation_cache()
    print(describe("jax", "flax"))
    print(f"{options.steps} steps, seeds 0 to {options.seeds - 1}; percent on unseen classes")
    print(
        f"{'losses':24} {'mAP@all':>20} {'P@100':>20} {'untrained':>10} {'seconds':>8}", flush=True
    )
    for row in options.rows:
        began, found = time.perf_counter(), []
        for seed in range(options.seeds):
            found.append(measure(ROWS[row], seed, options.steps))
        columns = [
            " ".join(f"{100 * test[f'embedding/exact/{name}']:.1f}" for test, _ in found)
            for name in ("mAP@all", "P@100")
        ]
        untrained = " ".join(f"{100 * u['embedding/exact/mAP@all']:.1f}" for _, u in found)
        seconds = time.perf_counter() - began
        print(
            f"{row:24} {columns[0]:>20} {columns[1]:>20} {untrained:>10} {seconds:8.0f}", flush=True
        )


if __name__ == "__main__":
    main()
