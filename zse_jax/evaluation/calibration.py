"""Fits the probability that a photo shows what was drawn, on classes that the network has not seen.

    python -m zse_jax.evaluation.calibration --checkpoint=runs/sketchy --into=my-model

A logistic regression of "same class" on the similarity of embeddings, for sketches and photos of
the unseen classes of the checkpoint's config (`zse_jax.retrieval.calibration` has the formula). Its
pairs are those that a user sees: each sketch with its `NEAREST` nearest photos. (Over all pairs,
with matches and others weighted alike, nearly every first page would pass 0.5, also where the album
does not have the object.) The two numbers are written to the record of --into, a folder of
`zse_jax.save_pretrained`, whose network may be another one of the same recipe. Without --into, they
are printed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int
from ml_collections import ConfigDict, config_flags

from data_pipelines import paths
from zse_jax.checkpoints import hub, reading
from zse_jax.evaluation import data_selection, domain_means
from zse_jax.retrieval.calibration import Calibration
from zse_jax.retrievers.base import Encoder
from zse_jax.runtime import cli, config_io, sharding
from zse_jax.runtime.console import say

NEAREST = 24
"""Photos of each sketch that are used: a page of results."""


def fit(
    similarity: Float[np.ndarray, "q g"],
    query_labels: Int[np.ndarray, " q"],
    gallery_labels: Int[np.ndarray, " g"],
    nearest: int = NEAREST,
) -> Calibration:
    """The logistic regression of each query's nearest photos.

    Raises:
      ValueError: all of these pairs match, or none does.
    """
    from sklearn.linear_model import LogisticRegression

    first = np.argsort(-similarity, axis=1)[:, :nearest]
    shown = np.take_along_axis(similarity, first, axis=1)
    match = query_labels[:, None] == gallery_labels[first]
    if match.all() or not match.any():
        raise ValueError(
            "A calibration needs sketches and photos of at least two classes: give a checkpoint "
            "whose config has unseen classes."
        )
    # Similarities span about 1: a weak penalty, so that it does not flatten the slope.
    model = LogisticRegression(C=1e6)
    model.fit(shown.reshape(-1, 1), match.ravel())
    return Calibration(float(model.coef_[0, 0]), float(model.intercept_[0]))


def measure(encoder: Encoder, config: ConfigDict, most: int) -> dict[str, Any]:
    """What a record has of a calibration: the numbers, and the classes and images they are from.

    Args:
      encoder: of a checkpoint that was not trained on the unseen classes.
      config: names the images.
      most: sketches, and photos, at most, spread evenly.
    """
    chosen = data_selection.evaluated_items(config, 1, 1)
    mesh = sharding.make_mesh(**config.mesh)
    some = [items.every(-(-len(items) // most)) for items in (chosen.sketches, chosen.photos)]
    sketches, photos = (
        domain_means.embeddings(encoder, encoder.embed, items, config, mesh, progress=True)
        for items in some
    )
    found = fit(sketches @ photos.T, some[0].labels, some[1].labels)
    return {
        **found._asdict(),
        "data": chosen.notes["data"],
        "split": chosen.notes["split"],
        "sketches": len(some[0]),
        "photos": len(some[1]),
    }


def write(folder: str, found: Mapping[str, Any]) -> None:
    """Adds a calibration to the record of a published model.

    Raises:
      ValueError: the folder is not a published model.
    """
    place = hub.find(folder)
    if place is None:
        raise ValueError(
            f"--into={folder} is not a folder of zse_jax.save_pretrained: publish the model first."
        )
    record = hub.read_record(place) or {"sources": [], "unknown": ["the weights"]}
    paths.replace(place / hub.TRAINED, json.dumps({**record, "calibration": dict(found)}) + "\n")


def define_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """The command line; the config's default is the one inside --checkpoint."""

    def define(values: flags.FlagValues) -> None:
        help_ = "A workdir, the folder of one step, or a published model."
        flags.DEFINE_string("checkpoint", None, help_, values)
        help_ = "The published model whose record gets the numbers."
        flags.DEFINE_string("into", None, help_, values)
        help_ = "Most sketches, and photos, that are encoded."
        flags.DEFINE_integer("examples", 1500, help_, 2, flag_values=values)

    define(options)
    first = flags.FlagValues()
    define(first)
    first(argv, known_only=True)
    if first.checkpoint:
        config = reading.read_config(first.checkpoint)
        config_io.check_keys(config, cli.config_arguments(argv)[1])
        where = {"flag_values": options, "sys_argv": list(argv)}
        config_flags.DEFINE_config_dict("config", config, "The checkpoint's config.", **where)


def main(options: flags.FlagValues) -> None:
    """Fits, prints and writes."""
    if not options.checkpoint:
        raise ValueError("--checkpoint is missing: pass a workdir, such as runs/x. See --help.")
    found = measure(reading.load(options.checkpoint), options.config, options.examples)
    say(json.dumps(found))
    if options.into:
        write(options.into, found)
        say(f"wrote {options.into}")


if __name__ == "__main__":
    cli.run(main, define_flags)
