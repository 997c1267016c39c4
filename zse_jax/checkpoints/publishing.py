"""Publishes models: `zse_jax.save_pretrained`, and the model card.

The card states what the model is, what it was trained on, which classes are valid for zero-shot
evaluation, the metrics and their conventions, how to load the model, and its limits. If the licence
or the metrics are unknown, the card says so.
"""

import functools
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import class_names, paths, splits
from zse_jax.checkpoints import hub, initial_weights, reading
from zse_jax.checkpoints.arrays import Arrays, checksums, flat_arrays, split_model
from zse_jax.pretrained import files, sources
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Retriever
from zse_jax.runtime import config_io
from zse_jax.runtime.console import first_line
from zse_jax.version import __version__

CONVENTIONS = {
    "exact": "divides the precisions at the hits by min(k, number of relevant photos)",
    "voc": "interpolates precision first, as the ZSE code does, and reads higher",
    "hits": "divides by the hits among the first k, and reads higher still at small k",
}
"""Descriptions of the conventions of average precision."""

PLACES = (
    "data.manual_dir", "data.data_dir", "data.lists", "target.manual_dir", "target.lists",
    "teacher.knowledge", "train.frozen_dir",
)  # fmt: skip
"""Keys of a config that name folders and files of the machine."""

PACKAGES = ("jax", "flax", "safetensors")
"""Packages whose versions a card lists."""


def save_pretrained(
    source: Retriever | str | os.PathLike,
    target: str | os.PathLike,
    *,
    config: ConfigDict | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    private: bool = True,
    dtype: Literal["float16"] | None = None,
    adapters_only: bool = False,
    base: str | os.PathLike | None = None,
) -> str:
    """Writes a model for `zse_jax.load`, with its card; returns its path.

    Args:
      source: a workdir, the folder of one step, or a retriever, with its present weights.
      target: a new or an empty folder, a folder in a bucket, or hf://owner/name on the Hugging
        Face Hub (needs huggingface_hub and a login: `hf auth login`).
      config: required for a retriever that was not loaded from a checkpoint.
      metrics: "ranking/convention/name" -> 0 to 1; None: those of the checkpoint, if any.
      license: of the weights, in the hub's terms ("apache-2.0"); None: the card says "not stated".
      private: whether a new repository on the hub is private.
      dtype: "float16" rounds the arrays, which halves the file; they are read as float32 again.
        None: as they are.
      adapters_only: leave out the parameters that did not train, such as those beside which CMCA's
        adapters are. `zse_jax.load` reads them from the base weights, `config.init_from`, and
        compares their checksums, as this function does before it writes.
      base: with `adapters_only`, where the base weights are now, if not where the config names
        them; it is not recorded.

    Raises:
      FileNotFoundError: `source` contains no checkpoint, or the base weights are not available.
      FileExistsError: `target` is not empty.
      ValueError: the config of `source` is not known; values exceed the range of float16; the
        hub's client is missing; `base` is given without `adapters_only`; or, with it, all
        parameters trained, or the others are not those of a publisher's weights.
      OSError: it could not be written or uploaded.
    """
    if base is not None and not adapters_only:
        raise ValueError(f"base={base} is for adapters_only=True: leave it out, or set both.")
    repository = hub.repository(target)
    folder = None if repository else reading.new_folder(target)
    client = sources.client() if repository else None
    name = repository.name if repository else epath.Path(os.fspath(target)).name
    retriever, about = _about(source, config, metrics)
    arrays = {name: np.asarray(leaf) for name, leaf in _parameters(retriever).items()}
    if adapters_only:
        about["base"] = left_out = _base(retriever, arrays, about["config"], base)
        arrays = {name: array for name, array in arrays.items() if name not in left_out["digests"]}
        about["digests"] = checksums(arrays)
    if dtype is not None:
        arrays = {name: _rounded(name, array, np.dtype(dtype)) for name, array in arrays.items()}
        wide = {name: array.astype(np.float32) for name, array in arrays.items()}
        about["digests"] = checksums(wide)
        about["measured"] += f", before rounding to {dtype}" if about["measured"] else ""
    record = about.pop("record")
    with tempfile.TemporaryDirectory() as written:
        text = card(about, name=name, license=license)
        _write(Path(written), arrays, about, record, text)
        if adapters_only:
            _check_base(written, base, target)
        if repository:
            return _upload(client, repository, written, private)
        assert folder is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in hub.FILES:
                paths.replace(folder / file, (Path(written) / file).read_bytes())
        except OSError as error:
            raise OSError(f"The model could not be written to {folder}: {error}.") from error
    return os.fspath(folder)


