"""Who may import whom (docs: the layout section of the design): read from the sources, nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cni_py"

# a library, and the only places where it may be imported
ONLY_IN = {
    "pyroute2": ["cni_py/kernel/"],
    "etcd3": ["cni_py/flanneld/etcd.py"],
    "grpc": ["cni_py/flanneld/etcd.py"],
    "urllib3": ["cni_py/flanneld/kube_api.py"],
    "subprocess": [
        "cni_py/delegate.py",
        "cni_py/flanneld/backends/extension.py",
        "cni_py/flanneld/kube_exec.py",
        "cni_py/lab/",
    ],
    "pydantic": ["cni_py/models.py", "cni_py/flanneld/"],
}

# a layer, and what it must never import: all that lies above it
ABOVE_PLUGINS = ["engine", "client", "cli", "agent", "flanneld"]
NEVER = {
    "kernel/": [*ABOVE_PLUGINS, "plugins", "config", "delegate", "call"],
    "ipam/": [*ABOVE_PLUGINS, "plugins", "config", "delegate", "call"],
    "files.py": [*ABOVE_PLUGINS, "plugins", "config", "delegate", "call", "ipam"],
    "subnet_env.py": [*ABOVE_PLUGINS, "plugins", "config", "delegate", "call"],
    "plugins/": ABOVE_PLUGINS,
    "engine.py": ["client", "cli", "agent", "flanneld"],
    "flanneld/": ["engine", "client", "cli", "agent", "plugins", "delegate", "ipam", "call"],
    "client.py": ["plugins", "kernel", "ipam", "delegate", "models", "cli", "agent", "flanneld"],
    "agent.py": ["plugins", "ipam", "delegate", "models", "cli", "client", "flanneld"],
}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(source: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that the file imports, inside functions too."""
    package = source.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_library_is_imported_only_where_it_belongs(source: Path) -> None:
    name = str(source.relative_to(ROOT))
    wrong = [
        f"{name}:{line} imports {module}, which belongs to {places}"
        for line, module in imports(source)
        for library, places in ONLY_IN.items()
        if is_within(module, library) and not any(name.startswith(place) for place in places)
    ]
    assert not wrong


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_layer_imports_nothing_from_above(source: Path) -> None:
    name = str(source.relative_to(PACKAGE))
    forbidden = [upper for layer, uppers in NEVER.items() if name.startswith(layer) for upper in uppers]
    wrong = [
        f"cni_py/{name}:{line} imports {module}"
        for line, module in imports(source)
        if any(is_within(module, f"cni_py.{upper}") for upper in forbidden)
    ]
    assert not wrong


def test_names_of_layers_are_names_of_modules() -> None:
    """A renamed module must not make its rule silently true: what exists is spelt as it is here."""
    uppers = {upper for layer in NEVER.values() for upper in layer}
    planned = {"agent", "flanneld"}  # later issues
    missing = {upper for upper in uppers - planned if not (PACKAGE / f"{upper}.py").exists() and not (PACKAGE / upper).is_dir()}
    assert not missing
