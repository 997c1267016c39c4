"""The metrics of every sketch in a file, so that runs can be compared sketch by sketch.

A run writes `queries.npz` into its workdir when it evaluates the test set, or the subset that
selects its best step; `zse_jax.evaluate --queries=FILE` writes any evaluation. The file identifies
sketches and gallery by the content of the images, so that only equal ones are compared.
"""

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float32, Int, UInt64

from data_pipelines import paths
from data_pipelines.loading import Items
from zse_jax.evaluation import training_record
from zse_jax.evaluation.evaluator import Evaluator
from zse_jax.retrieval.results import Evaluation

FILE = "queries.npz"
_VERSION = 1
_VALUE = "value/"


class PerQuery(NamedTuple):
    """An evaluation, sketch by sketch.

    Attributes:
      step: of the checkpoint.
      ranked: what was ranked, as text.
      task: a digest of the gallery and of what is relevant in it.
      metrics: names of the metrics -> their names in tables.
      sketches: identifies each sketch by content and class.
      labels: the class of each sketch, as a number.
      photos: the photo that each sketch shows, as a number: equal ones are not independent.
      values: "ranking/scope/metric" -> value of each sketch in 0..1; NaN where it has none.
    """

    step: int
    ranked: str
    task: str
    metrics: Mapping[str, str]
    sketches: UInt64[np.ndarray, " q"]
    labels: Int[np.ndarray, " q"]
    photos: Int[np.ndarray, " q"]
    values: Mapping[str, Float32[np.ndarray, " q"]]


def of(evaluator: Evaluator, results: Evaluation, step: int) -> PerQuery:
    """The values of `results`, with digests of the images; reads all of them."""
    sketches, photos = evaluator.sketches, evaluator.photos
    kind = "fine-grained" if evaluator.fine_grained else "category"
    gallery = sorted(_keys(photos, instances=evaluator.fine_grained))
    queries = evaluator.config.evaluation.queries
    clusters = results.clusters
    return PerQuery(
        step,
        str(evaluator.ranked),
        _hash("\n".join([kind, queries, *gallery])).hexdigest(),
        results.labels,
        np.array([int(_hash(key).hexdigest(), 16) for key in _keys(sketches)], np.uint64),
        results.sketch_labels.astype(np.int32),
        np.arange(len(sketches)) if clusters is None else np.asarray(clusters),
        {
            f"{ranking}/{scope}/{name}": values.astype(np.float32)
            for ranking, scopes in results.by_query.items()
            for scope, named in scopes.items()
            for name, values in named.items()
        },
    )


def write(file: str | os.PathLike, evaluator: Evaluator, results: Evaluation, step: int) -> None:
    """Writes the metrics of every sketch to `file`. Only process 0 writes."""
    if jax.process_index():
        return
    found = of(evaluator, results, step)
    about = {
        "version": _VERSION, "step": step, "ranked": found.ranked, "task": found.task,
        "metrics": dict(found.metrics),
    }  # fmt: skip
    arrays: dict[str, Any] = {
        "about": np.array(json.dumps(about)), "sketches": found.sketches, "labels": found.labels,
        "photos": found.photos,
    }  # fmt: skip
    arrays |= {_VALUE + name: values for name, values in found.values.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    paths.replace(file, content.getvalue())


def read(file: str | os.PathLike) -> PerQuery | None:
    """The content of `file`; None if there is no such file.

    Raises:
      ValueError: it is damaged, or of another version.
    """
    path = epath.Path(file)
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            if about["version"] != _VERSION:
                raise ValueError(f"its version is {about['version']}, not {_VERSION}")
            values = {
                name.removeprefix(_VALUE): arrays[name]
                for name in arrays.files
                if name.startswith(_VALUE)
            }
            return PerQuery(
                about["step"],
                about["ranked"],
                about["task"],
                about["metrics"],
                arrays["sketches"],
                arrays["labels"],
                arrays["photos"],
                values,
            )
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is not a file of metrics by sketch that this version can read ({error}): "
            "delete it, and write it again with python -m zse_jax.evaluate --queries=FILE."
        ) from error


def _keys(items: Items, instances: bool = False) -> Sequence[str]:
    """Identifies each image by class and content; equal images by their number as well."""
    seen: Counter[str] = Counter()
    keys = []
    digests = training_record.digests(items)
    for label, instance, digest in zip(
        items.labels.tolist(), items.instances, digests, strict=True
    ):
        key = f"{items.class_names[label]}/{instance if instances else ''}/{digest}"
        keys.append(f"{key}/{seen[key]}")
        seen[key] += 1
    return keys


def _hash(text: str) -> Any:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8)