def card(about: Mapping[str, Any], *, name: str, license: str | None = None) -> str:
    """The model card, in Markdown with the hub's front matter.

    Args:
      about: the content of config.json.
      name: "owner/name", or the name of a folder.
      license: of the weights, or None.
    """
    config = about["config"]
    data, model = config["data"], config["model"]
    split = splits.SPLITS.get(data["split"] or "")
    system = registry.system(model["system"])
    columns, rows = _table(about["metrics"])
    unseen = list(split.unseen) if split else [*class_names.listed(data.get("unseen"))]
    trained = about.get("training_data") or summary(None)
    leak = _trained_on_unseen(trained, unseen)
    return _template().render(
        name=name,
        license=license,
        about=about,
        system=system.title,
        paper=system.paper,
        model=model,
        data=data,
        start=(start := initial_weights.started_from(config_io.from_plain(config))),
        random=start == initial_weights.RANDOM_VALUES,
        evaluated=target if (target := config["target"])["name"] else data,
        seen=len(split.seen) if split else None,
        unseen=unseen,
        leak=leak,
        trained=trained,
        columns=columns,
        rows=rows,
        conventions={k: v for k, v in CONVENTIONS.items() if any(k in row[0] for row in rows)},
        select=config["evaluation"]["select"],
        results=[] if leak else _model_index(about),
        versions={package: metadata.version(package) for package in PACKAGES},
        python=platform.python_version(),
    )


def _about(
    source: Retriever | str | os.PathLike,
    config: ConfigDict | None,
    metrics: Mapping[str, float] | None,
) -> tuple[Retriever, dict[str, Any]]:
    """The retriever, and the content of its config.json."""
    step, measured = None, "given with the model"
    if isinstance(source, Retriever):
        retriever = source
        config = config or reading.config_of(retriever)
        if config is None:
            raise ValueError(
                f"The config of this {type(source).__name__} is not known, because it was not "
                "loaded from a checkpoint: use save_pretrained(..., config=config)."
            )
    else:
        step, retriever = reading.load_step(source)
        config = config or reading.config_of(retriever)
        assert config is not None
        if metrics is None:
            metrics, measured = _metrics(source, step)
    flat = _parameters(retriever)
    about = {
        "library": hub.LIBRARY,
        "version": __version__,
        "step": step or 0,
        "parameters": int(sum(leaf.size for leaf in flat.values())),
        "metrics": {key: float(value) for key, value in (metrics or {}).items()},
        "measured": measured if metrics else "",
        "config": config_io.to_plain(_without_places(config)),
        "digests": checksums(flat),
        "record": (record := reading.record_of(retriever)),
        "training_data": summary(record),
    }
    return retriever, about


def _without_places(config: ConfigDict) -> ConfigDict:
    """The config without the folders and files of this machine, which mean nothing on another."""
    kept = config.copy_and_resolve_references()
    with kept.unlocked():
        for key in PLACES:
            group, name = key.split(".")
            if name in kept.get(group, {}):
                kept[group][name] = None
    return kept


