"""A retrieval system, a data set and a config that train in seconds, for tests.

    python -m tests.zse_jax.tiny WORKDIR [--EVENT-at=STEP ...] [--only=PROCESS] [key=value ...]

trains them in a separate process, with an event while it computes the step after STEP: --die-at
(SIGKILL), --stop-at (SIGSTOP), --term-at (SIGTERM), --hang-at (waits forever), --full-at (cannot
write files above 20 kB). --slow=SECONDS adds to each step. What follows --only applies to one
process.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # before the imports: a fifth of the time of such a short program

import ast
import functools
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from configs import default
from data_pipelines import loading
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Modality, Retriever

SIZE = 8
SIGNALS = {"die": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
CLASSES_PER_ITEM = 3


class Tiny(Retriever):
    """One hidden layer with dropout; the relation is the cosine of embeddings."""

    batch_kind: ClassVar[str] = "quadruplet"
    rankings: ClassVar[dict[str, str]] = {"token": "embedding", "relation": "score"}

    def __init__(
        self, *, width: int = 16, dropout: float = 0.1, image_size: int = SIZE, dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.image_size = image_size
        self.first = nnx.Linear(image_size**2 * 3, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.second = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def encode(self, images: UInt8[Array, "b h w 3"], modality: Modality) -> Float[Array, "b d"]:
        pixels = images.reshape(len(images), -1) / 255 - 0.5
        return self.second(self.dropout(jax.nn.relu(self.first(pixels)))).astype(jnp.float32)

    def embedding(self, features: Float[Array, "b d"]) -> Float[Array, "b d"]:
        return features / jnp.linalg.norm(features + 1e-6, axis=-1, keepdims=True)

    def loss(self, batch: Any) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        def vectors(images: Array, modality: Modality) -> Array:
            flat = self.encode(images.reshape(-1, *images.shape[2:]), modality)
            return self.embedding(flat).reshape(*images.shape[:2], -1)

        sketch, photo = vectors(batch["sketches"], "sketch"), vectors(batch["photos"], "photo")
        distance = 1 - jnp.sum(sketch * photo, axis=-1)
        triplet = jnp.mean(jax.nn.relu(1 + distance[:, 0] - distance[:, 1]))
        return triplet, {"triplet": triplet}


def load_items(name: str, modality: str, classes: Sequence[str], **_: Any) -> loading.Items:
    """A few generated images of each class, in place of a prepared data set."""
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), CLASSES_PER_ITEM)
    encoded = [*_encoded(len(classes), CLASSES_PER_ITEM)]
    names = tuple(f"{classes[label]}/{i}.png" for i, label in enumerate(labels))
    rows = np.arange(len(labels))
    return loading.Items(modality, encoded, rows, labels, tuple(classes), names, names)


@functools.cache
def _encoded(classes: int, count: int) -> tuple[bytes, ...]:
    """PNG files: `count` images of each class, in a colour of the class."""
    generator = np.random.default_rng(0)
    found = []
    for colour in np.repeat(generator.integers(80, 120, (classes, 3)), count, axis=0):
        noise = generator.integers(0, 130, (SIZE, SIZE, 3))
        with io.BytesIO() as file:
            Image.fromarray((colour + noise).astype(np.uint8)).save(file, "PNG")
            found.append(file.getvalue())
    return tuple(found)


def config(**flat: Any) -> ConfigDict:
    """A config for `Tiny`; `flat` sets dotted keys."""
    made = default.get_config()
    made.model = ConfigDict({"system": "tiny", "width": 16, "dropout": 0.1, "image_size": SIZE})
    made.init_from = "random"
    made.data.update(name="doodles", split="doodles", workers=0)
    made.train.update(steps=12, batch_size=8)
    made.optimizer.learning_rate = 1e-3
    made.evaluation.update(every=6, batch_size=8, sketch_stride=1, photo_stride=1)
    made.checkpoint.every = 3
    made.log.update(every=2, tensorboard=False)
    made.update_from_flattened_dict(flat)
    return made.lock()


def system(implementation: str) -> registry.System:
    """A registry entry of a system that only the tests know."""
    return registry.System(implementation, title="tiny", paper="", config="default")


def install(patch: Any = setattr) -> None:
    """Registers system "tiny" and its data; `patch` is `monkeypatch.setattr` in tests.

    Runs with equal steps share what they compile.
    """
    from tests.zse_jax import shared_steps

    shared_steps.install(patch)
    patch(registry, "SYSTEMS", {**registry.SYSTEMS, "tiny": system(f"{__name__}:Tiny")})
    patch(loading, "load_items", load_items)


def main() -> None:
    """Trains in this process; see the docstring of this module."""
    import resource

    from absl import flags

    from zse_jax.runtime import cli, distributed
    from zse_jax.training import loop, profiling

    flags.FLAGS.mark_as_parsed()
    cli.quiet()
    cli.with_message(lambda: distributed.initialize(**distributed.from_arguments([""])))
    install()
    profiling.matrix_rate = lambda dtype: 1e11  # measuring it takes longer than the training
    options = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[2:])
    if int(options.get("only", distributed.this_process())) != distributed.this_process():
        before = list(options).index("only")
        options = dict(list(options.items())[:before])
    options.pop("only", None)
    slow = float(options.pop("slow", 0))
    events = {name: int(options.pop(f"{name}-at", -1)) for name in (*SIGNALS, "hang")}
    note = loop.Run.note

    def deadly(run: loop.Run, step: int, *args: Any, **kwargs: Any) -> None:
        time.sleep(slow)
        for name, at in events.items():
            if step == at and name in SIGNALS:
                os.kill(os.getpid(), SIGNALS[name])
            elif step == at:
                time.sleep(1e6)
        note(run, step, *args, **kwargs)

    loop.Run.note = deadly
    full_at, save = int(options.pop("full-at", -1)), loop.writing.Checkpoints.save

    def limited(checkpoints: Any, step: int, *args: Any) -> None:
        if step == full_at:
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save(checkpoints, step, *args)

    loop.writing.Checkpoints.save = limited
    values = {key: ast.literal_eval(value) for key, value in options.items()}
    cli.with_message(lambda: loop.train(config(**values), sys.argv[1]))
    cli.with_message(distributed.finish)


if __name__ == "__main__":
    sys.modules["tests.zse_jax.tiny"] = sys.modules[__name__]
    main()
