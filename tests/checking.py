"""How the tests check types and shapes at each call: with beartype, but for `Literal`.

beartype writes the code of a check at the first call: most functions are not called in a test run.

A wrong choice (`value="theirs"`) is a user's mistake, and the packages answer it with an error that
names the right choices. The tests of those errors have to get past the check.
"""

from collections.abc import Callable
from typing import Any, Literal, get_origin

from beartype import beartype


def checked(function: Callable) -> Callable:
    """`function`, checked against its annotations; a `Literal` may be anything."""
    function.__annotations__ = {
        name: Any if get_origin(hint) is Literal else hint
        for name, hint in function.__annotations__.items()
    }
    check = None

    def checking(*args: Any, **kwargs: Any) -> Any:
        nonlocal check
        check = check or beartype(function)
        return check(*args, **kwargs)

    return checking
