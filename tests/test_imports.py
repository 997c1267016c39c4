"""Who may import whom, and when: the arrows between the rooms of the house."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.source import PACKAGES, ROOT, files, module_name, syntax, within

# A report shows what an evaluation found.
_REPORT = {"zse_jax.explain", "zse_jax.retrievers.base", "zse_jax.retrieval.results"}

# What a folder may import of this project; the most specific entry counts. A folder that is not
# listed may import all but the programs.
ALLOWED = {
    "configs": {"configs"},
    "data_pipelines": {"data_pipelines"},
    "zse_jax.models": {"zse_jax.models"},
    "zse_jax.losses": set(),
    "zse_jax.retrievers": {"zse_jax.retrievers", "zse_jax.models", "zse_jax.losses"},
    "zse_jax.retrievers.base": set(),
    "zse_jax.pretrained": {"zse_jax.pretrained", "zse_jax.retrievers", "zse_jax.models"},
    "zse_jax.retrieval": {"zse_jax.retrieval", "zse_jax.retrievers.base"},
    "zse_jax.explain": {"zse_jax.explain", "zse_jax.retrievers.base"},
    "zse_jax.explain.report": _REPORT,
    "zse_jax.explain.report_parts": _REPORT,
    "zse_jax.explain.__main__": set(PACKAGES),
    "zse_jax.gallery": {
        "zse_jax.gallery",
        "zse_jax.retrieval",
        "zse_jax.explain",
        "zse_jax.retrievers.base",
        "zse_jax.checkpoints",
        "zse_jax.runtime",
        "data_pipelines",
    },
}
PROGRAMS = {
    "zse_jax.main",
    "zse_jax.evaluate",
    "zse_jax.convert",
    "zse_jax.hashing",
    "zse_jax.explain.__main__",
}

# They import TensorFlow: seconds of start-up, for nothing unless it is used. (tensorflow_datasets
# does so only when it prepares a data set, and builders need its base class.)
SLOW = ("tensorflow", "clu.metric_writers", "clu.periodic_actions")

FILES = files(*PACKAGES)
MODULES = {module_name(file) for file in FILES}


class Import(NamedTuple):
    """One imported module: where, and whether importing the file imports it."""

    line: int
    module: str
    at_once: bool


def _imports(file: Path) -> list[Import]:
    """Every import of a file, wherever it stands, with the module it really names."""
    here = module_name(file).split(".")
    package = here if file.name == "__init__.py" else here[:-1]

    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                yield from (Import(node.lineno, alias.name, at_once) for alias in node.names)
            case ast.ImportFrom():
                parent = package[: len(package) + 1 - node.level] if node.level else []
                source = ".".join([*parent, *filter(None, [node.module])])
                for alias in node.names:
                    member = f"{source}.{alias.name}"
                    is_module = member in MODULES or member.startswith(("clu.", "tensorflow"))
                    yield Import(node.lineno, member if is_module else source, at_once)
            case _:
                later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                    isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
                )
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, at_once and not later)

    return list(visit(syntax(file), True))


def _may_import(importer: str, imported: str) -> bool:
    room = max((room for room in ALLOWED if within(importer, room)), key=len, default=None)
    if room is None:
        return importer in PROGRAMS or imported not in PROGRAMS
    return any(within(imported, allowed) for allowed in ALLOWED[room])


def test_imports_follow_the_arrows() -> None:
    wrong = [
        f"{file}:{line}: {module_name(file)} may not import {imported}"
        for file in FILES
        for line, imported, _ in _imports(file)
        if imported.split(".")[0] in PACKAGES and not _may_import(module_name(file), imported)
    ]
    assert not wrong, "\n".join([*wrong, "Who may import whom: ALLOWED in tests/test_imports.py"])


def test_tensorflow_is_imported_only_where_it_is_used() -> None:
    wrong = [
        f"{file}:{line}: import {imported} inside the function that needs it"
        for file in FILES
        for line, imported, at_once in _imports(file)
        if at_once and any(within(imported, slow) for slow in SLOW)
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_zse_jax_does_not_import_tensorflow() -> None:
    modules = ", ".join(sorted(m for m in MODULES if within(m, "zse_jax")))
    program = f"import sys, {modules}; print(*{{'tensorflow', 'tensorboard'}} & {{*sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
