r"""The teacher of an EfficientCNN: its predictions for each seen class.

The teacher is the original ImageNet network: the weights that training starts from
(`config.init_from`), unless `config.teacher.weights` names others. One pass over the photos of the
seen classes gives a distribution over ImageNet's classes for each seen class, the teacher's
knowledge. It is stored in a file (`config.teacher.knowledge`, or knowledge.npz in the workdir) with
fingerprints of the weights, photos and split. Training reads the file, or writes it if it is
missing, and raises an error if a fingerprint differs. Checkpoints contain the knowledge. To write
the file before training:

    python -m zse_jax.training.distillation --prepare --config=configs/efficient_sketchy.py \
        --config.teacher.knowledge=sketchy.npz
"""

import io
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict, config_flags

from data_pipelines import loading, paths
from data_pipelines.suggestions import counted
from zse_jax.checkpoints import initial_weights, reading
from zse_jax.evaluation import data_selection
from zse_jax.retrieval.encoding import encode, fingerprint
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Retriever
from zse_jax.retrievers.efficient_cnn import EfficientCNN, Teacher, class_knowledge
from zse_jax.runtime import cli, consistency, distributed, sharding
from zse_jax.runtime.console import first_line
from zse_jax.training.step import Setup, merge_model, set_up

logger = logging.getLogger(__name__)

FILE = "knowledge.npz"


def teach(
    model: Retriever, config: ConfigDict, mesh: Mesh, setup: Setup, workdir: str | os.PathLike
) -> None:
    """Sets the teacher's knowledge in `model`, in place, if its loss has a weight.

    Args:
      model: an EfficientCNN with its initial weights; the teacher unless `config.teacher.weights`
        names another one.
      config, mesh, setup, workdir: of the run.

    Raises:
      ValueError: weights of another network, a number of classes that differs from the split, a
        class without photos, or a knowledge file made from other weights, photos or classes.
      OSError: a file cannot be read or written.
    """
    assert isinstance(model, EfficientCNN)
    photos = _seen_photos(config, model)
    if model.knowledge is None:
        return
    network = _teacher(model, config, setup)
    marks = fingerprints(network, photos, config)
    file = knowledge_file(config, workdir)
    if not distributed.of_first(_can_be_read(file, config)):
        prepare(config, mesh, network, photos, marks, file)
    model.knowledge[...] = jnp.asarray(read(file, marks))


def check(config: ConfigDict) -> None:
    """Checks that the config names a teacher, and that its weights are available.

    Raises:
      ValueError: the teacher is needed and not named.
      FileNotFoundError: its weights are not on this machine.
    """
    if config.teacher.weights:
        initial_weights.check(config.teacher.weights, "teacher.weights")
    elif config.model.knowledge_weight and initial_weights.is_checkpoint(config.init_from):
        raise ValueError(
            f"config.init_from={config.init_from} is a checkpoint, whose network may differ from "
            "the teacher: name the teacher's weights, --config.teacher.weights=FILE, or train "
            "without it, --config.model.knowledge_weight=0."
        )


def _can_be_read(file: epath.Path, config: ConfigDict) -> bool:
    """Whether the file exists, and, if it is the run's own, is undamaged."""
    if config.teacher.knowledge or not file.exists():  # a file that the user named is kept
        return file.exists()
    try:
        with file.open("rb") as stream, np.load(stream) as saved:
            return saved["knowledge"].ndim == 2
    except Exception as error:  # numpy and zipfile raise many types
        logger.warning("%s is damaged (%s): it is made again.", file, first_line(error))
        return False


