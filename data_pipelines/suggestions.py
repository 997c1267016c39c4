"""Suggestions for misspelt names, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name most similar to `name`, or "" if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1)), "")


def suggest(name: str, valid: Iterable[str]) -> str:
    """`" (did you mean X?)"`, or "" if no valid name is similar."""
    near = nearest(name, valid)
    return f" (did you mean {near}?)" if near else ""
