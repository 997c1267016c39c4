"""Rematerialisation: the backward pass computes a block's inside again instead of keeping it.

Between forward and backward pass only what goes into each block is held. For about a third more
work this takes a network's activations from all that its blocks compute to one array per block
(Chen et al., arXiv 1604.06174).
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

SWITCH = "rematerialised"
"""The attribute of a block that says whether it is."""


def rematerialisable(call: Callable[..., Any]) -> Callable[..., Any]:
    """Marks the `__call__` of a block that `rematerialise` can switch; off until then."""
    again = nnx.remat(call)

    @functools.wraps(call)
    def switched(block: nnx.Module, *inputs: Any) -> Any:
        return (again if getattr(block, SWITCH, False) else call)(block, *inputs)

    switched.rematerialisable = True  # type: ignore[attr-defined]  # a mark on a function
    return switched


def rematerialise(model: nnx.Module) -> int:
    """Switches rematerialisation on in every block of `model`, in place; how many there are."""
    blocks = [
        module
        for _, module in nnx.iter_modules(model)
        if hasattr(type(module).__call__, "rematerialisable")
    ]
    for block in blocks:
        setattr(block, SWITCH, True)
    return len(blocks)
