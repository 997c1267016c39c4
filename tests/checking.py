"""How the tests check types and shapes at each call: by beartype, in a scope of jaxtyping's.

jaxtyping's import hook decorates every function and dataclass of the packages with
`jaxtyping.jaxtyped`, which writes two functions for each, binds the arguments of each call and
checks them twice. In its place, `scoped` has one check, which is written at the first call: most
functions are not called in a test run. A third of the cost of checking is saved.
"""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, get_origin, get_type_hints

import jaxtyping
from beartype import beartype

thorough = jaxtyping.jaxtyped


def install(packages: list[str]) -> None:
    """Checks what is imported of `packages` from now on."""
    jaxtyping.jaxtyped = scoped
    jaxtyping.install_import_hook(packages, f"{checked.__module__}.{checked.__name__}")


def scoped(*, typechecker: Callable) -> Callable:
    """In place of `jaxtyping.jaxtyped`, as its import hook calls it."""
    return functools.partial(_scoped, typechecker)


def _scoped(typechecker: Callable, function: Any) -> Any:
    """`function` with a check, in which a name of a dimension means one size within a call.

    It leaves to the original what needs the values of arguments, as the size in
    `Float[Array, "{size}"]` does, and what is not a function.
    """
    sized = any("{" in str(hint) for hint in getattr(function, "__annotations__", {}).values())
    if not inspect.isfunction(function) or sized:
        return thorough(typechecker=typechecker)(function)
    check = None

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal check
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        check = check or typechecker(function)
        with thorough("context"):
            return check(*args, **kwargs)

    return checking


def checked(function: Callable) -> Callable:
    """`function`, checked against its annotations by beartype, as far as these can be read.

    A `Literal` may be anything: a wrong choice (`value="theirs"`) is a user's mistake, and the
    packages answer it with an error that names the right choices. The tests of those errors have to
    get past the check.
    """
    names = function.__globals__
    function.__annotations__ = {
        name: _checkable(hint, names) for name, hint in function.__annotations__.items()
    }
    return beartype(function)


def _checkable(hint: Any, names: dict[str, Any]) -> Any:
    """The hint; `Any` for a `Literal`, and for names that are imported for type checkers alone."""
    if get_origin(hint) is Literal:
        return Any
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__={"_": hint}), names, None, True)
    except NameError:
        return Any
    return hints["_"]
