"""The tree as the tests of its own rules see it: files, modules, syntax trees."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "data_pipelines", "zse_jax")


def files(*rooms: str) -> list[Path]:
    """Every Python file of these folders of the tree, relative to its root."""
    return sorted(p.relative_to(ROOT) for room in rooms for p in (ROOT / room).rglob("*.py"))


@functools.cache
def syntax(file: Path) -> ast.Module:
    """The syntax tree of a file of `files`."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=str(file))


def module_name(file: Path) -> str:
    """`zse_jax/models/vit.py` -> `zse_jax.models.vit`; a package is named for its folder."""
    return ".".join(file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts)


def within(module: str, room: str) -> bool:
    """Whether a module is this room (a package or a module) or lies in it."""
    return module == room or module.startswith(f"{room}.")
