"""Fills a model from a publisher's arrays, strictly in both directions.

A publisher's module has one table, parameter path -> (publisher's name, change of layout). This
module applies it, and raises an error for anything that is left over on either side.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Path = tuple[Any, ...]
"""Attribute names and list positions that lead from a model to one of its parameters."""

LISTED = 20
"""The most names of one kind in an error."""


Layout = Callable[[np.ndarray], np.ndarray]
"""Changes a publisher's array to the layout of the parameter."""


class Source(NamedTuple):
    """The publisher's name of a parameter, and the change of layout."""

    name: str
    layout: Layout = lambda array: array


def transpose(array: np.ndarray) -> np.ndarray:
    """PyTorch's linear weight [out, in] -> kernel [in, out]."""
    return array.T


def convolution(array: np.ndarray) -> np.ndarray:
    """PyTorch's convolution weight [out, in, height, width] -> [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0)


def patch_matrix(array: np.ndarray) -> np.ndarray:
    """The same for a convolution that `models.layers.patches` turned into a matrix product."""
    return convolution(array).reshape(-1, array.shape[0])


def linear(here: Path, there: str, layout: Layout = transpose) -> dict[Path, Source]:
    """Kernel and bias of a PyTorch layer."""
    return {
        (*here, "kernel"): Source(f"{there}.weight", layout),
        (*here, "bias"): Source(f"{there}.bias"),
    }


def norm(here: Path, there: str) -> dict[Path, Source]:
    """Scale and bias of a PyTorch normalisation layer."""
    return {
        (*here, "scale"): Source(f"{there}.weight"),
        (*here, "bias"): Source(f"{there}.bias"),
    }


def batch_norm(here: Path, there: str) -> dict[Path, Source]:
    """Scale, bias and running averages of a PyTorch batch normalisation."""
    return norm(here, there) | {
        (*here, "mean"): Source(f"{there}.running_mean"),
        (*here, "var"): Source(f"{there}.running_var"),
    }


def count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the names contain at the group of `pattern`."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def fill(
    model: nnx.Module,
    arrays: Mapping[str, np.ndarray],
    table: Mapping[Path, Source],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    kept: Callable[[Path], bool] = lambda path: False,
) -> None:
    """Sets every parameter and running average of `model` in place.

    Args:
      model: its `nnx.Param` and `nnx.BatchStat` leaves are filled; each keeps its dtype and
        sharding.
      arrays: the publisher's names and arrays.
      table: the source of each parameter path.
      ignored: names in the publisher's file that its network does not use.
      kept: parameters that the publisher's network does not have; they keep their values.

    Raises:
      ValueError: unused names, parameters without a source, different shapes, integers, or values
        that are NaN or infinite. `LISTED` of each kind are named, and the model is not changed.
    """
    every = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    parameters = {path: parameter for path, parameter in every if not kept(path)}
    problems: dict[str, list[str]] = {
        "not used": _unused(arrays, table, ignored), "missing": [], "shape differs": [],
        "integers": [],
    }  # fmt: skip
    filled = {}
    for path, parameter in parameters.items():
        source = table.get(path)
        where = ".".join(map(str, path))
        if source is None or source.name not in arrays:
            missing = f" (expected as {source.name})" if source else ""
            problems["missing"].append(f"{where}{missing}")
            continue
        given = np.asarray(arrays[source.name])
        try:
            value = source.layout(given)
        except ValueError:
            value = given
        if value.shape != parameter.shape:
            problems["shape differs"].append(
                f"{where} is {tuple(parameter.shape)}, {source.name} is {tuple(given.shape)}"
            )
            continue
        if value.dtype.kind in "iub" and jnp.issubdtype(parameter.dtype, jnp.floating):
            problems["integers"].append(f"{source.name} ({value.dtype}); quantized weights?")
        filled[path] = value
    if any(problems.values()):
        listed = [
            f"  {kind}: {name}"
            for kind, names in problems.items()
            for name in [*names[:LISTED], f"{len(names) - LISTED} others"][: len(names)]
        ]
        raise ValueError(
            "These weights do not fit the model; nothing was loaded. Check that the file and the "
            "model's config are of the same network and size.\n" + "\n".join(listed)
        )
    if damaged := [table[path].name for path, x in filled.items() if not np.isfinite(x).all()]:
        more = f" and {len(damaged) - 5} others" if len(damaged) > 5 else ""
        raise ValueError(
            f"These weights are NaN or infinite in {', '.join(damaged[:5])}{more}; nothing was "
            "loaded. The training that made them diverged, or the file is damaged: use another "
            "checkpoint, or download it again."
        )
    for path, parameter in parameters.items():
        # jnp.asarray compiles each shape
        parameter[...] = jax.device_put(np.asarray(filled[path], parameter.dtype))


def _unused(
    names: Iterable[str], table: Mapping[Path, Source], ignored: Callable[[str], bool]
) -> list[str]:
    used = {source.name for source in table.values()}
    return [name for name in names if name not in used and not ignored(name)]
