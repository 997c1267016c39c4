"""Methods of a network as one program each; without jit, each operation compiles separately."""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx


def compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a network as one program; its string arguments are static."""
    network, function = method.__self__, method.__func__

    def call(*arguments: Any) -> Any:
        static = tuple(i for i, x in enumerate(arguments, start=1) if isinstance(x, str))
        return _program(function, static)(network, *arguments)

    return call


@functools.cache
def _program(function: Callable[..., Any], static: tuple[int, ...]) -> Callable[..., Any]:
    return nnx.jit(function, static_argnums=static)
