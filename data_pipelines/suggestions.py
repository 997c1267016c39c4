"""Parts of messages: suggestions for misspelt names, and numbers with their nouns."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name most similar to `name`, or "" if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1)), "")


def suggest(name: str, valid: Iterable[str]) -> str:
    """`" (did you mean X?)"`, or "" if no valid name is similar."""
    near = nearest(name, valid)
    return f" (did you mean {near}?)" if near else ""


def counted(count: int, one: str, several: str) -> str:
    """`"1 file is"` or `"1,234 files are"`, given `"file is"` and `"files are"`."""
    return f"{count:,} {one if count == 1 else several}"
