"""The allowed imports: no cycles between files or folders, and no import of a higher layer.

An import counts wherever it is written: at module level, in a function, or under TYPE_CHECKING. The
name of a module in a string ("zse_jax.a.b" or "zse_jax.a.b:name") counts too: it is imported at run
time. Importing `zse_jax.a.b` also runs the `__init__.py` of its packages; that does not count.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.source import PACKAGES, ROOT, files, module_name, syntax, within

FILES = files(*PACKAGES)
MODULES = {module_name(file) for file in FILES}

PROGRAMS = {
    "zse_jax.main", "zse_jax.evaluate", "zse_jax.compare", "zse_jax.convert", "zse_jax.hashing",
    "zse_jax.explain.__main__",
}  # fmt: skip
"""Programs, which no module may import. (Those of `gallery` are also its modules.)"""

COMMANDS = "zse_jax.commands"
"""The command that starts the programs."""

COMMON = (
    "data_pipelines.class_names", "data_pipelines.files", "data_pipelines.paths",
    "data_pipelines.suggestions", "data_pipelines.terminal",
)  # fmt: skip
"""Modules that every folder may import; they import nothing else of the project."""

# "Allowed imports" of the design: what a folder may import besides itself. Imports of `training`
# from `evaluation` and so on go one way, because folders have no cycles.
ALLOWED: dict[str, set[str]] = {
    "configs": set(),
    "data_pipelines": set(),
    "zse_jax.version": set(),
    "zse_jax.runtime": {"zse_jax.version"},
    "zse_jax.models": set(),
    "zse_jax.losses": set(),
    "zse_jax.retrievers": {"zse_jax.models", "zse_jax.losses"},
    "zse_jax.pretrained": {"zse_jax.retrievers", "zse_jax.models"},
    "zse_jax.retrieval": {"zse_jax.retrievers.base"},
    "zse_jax.explain": {"zse_jax.retrievers.base"},
    "zse_jax.checkpoints": {
        "zse_jax.pretrained", "zse_jax.retrievers", "zse_jax.runtime", "zse_jax.version",
    },
    "zse_jax.evaluation": {
        "zse_jax.checkpoints", "zse_jax.retrieval", "zse_jax.explain", "zse_jax.retrievers",
        "zse_jax.runtime", "zse_jax.version", "data_pipelines",
    },
    "zse_jax.training": {
        "zse_jax.evaluation", "zse_jax.checkpoints", "zse_jax.retrieval", "zse_jax.explain",
        "zse_jax.retrievers", "zse_jax.runtime", "data_pipelines",
    },
    "zse_jax.gallery": {
        "zse_jax.retrieval", "zse_jax.explain", "zse_jax.checkpoints", "zse_jax.runtime",
        "data_pipelines",
    },
    "zse_jax": {"zse_jax.checkpoints", "zse_jax.retrievers.base", "zse_jax.version"},
}  # fmt: skip
"""Folder, or module directly in `zse_jax` -> folders and modules that it may import."""

EXCEPTIONS = {
    # The type of what they encode and search with.
    ("zse_jax.gallery", "zse_jax.retrievers.base"),
    # A report shows the results of an evaluation.
    ("zse_jax.explain.report", "zse_jax.retrieval.results"),
    ("zse_jax.explain.report_parts", "zse_jax.retrieval.results"),
    # A model card lists the seen and unseen classes.
    ("zse_jax.checkpoints.publishing", "data_pipelines.splits"),
}
"""Additional imports, each with its reason."""

# TensorFlow takes seconds to import. (tensorflow_datasets, whose base class the builders need,
# imports it only to prepare a data set.)
SLOW = ("tensorflow", "clu.metric_writers", "clu.periodic_actions")


class Import(NamedTuple):
    """An imported module, its line, and whether importing the file imports it."""

    line: int
    module: str
    at_once: bool


def _imports(file: Path) -> list[Import]:
    """Every import of a file, with the module that is imported."""
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
            case ast.Constant(value=str(text)):
                name, _, _ = text.partition(":")
                if "." in name and name in MODULES:
                    yield Import(node.lineno, name, False)
            case _:
                later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                    isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
                )
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, at_once and not later)

    return list(visit(syntax(file), True))


def _internal() -> Iterator[tuple[str, str, str]]:
    """Where (file:line), importing module and imported module, of every import in the project."""
    for file in FILES:
        for line, module, _ in _imports(file):
            if module.split(".")[0] in PACKAGES and module != module_name(file):
                yield f"{file}:{line}", module_name(file), module


def _folder(module: str) -> str:
    """The folder of a module; modules directly in `zse_jax` and programs stand for themselves."""
    parts = module.split(".")
    return module if module in PROGRAMS else ".".join(parts[: 2 if parts[0] == "zse_jax" else 1])


def _may_import(importer: str, imported: str) -> bool:
    if (
        importer in {*PROGRAMS, COMMANDS}
        or _folder(importer) == _folder(imported)
        or imported in COMMON
    ):
        return True
    if any(within(importer, a) and within(imported, b) for a, b in EXCEPTIONS):
        return True
    return any(within(imported, allowed) for allowed in ALLOWED[_folder(importer)])


def _cycle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """The nodes of one cycle; empty if there is none."""
    graph: dict[str, set[str]] = {}
    for importer, imported in edges:
        graph.setdefault(importer, set()).add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_cycle_between_files() -> None:
    assert not _cycle((importer, imported) for _, importer, imported in _internal())


def test_no_cycle_between_folders() -> None:
    folders = ((_folder(importer), _folder(imported)) for _, importer, imported in _internal())
    assert not _cycle((one, other) for one, other in folders if one != other)


def test_no_import_of_a_higher_layer() -> None:
    wrong = [
        f"{where}: {importer} must not import {imported}"
        for where, importer, imported in _internal()
        if not _may_import(importer, imported)
        or (imported in PROGRAMS and importer != COMMANDS)
        or imported == COMMANDS
    ]
    assert not wrong, "\n".join([*wrong, "See ALLOWED in tests/test_imports.py."])


def test_every_exception_is_needed() -> None:
    pairs = [(importer, imported) for _, importer, imported in _internal()]
    unused = [
        exception
        for exception in EXCEPTIONS
        if not any(within(a, exception[0]) and within(b, exception[1]) for a, b in pairs)
    ]
    assert not unused, f"delete from EXCEPTIONS: {unused}"


def test_tensorflow_is_imported_only_where_it_is_used() -> None:
    wrong = [
        f"{file}:{line}: import {imported} inside the function that needs it"
        for file in FILES
        for line, imported, at_once in _imports(file)
        if at_once and any(within(imported, slow) for slow in SLOW)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_importing_zse_jax_does_not_import_tensorflow() -> None:
    modules = ", ".join(sorted(m for m in MODULES if within(m, "zse_jax")))
    program = f"import sys, {modules}; print(*{{'tensorflow', 'tensorboard'}} & {{*sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_nothing_imports_pytorch() -> None:
    wrong = [
        f"{file}:{line}: import {imported}"
        for file in FILES
        for line, imported, _ in _imports(file)
        if within(imported, "torch") or within(imported, "torchvision")
    ]
    assert not wrong, "\n".join(wrong)
