"""Configs as plain data: flat keys, JSON, differences, and command lines that override them.

A config is an `ml_collections.ConfigDict` of plain values made by a file in `configs/`. It stops
at the programs; modules take typed arguments.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

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
    "data.data_dir",
    "data.workers",
)
"""What may differ when a run is resumed: how long, how it is watched, on which machine. The rest
decides which numbers come out."""

ADDED = {"model.backbone": "resnet50"}
"""Keys that configs of earlier versions do not have, and the value that they stand for."""


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
    """The config that `to_plain` turned into `plain`; None stays open for any type.

    Lists become tuples, which is what they were: a flag can override a tuple, and no list.
    """

    def opened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: opened(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return tuple(value)
        return placeholder(object) if value is None else value

    return ConfigDict(opened(plain)).lock()


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, each with the old and the new value ("-" where absent)."""
    before, after = flat(to_plain(old)), flat(to_plain(new))
    return {
        key: (before.get(key, "-"), after.get(key, "-"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ADDED.get(key)) != after.get(key, ADDED.get(key))
    }


def check_resumable(old: ConfigDict, new: ConfigDict, workdir: str) -> dict[str, tuple[Any, Any]]:
    """The harmless differences between the config of a run and the one it is resumed with.

    Raises:
      ValueError: keys differ that decide the numbers; lists them.
    """
    changed = differences(old, new)
    allowed = set(MAY_CHANGE)
    if new.optimizer.schedule != "constant":
        allowed.discard("train.steps")  # the learning rate at every step hangs on it
    fixed = {
        key: values
        for key, values in changed.items()
        if not any(key == name or key.startswith(name + ".") for name in allowed)
    }
    if fixed:
        raise ValueError(
            f"{workdir} holds a run with another config; differing: {describe(fixed)}. Give these "
            "the values of the run to continue it, or another --workdir to start a new one. "
            f"(May change when resuming: {', '.join(sorted(allowed))}.)"
        )
    return changed


def describe(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """One line: "optimizer.learning_rate 1e-05 -> 0.001, ..."."""
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())


def check_keys(config: ConfigDict, keys: list[str]) -> None:
    """Raises ValueError for the first of `keys` that is no leaf of `config`, naming the nearest."""
    known = flat(config)
    for key in keys:
        if key in known:
            continue
        inside = [name for name in known if name.startswith(key + ".")]
        if inside:
            raise ValueError(
                f"--config.{key} is a group, not a value: set one of its keys, "
                f"{', '.join('--config.' + name for name in inside)}."
            )
        raise ValueError(
            f"--config.{key}: there is no such key. Did you mean --config.{nearest(key, known)}?"
        )


def nearest(name: str, known: Any) -> str:
    """The member of `known` most like `name`; of dotted keys, the last part counts most."""

    def likeness(candidate: str) -> float:
        ratio = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(
            None, name.rpartition(".")[2], candidate.rpartition(".")[2]
        ).ratio()
        return ratio + last

    return max(known, key=likeness)
