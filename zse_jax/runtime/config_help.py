"""What every key of a config means: the comments behind the keys in `configs/*default.py`.

The comments are the only source: they are read from the source files, without importing them. This
module renders them for `--print_config` and, as

    python -m zse_jax.runtime.config_help > docs/config.md

the table of all keys. The comment of a key is at the end of its line, or on the lines before it.
What is in square brackets is about the default value, such as its source: it is left out beside
another value.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from rich.table import Table

from zse_jax.runtime import config_io

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

TITLE = """# Config keys

Every key of a config, with its default. `--config.KEY=VALUE` sets it ([training.md](training.md)).
`python -m zse_jax.main --config=configs/sketchy.py --print_config` prints the values of a run.
`None` is no value; the type is that of the others. What is in square brackets is about the default.

This page is the output of the module `zse_jax.runtime.config_help`, which reads the comments in
`configs/`: change these, then write it again.
"""


class Entry(NamedTuple):
    """A key in a file of defaults: its value as Python source, the name of its type, its help."""

    value: str
    type: str
    help: str


def entries(file: Path) -> dict[str, Entry]:
    """The keys that the functions of a file of defaults set, in the order of the file.

    A key whose assignment has no comment has an empty help, as one whose value only differs from
    that of another file.
    """
    source = file.read_text(encoding="utf-8")
    comments, alone = _comments(source)
    found: dict[str, Entry] = {}
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef) or function.args.args:
            continue
        groups = {"config": ""}
        for statement in function.body:
            if not isinstance(statement, ast.Assign):
                continue
            line = statement.lineno
            lines: list[str] = []
            while (line := line - 1) in alone:
                lines.insert(0, comments[line])
            text = " ".join([*lines, *filter(None, [comments.get(statement.end_lineno or 0)])])
            keys = [_key(target, groups) for target in statement.targets]
            for target, key in zip(statement.targets, keys, strict=True):
                if not isinstance(target, ast.Name):
                    found |= _made(key, statement.value, text)
                    continue
                named = next((k for k in keys if k != target.id), _key(statement.value, groups))
                if target.id != "config":
                    groups[target.id] = f"{named or target.id}."
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """The comments by line, and the lines that have nothing else."""
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    return comments, alone


def _key(node: ast.expr, groups: Mapping[str, str]) -> str:
    """The dotted key of `train.steps`, where `groups` has what a name is short for."""
    name, _, rest = ast.unparse(node).partition(".")
    return groups.get(name, f"{name}.") + rest if isinstance(node, ast.Attribute) else ""


def _made(key: str, value: ast.expr, text: str) -> Iterator[tuple[str, Entry]]:
    """The entry of a key, or those of the keys of a group that is given as a dict."""
    match value:
        case ast.Call(func=ast.Name("placeholder"), args=[ast.Name(kind)]):
            yield key, Entry("None", kind, text)
        case ast.Call(func=ast.Name("ConfigDict"), args=[ast.Dict() as values]):
            for name, one in ast.literal_eval(values).items():
                yield f"{key}.{name}", Entry(repr(one), type(one).__name__, text)
        case ast.Call():
            pass  # a group
        case _:
            plain = ast.literal_eval(value)
            yield key, Entry(repr(plain), type(plain).__name__, text)


def defaults() -> dict[str, dict[str, Entry]]:
    """For each system (`config.model.system`), the entries of its file of defaults.

    The first has all keys; the others have their `model` and what differs.
    """
    files = [CONFIGS / "default.py", *sorted(CONFIGS.glob("*_default.py"))]
    found = map(entries, filter(Path.is_file, files))
    return {ast.literal_eval(keys["model.system"].value): keys for keys in found}


def meanings(system: str) -> dict[str, Entry]:
    """The entry of every key of the configs of a system, each with its help.

    A key that the file of the system sets again has the help of both files.
    """
    found = defaults()
    common = next(iter(found.values()), {})
    used = {key: entry for key, entry in common.items() if not key.startswith("model.")}
    for key, entry in found.get(system, {}).items():
        used[key] = _joined(entry, used.get(key))
    return used


def _joined(entry: Entry, common: Entry | None) -> Entry:
    texts = (general(common.help) if common else "", entry.help)
    joined = "; ".join(dict.fromkeys(text.rstrip(".") for text in texts if text))
    return entry._replace(help=joined.replace("; [", " ["))


def general(text: str) -> str:
    """The help of a key without what is in square brackets, which is about its default value."""
    return re.sub(r"\s*\[[^\]]*\]", "", text).strip("; ")


def table(config: ConfigDict, file: ConfigDict) -> Table:
    """Every key of `config`: value, type and help; marked where it differs from that of `file`."""
    known, before = meanings(config.model.system), config_io.flat(file)
    shown = Table(
        box=None,
        pad_edge=False,
        caption="* differs from the config file's value, which is in brackets",
        caption_justify="left",
    )
    for name in ("", "key", "value", "type", "help"):
        shown.add_column(name, overflow="fold")
    for key, value in config_io.flat(config).items():
        changed = key not in before or before[key] != value
        was = f" ({before[key]!r})" if changed and key in before else ""
        entry = known.get(key, Entry("", type(value).__name__, ""))
        help_ = entry.help if entry.value == repr(value) else general(entry.help)
        shown.add_row("*" if changed else "", key, f"{value!r}{was}", entry.type, help_)
    return shown


def page() -> str:
    """The text of `docs/config.md`."""
    parts = [TITLE]
    common: dict[str, Entry] = {}
    for system, keys in defaults().items():
        if not common:
            common = {key: one for key, one in keys.items() if not key.startswith("model.")}
            parts.append(_markdown("All systems", common))
        model = {key: one for key, one in keys.items() if key not in common}
        parts.append(_markdown(f"`{system}`", model))
        other = {
            key: _joined(one, common[key])
            for key, one in keys.items()
            if key in common and one.value != common[key].value
        }
        if other:
            parts.append(_markdown(f"Other defaults of `{system}`", other))
    return "\n".join(parts)


def _markdown(title: str, keys: Mapping[str, Entry]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    rows = [
        f"| `{key}` | `{cell(one.value)}` | {one.type} | {cell(one.help)} |"
        for key, one in keys.items()
    ]
    head = ["| key | default | type | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *head, *rows, ""])


if __name__ == "__main__":
    print(page(), end="")
