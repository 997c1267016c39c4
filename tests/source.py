"""The project's source code for tests of its rules: files, modules, syntax trees."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "data_pipelines", "zse_jax")


def files(*folders: str) -> list[Path]:
    """Every Python file of these folders, relative to the root."""
    return sorted(p.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("*.py"))


@functools.cache
def syntax(file: Path) -> ast.Module:
    """The syntax tree of a file of `files`."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=str(file))


def module_name(file: Path) -> str:
    """`zse_jax/models/vit.py` -> `zse_jax.models.vit`; a package has the name of its folder."""
    return ".".join(file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts)


def within(module: str, package: str) -> bool:
    """Whether a module is this package or module, or is inside it."""
    return module == package or module.startswith(f"{package}.")
