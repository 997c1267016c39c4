"""Rules for every file: docstrings, descriptive names, and no paths of one machine."""

import ast
import functools
import re
from collections.abc import Iterator

from tests.source import PACKAGES, ROOT, files, syntax

FOLDERS = (*PACKAGES, "launch", "tests")
TEXT = {".cfg", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
FILES = files(*PACKAGES)
ALL_FILES = files(*PACKAGES, "tests")
TEXT_FILES = [
    file
    for pattern in ("*", ".[!.]*", ".ci/*", *(f"{folder}/**/*" for folder in FOLDERS))
    for file in ROOT.glob(pattern)
    if file.is_file() and (file.suffix in TEXT or file.name in {"Makefile", "run"})
]

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|farm|root|home|Users|tmp/bash_jobs)/[\w.]")

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    """Every class of the project by name; parses all files, so not during collection."""
    return {
        node.name: node for f in FILES for node in syntax(f).body if isinstance(node, ast.ClassDef)
    }


def _inherits_docstring(method: ast.AST, owner: ast.ClassDef) -> bool:
    """Whether a base class of `owner` in the project documents the method."""
    classes = _classes()
    bases = [
        classes[name] for b in owner.bases if (name := ast.unparse(b).split(".")[-1]) in classes
    ]
    return any(
        any(getattr(m, "name", "") == method.name and ast.get_docstring(m) for m in base.body)
        or _inherits_docstring(method, base)
        for base in bases
    )


def _undocumented(body: list[ast.stmt], owner: ast.ClassDef | None = None) -> Iterator[str]:
    """`line: name` of every public function, class and method without a docstring."""
    for node in body:
        if not isinstance(node, FUNCTION | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node) and not (owner and _inherits_docstring(node, owner)):
            yield f"{node.lineno}: {node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, node)


def test_every_file_has_a_docstring() -> None:
    missing = [
        f"{file} needs a module docstring"
        for file in ALL_FILES
        if syntax(file).body and not ast.get_docstring(syntax(file))
    ]
    assert not missing, "\n".join(missing)


def test_every_public_name_has_a_docstring() -> None:
    missing = [
        f"{file}:{name} needs a docstring"
        for file in FILES
        for name in _undocumented(syntax(file).body)
    ]
    assert not missing, "\n".join(missing)


def test_no_module_is_a_grab_bag() -> None:
    wrong = [
        f"{file}: move its contents into modules named for what they do"
        for file in FILES
        if file.stem in {"utils", "util", "common", "helpers", "misc"}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_path_of_one_machine() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in TEXT_FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)