def summary(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """What trained, without the digests of the images; see `training_record`."""
    record = record or {"sources": [], "unknown": ["the weights"]}
    keys = ("data", "split", "classes")
    return {
        "sources": [{key: source[key] for key in keys} for source in record["sources"]],
        "unknown": record["unknown"],
        "not_zero_shot": record.get("not_zero_shot"),
        "selection": record.get("selection"),
    }


def _trained_on_unseen(trained: Mapping[str, Any], unseen: Sequence[str]) -> str | None:
    """Which unseen classes trained, as text; None if none is known to."""
    seen = [name for source in trained["sources"] for name in source["classes"]]
    if same := splits.same_classes(unseen, seen):
        return f"trained on {len(same)} of {len(unseen)} unseen classes ({', '.join(same)})"
    return trained["not_zero_shot"]


def _parameters(retriever: Retriever) -> Arrays:
    return flat_arrays(split_model(retriever)[1]["model"])


def _base(
    retriever: Retriever,
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    path: str | os.PathLike | None,
) -> dict[str, Any]:
    """Name and checksums of the weights that training did not change."""
    paths_of = nnx.to_flat_state(nnx.state(retriever, nnx.Param))
    frozen = [
        "/".join(map(str, path)) for path, _ in paths_of if retriever.parameter_group(path) is None
    ]
    if not frozen:
        raise ValueError(
            f"All parameters of this {type(retriever).__name__} train: save it without "
            "adapters_only."
        )
    name = config.get("init_from")
    if name is None or name == initial_weights.RANDOM or not hub.is_weights(path or name):
        raise ValueError(
            f"The model started from {name}, which is not a publisher's weights that a reader "
            "could load adapters onto (config.init_from): save it without adapters_only."
        )
    return {"name": name, "digests": checksums({key: arrays[key] for key in frozen})}


def _check_base(written: str, base: str | os.PathLike | None, target: str | os.PathLike) -> None:
    """Raises, with the name of the target, unless the base weights are those in the config."""
    try:
        hub.load(epath.Path(written), base)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace(written, os.fspath(target))) from error


def _rounded(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A floating-point array in a smaller type; others are unchanged."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    if np.abs(array).max(initial=0) > np.finfo(dtype).max:
        raise ValueError(f"{name} has values that {dtype} cannot represent: save it without dtype.")
    return array.astype(dtype)


def _metrics(source: str | os.PathLike, step: int) -> tuple[dict[str, float], str]:
    """The final evaluation of a checkpoint, or the validation by which it was chosen."""
    if folder := hub.find(source):
        about = hub.read_about(folder)
        return about["metrics"], about["measured"]
    file = reading.absolute(source) / "metrics.json"
    found = paths.read_json(file) or {}
    if found.get("step") == step and found.get("test"):
        return found["test"], "all sketches and photos of the unseen classes"
    with reading.find(source) as (manager, _):
        return reading.metrics_of(manager, step), "the subset by which checkpoints are chosen"


def _write(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    text: str,
) -> None:
    files.write(folder / hub.WEIGHTS, arrays, metadata={"format": "zse_jax"})
    paths.replace(folder / hub.CONFIG, json.dumps(about, indent=2) + "\n")
    paths.replace(folder / hub.TRAINED, json.dumps(record) + "\n")
    paths.replace(folder / hub.CARD, text)


def _upload(client: Any, repository: sources.Repository, folder: str, private: bool) -> str:
    api = client.HfApi()
    try:
        api.create_repo(repository.name, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=repository.name,
            revision=repository.revision,
            folder_path=folder,
            commit_message=f"Upload from zse_jax {__version__}",
        )
    except Exception as error:  # the client's errors have no common class
        raise OSError(
            f"The model could not be uploaded to {sources.HUB}{repository.name} "
            f"({first_line(error)}). Log in with `hf auth login` and a token with write "
            "access, and check the name."
        ) from error
    return f"{sources.HUB}{repository.name}"


def _table(metrics: Mapping[str, float]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column names, and rows of percentages, such as ("relation/exact", ["41.3", ...])."""
    columns = list(dict.fromkeys(key.rpartition("/")[2] for key in metrics))
    names = dict.fromkeys(key.rpartition("/")[0] for key in metrics)
    return columns, [
        (
            name,
            [
                f"{100 * metrics[key]:.1f}" if (key := f"{name}/{column}") in metrics else "-"
                for column in columns
            ],
        )
        for name in names
    ]


def _model_index(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics in the hub's format: those that papers compare."""
    return [
        {"type": key.rpartition("/")[2], "name": key.replace("/", ", "), "value": round(value, 4)}
        for key, value in about["metrics"].items()
        if "/exact/" in key or key.count("/") < 2
    ]


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("zse_jax.checkpoints"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    return environment.get_template("model_card.md")