def prepare(
    config: ConfigDict,
    mesh: Mesh,
    network: Teacher,
    photos: loading.Items,
    marks: Mapping[str, str],
    file: epath.Path,
) -> None:
    """Writes the knowledge file: one pass of `network` over `photos` of the seen classes."""
    sharding.check_batch_size(mesh, config.evaluation.batch_size, "config.evaluation.batch_size")
    batches = loading.evaluation_batches(
        photos,
        image_size=network.image_size,
        batch_size=config.evaluation.batch_size // jax.process_count(),
        workers=config.data.workers,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    where = sharding.batch_sharding(mesh)
    predictions, labels = encode(
        network, batches, "photo", sharding=where, progress="teacher, photos of the seen classes"
    )
    knowledge = class_knowledge(np.asarray(predictions), labels, photos.class_names)
    contents: dict[str, Any] = {"knowledge": knowledge, **marks}
    if jax.process_index() == 0:
        with io.BytesIO() as stream:
            np.savez(stream, **contents)
            paths.replace(file, stream.getvalue())
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("knowledge")


def read(file: epath.Path, marks: Mapping[str, str]) -> Float[np.ndarray, "c k"]:
    """The knowledge in a file, if its fingerprints are `marks`.

    Raises:
      ValueError: a fingerprint differs, or the file is damaged.
    """
    again = "delete it, or make it again (python -m zse_jax.training.distillation --prepare)"
    try:
        with file.open("rb") as stream, np.load(stream) as saved:
            found = {name: str(saved[name]) if name in saved else "" for name in marks}
            knowledge = saved["knowledge"]
    except Exception as error:
        raise ValueError(
            f"The teacher's knowledge {file} cannot be read ({error}): {again}."
        ) from error
    if differing := [name for name in marks if found[name] != marks[name]]:
        raise ValueError(
            f"The teacher's knowledge {file} is stale: it was made from other "
            f"{', '.join(differing)}. To use the present ones, {again}, or name another file: "
            "--config.teacher.knowledge."
        )
    return knowledge


def fingerprints(network: Teacher, photos: loading.Items, config: ConfigDict) -> dict[str, str]:
    """Digests of what the knowledge depends on: `weights`, `photos`, `classes` and `code`.

    The digest of the photos covers all names, classes and bytes.
    """
    classes = (config.data.name, str(config.data.split), *photos.class_names)
    return {
        "weights": fingerprint(network),
        "photos": data_selection.content_digest(photos),
        "classes": consistency.digest(classes),
        "code": consistency.code_digest(*consistency.FEATURE_CODE),
    }


def knowledge_file(config: ConfigDict, workdir: str | os.PathLike | None) -> epath.Path:
    """The path of the knowledge: `config.teacher.knowledge`, or a file in the workdir."""
    if config.teacher.knowledge:
        return reading.absolute(config.teacher.knowledge)
    if not workdir:
        raise ValueError(
            "Name a file for the knowledge: --config.teacher.knowledge=FILE, or --workdir=DIR of "
            "the training that will read it."
        )
    return reading.absolute(workdir) / FILE


def _teacher(model: EfficientCNN, config: ConfigDict, setup: Setup) -> Teacher:
    """The teacher: the network of `model`, or another one with `config.teacher.weights`."""
    if config.teacher.weights:
        model = _initial_model(setup)
        initial_weights.fill_from(model, config.teacher.weights, config.model.system)
    return Teacher(model.backbone, model.image_size)


def _initial_model(setup: Setup) -> EfficientCNN:
    model = merge_model(setup.definition, setup.init())
    assert isinstance(model, EfficientCNN)
    return model


def _check_system(config: ConfigDict) -> None:
    system = registry.system(config.model.system)
    if system.initialization != "distillation" or "teacher" not in config:
        raise ValueError(
            f"This config of the system {config.model.system!r} has no teacher to prepare: use "
            "one such as configs/efficient_sketchy.py."
        )


def _seen_photos(config: ConfigDict, model: EfficientCNN) -> loading.Items:
    _, photos = data_selection.training_items(config)
    if len(photos.class_names) != model.seen_classes:
        raise ValueError(
            f"config.model.seen_classes={model.seen_classes}, but the split has "
            f"{len(photos.class_names)} seen classes: set it to that number."
        )
    return photos


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the command line."""
    config_flags.DEFINE_config_file(
        "config", None, "As for training.", flag_values=options, sys_argv=list(argv)
    )
    flags.DEFINE_bool(
        "prepare", False, "Write the teacher's knowledge; overwrites the file.", options
    )
    flags.DEFINE_string("workdir", None, "Workdir of the training that will read it.", options)


def main(options: flags.FlagValues) -> None:
    """Writes the knowledge file."""
    if not options.prepare or options.config is None:
        raise ValueError("Use --prepare and --config=configs/efficient_sketchy.py. See --help.")
    config = options.config
    _check_system(config)
    mesh = sharding.make_mesh(**config.mesh)
    file = knowledge_file(config, options.workdir)
    initial_weights.check(config.get("init_from"))
    check(config)
    setup = set_up(config, mesh)
    model = _initial_model(setup)
    photos = _seen_photos(config, model)
    if not config.teacher.weights:
        initial_weights.fill_from(model, config.init_from, config.model.system)
    network = _teacher(model, config, setup)
    prepare(config, mesh, network, photos, fingerprints(network, photos, config), file)
    count = counted(len(photos), "photo", "photos")
    print(f"wrote {file}: {model.seen_classes} classes, {count}")


if __name__ == "__main__":
    cli.run(main, define_flags)
