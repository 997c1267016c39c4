"""Configs as plain data: flat keys, JSON, differences, and checks of command-line overrides.

A config is an `ml_collections.ConfigDict` of plain values made by a file in `configs/`. Only the
programs and `training/` use it; modules take typed arguments.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from data_pipelines import paths

MAY_CHANGE = (
    "train.steps",
    "train.remat",
    "train.spike",
    "train.stall_seconds",
    "target",
    "teacher",
    "evaluation",
    "profile",
    "checkpoint",
    "log",
    "mesh",
    "data.manual_dir",
    "data.name_as",
    "data.data_dir",
    "data.workers",
    "train.frozen_dir",
)
"""Keys that may change when a run is resumed: its length, monitoring and machine. All other keys
influence the results."""

ALIKE = (
    "data.content",
    "data.data_dir",
    "data.images_per_class",
    "data.manual_dir",
    "data.name_as",
    "data.workers",
    "target.manual_dir",
    "target.name_as",
    "evaluation.batch_size",
    "evaluation.every",
    "evaluation.rankings",
    "evaluation.select",
    "evaluation.shortlists",
    "evaluation.storage",
    "evaluation.test_photo_stride",
    "evaluation.test_sketch_stride",
)
"""Keys of `data`, `target` and `evaluation` that do not change the value of a validation metric."""

RENAMED = {"train.vary": "train.augment"}
"""Keys of earlier versions and their present names, in the same group. `from_plain` accepts the old
names; in a command line or a config file they are errors."""

ADDED: dict[str, Any] = {
    "model.backbone": "resnet50",
    "model.frozen_statistics": False,
    "model.prompt_depth": 1,
    "model.preprocessing": "crop",
    "model.centred": False,
    "evaluation.allow_trained": False,
    "evaluation.classes": "unseen",
    "train.mirror": False,
    "train.variants": 1,
    "train.cache_frozen": False,
    "train.frozen_dir": None,
    "model.frozen_blocks": 0,
    "model.pyramid": False,
    "model.map_norm": "place",
    "model.contrastive_weight": 0.0,
    "model.temperature": 0.1,
    "model.classifier_scale": 0.0,
    "model.retrieval_layer": "projection",
    "evaluation.expansion": 0,
    "evaluation.pooled_tokens": False,
    "evaluation.intervals": "sketches",
    "data.images_per_class": None,
    "data.lists": None,
    "data.name_as": None,
    "data.content": None,
    "target.lists": None,
    "target.name_as": None,
    "target.content": None,
}
"""Keys that configs of earlier versions do not have, and the value that they stand for (besides
None)."""

RECORDED = ("data.content", "target.content")
"""Keys that a run sets itself; in configs of earlier versions they have no value."""

EMPTY = {"init_from": "random"}
"""Keys that runs of earlier versions left at None, and what this meant."""


def flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaf values by their dotted keys: {"train.steps": 20000, ...}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts of JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def from_plain(plain: Mapping[str, Any]) -> ConfigDict:
    """The config that `to_plain` turned into `plain`; accepts keys of earlier versions.

    None becomes a placeholder for a value of any type. Lists become tuples, because a flag can
    override a tuple but not a list.
    """

    def restored(value: Any, prefix: str = "") -> Any:
        if isinstance(value, Mapping):
            names = {key: RENAMED.get(prefix + key, str(key)).rpartition(".")[2] for key in value}
            return {names[key]: restored(value[key], f"{prefix}{key}.") for key in value}
        if isinstance(value, list):
            return tuple(value)
        return placeholder(object) if value is None else value

    found = ConfigDict(restored(plain))
    if found.get("init_from", "") is None and found.get("teacher") is not None:
        found.init_from = found.teacher.weights  # earlier, EfficientCNN started from these
    for key, value in ADDED.items():
        group, _, name = key.partition(".")
        if name and group != "model" and group in found and name not in found[group]:
            found[group][name] = restored(value)  # not of "model", whose keys depend on its system
    return found.lock()


def write_yaml(config: ConfigDict, file: str | os.PathLike) -> None:
    """Writes the config as YAML of plain values; `read_yaml` reads it.

    Raises:
      OSError: the file cannot be written.
    """
    text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
    paths.replace(file, text)


def read_yaml(file: str | os.PathLike) -> ConfigDict:
    """The config that `write_yaml` wrote.

    Raises:
      ValueError: the content is not a config.
      OSError: the file cannot be read.
    """
    try:
        plain = yaml.safe_load(epath.Path(file).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{file} is not a config: it has no keys.")
    return from_plain(plain)


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, each with the old and the new value ("-" where absent)."""
    before, after = flat(to_plain(old)), flat(to_plain(new))

    for values in (before, after):
        values |= {key: EMPTY[key] for key in EMPTY if values.get(key, "") is None}

    def same(key: str) -> bool:
        if key in RECORDED and None in (before.get(key), after.get(key)):
            return True
        if key in before and key in after:
            return before[key] == after[key]
        return before.get(key, after.get(key)) in (None, ADDED.get(key))

    return {
        key: (before.get(key, "-"), after.get(key, "-"))
        for key in sorted(before.keys() | after.keys())
        if not same(key)
    }


def check_resumable(old: ConfigDict, new: ConfigDict, workdir: str) -> dict[str, tuple[Any, Any]]:
    """The allowed differences between the config of a run and the one it is resumed with.

    Raises:
      ValueError: keys differ that influence the results; lists them.
    """
    changed = differences(old, new)
    fixed = {
        key: values
        for key, values in changed.items()
        if not any(key == name or key.startswith(name + ".") for name in MAY_CHANGE)
    }
    if fixed:
        raise ValueError(
            f"{workdir} contains a run with another config; differing: {describe(fixed)}. To "
            "resume the run, give these keys its values; to start a new one, give another "
            f"--workdir. (May change when resuming: {', '.join(sorted(MAY_CHANGE))}.)"
        )
    return changed


def validation_setting(config: ConfigDict) -> str:
    """A digest of what a validation ranks, and how: metrics of different settings do not compare.

    It covers `data`, `target` and `evaluation` without `ALIKE`. Keys without a value do not count,
    so that a key which a later version adds changes nothing.
    """
    groups = {name: config.get(name, {}) for name in ("data", "target", "evaluation")}
    values = json.loads(json.dumps(flat(groups)))
    counting = {key: value for key, value in values.items() if value and key not in ALIKE}
    return hashlib.sha256(json.dumps(counting, sort_keys=True).encode()).hexdigest()[:12]


def describe(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """One line: "optimizer.learning_rate 1e-05 -> 0.001, ..."."""
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())


def check_keys(config: ConfigDict, keys: list[str]) -> None:
    """Checks that `config` has these leaf `keys`, and that none of its keys was renamed.

    Raises:
      ValueError: for the first that is wrong; names the right or the nearest key.
    """
    known = flat(config)
    for key in [*known, *keys]:
        if key in RENAMED:
            raise ValueError(f"config.{key} was renamed: write config.{RENAMED[key]}.")
        if key in known:
            continue
        inside = [name for name in known if name.startswith(key + ".")]
        if inside:
            raise ValueError(
                f"--config.{key} is a group, not a value: set one of its keys, "
                f"{', '.join('--config.' + name for name in inside)}."
            )
        raise ValueError(
            f"--config.{key} does not exist. Did you mean --config.{nearest(key, known)}?"
        )


def nearest(name: str, known: Any) -> str:
    """The most similar name in `known`; the last part of dotted keys counts twice."""

    def similarity(candidate: str) -> float:
        pairs = (name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(known, key=similarity)
