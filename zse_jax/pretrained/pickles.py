"""Reads the data in a pickle. Nothing that a pickle names is imported, created or called.

Python's unpickler imports what a pickle names and calls it. Here the operations are decoded by
`pickletools` and interpreted: they build dicts, lists, tuples, numbers and strings. For a name in
the pickle the caller gives a `Known` constructor, or raises `RefusedError`.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

OPERATIONS = 2_000_000
"""The most operations of a pickle; a state dict has about 30 for each tensor."""

DEPTH = 100
"""The deepest nesting of containers."""

ARGUMENTS = 16
"""The most arguments of a call."""

_CONSTANTS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_SIZED = str | bytes | bytearray | list | tuple | dict
_SIMPLE: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip


class RefusedError(ValueError):
    """A file contains something other than data. It was not created."""


class Known(NamedTuple):
    """A name that a pickle may contain, and what stands for it.

    Attributes:
      name: "module.name".
      make: what is called with the pickle's arguments in its place.
    """

    name: str
    make: Callable[..., Any]


class Pending:
    """An object that is complete only after the pickle was read."""

    def restore(self, state: Any) -> None:
        """Takes the state that the pickle gives it; ignored by default."""

    def value(self) -> Any:
        """The object as data.

        Raises:
          ValueError: it was never completed, or contradicts the file.
        """
        raise ValueError("an object in the pickle was never completed")


def run(stream: Any, size: int, find: Callable[[str], Any], stored: Callable[[Any], Any]) -> Any:
    """What the next pickle in `stream` contains, with `Pending` objects; see `plain`.

    Args:
      stream: at the start of a pickle; afterwards at its end.
      size: of the stream in bytes; with repeated parts, arguments may be twice as large.
      find: "module.name" -> a `Known`, or a value that stands for the name.
      stored: persistent id -> the object.

    Raises:
      RefusedError: `find` refuses a name, or an operation that is not for data; names it.
      ValueError: it is damaged, or has more than `OPERATIONS`.
    """
    try:
        return _run(stream, size, find, stored)
    except RefusedError:
        raise
    except Exception as error:  # whatever a damaged pickle leads to, such as an empty stack
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


def plain(root: Any) -> Any:
    """The same data with the values of `Pending` objects.

    Raises:
      RefusedError: a container that contains itself or is nested too deeply, or a name that stands
        alone.
      ValueError: as `Pending.value`.
    """
    done: dict[int, Any] = {}

    def visit(item: Any, depth: int) -> Any:
        if not isinstance(item, dict | list | tuple | Pending):
            return item
        if id(item) in done:
            if (found := done[id(item)]) is done:
                raise RefusedError("a container that contains itself")
            return found
        if depth > DEPTH:
            raise RefusedError(f"containers nested deeper than {DEPTH} levels")
        done[id(item)] = done  # as long as it is being visited
        match item:
            case Known(name):
                raise RefusedError(name)
            case dict():
                for key in item:
                    item[key] = visit(item[key], depth + 1)
                result = item
            case list():
                item[:] = [visit(x, depth + 1) for x in item]
                result = item
            case Pending():
                result = item.value()
            case _:
                result = tuple(visit(x, depth + 1) for x in item)
        done[id(item)] = result
        return result

    return visit(root, 0)


def call(function: Any, arguments: Any) -> Any:
    """What a `Known` makes of a pickle's arguments; raises RefusedError for anything else."""
    if not isinstance(function, Known) or type(arguments) is not tuple:
        raise RefusedError(f"a call of a {type(function).__name__}")
    if len(arguments) > ARGUMENTS:
        raise RefusedError(f"a call with more than {ARGUMENTS} arguments")
    return function.make(*arguments)


def _run(stream: Any, size: int, find: Callable[[str], Any], stored: Callable[[Any], Any]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    left = (1 << 20) + 2 * size

    def above_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if number > OPERATIONS:
            raise RefusedError(f"a pickle of more than {OPERATIONS:,} operations")
        name = operation.name
        if name in _CONSTANTS:
            stack.append(argument)
            continue
        if name in _SIMPLE:
            stack.append(_SIMPLE[name]())
            continue
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPERSID":
                stack.append(stored(stack.pop()))
            case "GLOBAL":
                stack.append(find(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(find(".".join((module, attribute))))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(call(function, arguments))
                left -= 1 + sum(len(x) for x in arguments if isinstance(x, _SIZED))
                if left < 0:
                    raise RefusedError("calls with more arguments than the file contains")
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Pending):
                    stack[-1].restore(state)
                elif type(stack[-1]) is not OrderedDict:  # whose attributes are not data
                    raise RefusedError(f"a state of a {type(stack[-1]).__name__}")
            case "SETITEM" | "SETITEMS" | "DICT":
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else above_mark()
                if name == "DICT":
                    stack.append({})
                set_items(stack[-1], items)
            case "APPEND" | "APPENDS" | "LIST":
                items = [stack.pop()] if name == "APPEND" else above_mark()
                if name == "LIST":
                    stack.append([])
                if type(stack[-1]) is not list:
                    raise RefusedError(f"items of a {type(stack[-1]).__name__}")
                stack[-1].extend(items)
            case "POP":
                stack.pop()
            case "POP_MARK":
                above_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "INST":
                raise RefusedError(argument.replace(" ", ".", 1))
            case _:
                raise RefusedError(f"the pickle operation {name}")
    raise ValueError("it has no end")


def set_items(target: Any, items: list[Any]) -> None:
    """Sets alternating keys and values; raises RefusedError if they are not those of a dict."""
    if type(target) not in (dict, OrderedDict):
        raise RefusedError(f"items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int, float, bool, bytes, type(None)):
            raise RefusedError(f"a {type(key).__name__} as a key of a dict")
        if type(key) is int and abs(key) >= 1 << 60:  # could be made to collide
            raise RefusedError("a key of a dict with more than 60 bits")
        target[key] = value
