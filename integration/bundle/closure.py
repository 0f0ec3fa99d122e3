"""Find the modules that a program can import: read the source of each, follow every import statement in it.

Owns: which files of the standard library and of the locked packages are in the bundle.

How it works. `modules(roots, path)` parses a root, collects the names of all its import statements, also those inside functions
and under conditions, resolves each in the directories of `path`, and goes on with what it found. Nothing is executed, so the
modules of another processor are followed like our own. The result is more than a run loads: what an unusual option
imports is in it. What is imported by a computed name is not: such names are in EXTRA, with the reason.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".py", ".so")

EXTRA = {
    "encodings": [f"encodings.{name}" for name in ("aliases", "ascii", "idna", "latin_1", "punycode", "utf_8")],
    "ctypes": ["_ctypes"],
    "sysconfig": ["_sysconfigdata__x86_64-linux-gnu", "_sysconfigdata__aarch64-linux-gnu"],  # zoneinfo asks it
    "grpc._cython.cygrpc": ["pkgutil"],
    "pydantic_core": ["pydantic_core._pydantic_core"],
    "pydantic": ["pydantic.main", "pydantic.fields", "pydantic.types"],  # its __init__ imports by the name that is asked for
}
"""Module -> modules that it imports by a computed name, or from C."""

NEVER = {
    "pydoc": "the help() of an interactive interpreter",
    "pdb": "a debugger",
    "doctest": "runs examples in a module's own tests",
    "unittest": "tests; imported by the tests of a module, or by a fallback that this Python has not",
    "test": "tests",
    "idlelib": "an editor",
    "tkinter": "windows",
    "turtle": "windows",
    "lib2to3": "converts sources of Python 2",
    "distutils": "builds packages",
    "setuptools": "builds packages",
    "ensurepip": "installs pip",
    "venv": "creates environments",
    "sqlite3": "no database is used; its library is 1.3 MB",
    "curses": "no screen is drawn",
    "readline": "an interactive interpreter",
    "multiprocessing": "no child is started by it; concurrent.futures imports it in a branch that is not taken",
    "mypy": "a plugin of pydantic for type checking",
    "hypothesis": "a plugin of pydantic for tests",
    "email_validator": "an optional package",
    "dbm": "no database is used",
    "bz2": "compressed archives; shutil and zipfile do without it",
    "_bz2": "the same",
    "lzma": "compressed archives; shutil and zipfile do without it",
    "_lzma": "the same",
    "_uuid": "uuid does without it",
    "nturl2path": "Windows",
    "_aix_support": "AIX",
    "_osx_support": "macOS",
}
"""Packages that are imported somewhere and not included, with the reason."""


class Module(NamedTuple):
    """A module that was found: its file, and the directory of `path` that it is in."""

    name: str
    file: Path
    directory: Path


def modules(roots: list[str], path: list[Path], never: dict[str, str] = NEVER) -> dict[str, Module]:
    """Return all modules that the roots can import, themselves included, by name. Built-in ones have no file."""
    found: dict[str, Module] = {}
    seen: set[str] = set()
    waiting = sorted(roots)
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] in never:
            continue
        seen.add(name)
        module = find(name, path)
        if module is None:
            continue
        found[name] = module
        waiting += parents(name) + EXTRA.get(name, [])
        if module.file.suffix == ".py":
            waiting += imported(module)
    return found


def parents(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[:count]) for count in range(1, len(pieces))]


def find(name: str, path: list[Path]) -> Module | None:
    """Return the module of this name: a package, a file, or an extension module of whatever ABI."""
    relative = Path(*name.split("."))
    for directory in path:
        package = directory / relative / "__init__.py"
        if package.is_file():
            return Module(name, package, directory)
        file = directory / relative.with_suffix(".py")
        if file.is_file():
            return Module(name, file, directory)
        parent = (directory / relative).parent
        extensions = sorted(parent.glob(f"{relative.name}.*.so")) + sorted(parent.glob(f"{relative.name}.so"))
        if extensions:
            return Module(name, extensions[0], directory)
    return None


def imported(module: Module) -> list[str]:
    """Return every name that a module's import statements may mean; some of them are no modules but names in one."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """Return the absolute name of what `from … import` names."""
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.file.name == "__init__.py" else module.name.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])
