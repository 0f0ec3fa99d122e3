"""The layers: which package may import which, read from the sources; nothing is imported.

ALLOWED is the architecture (docs/architecture.md draws it): imports run down only. A package that is not in it fails.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cni_py"

GROUND = {
    "c_library",
    "dbus",
    "errors",
    "files",
    "journal",
    "jsontext",
    "lazy",
    "plural",
    "program",
    "socket_lock",
    "spelling",
    "subnet_env",
    "undo",
    "value",
}
"""Modules of the root that every package may import."""

ALLOWED: dict[str, set[str]] = {
    # CNI's nouns and configuration
    "plugin_table": set(),
    "config": {"plugin_table"},
    "spec": {"config"},
    "dispatch": {"plugin_table", "config", "spec"},
    # the kernel
    "netlink": set(),
    "kernel": {"netlink"},
    "packetfilter": {"netlink", "kernel"},
    # a pod
    "ipam": set(),
    "attachment": {"kernel", "netlink", "packetfilter", "ipam", "config", "spec", "dispatch", "plugin_table"},
    "dhcp": {"kernel", "netlink", "config"},
    "plugins": {"dhcp", "attachment", "ipam", "packetfilter", "kernel", "netlink", "config", "spec"},
    "runtime": {"config", "spec"},
    "sweep": {
        "attachment", "ipam", "runtime", "packetfilter", "kernel", "netlink", "config", "spec", "plugin_table",
        "plugins",  # restore: the mappings that portmap's configuration asks for
    },
    # a call
    "engine": {"dispatch", "attachment", "config", "spec", "plugin_table"},
    "protocol": {"spec"},
    "client": {"dhcp", "protocol", "engine", "sweep", "attachment", "spec", "plugin_table"},
    # a node's daemons
    "node": {"packetfilter", "kernel", "netlink"},
    "datastore": {"node"},
    "flanneld": {"node", "datastore", "packetfilter", "kernel", "netlink"},
    "agent": {
        "engine", "protocol", "dispatch", "sweep", "plugins", "attachment", "ipam", "node", "packetfilter",
        "kernel", "netlink", "config", "spec", "plugin_table",
    },
    # for people
    "lab": set(),
    "lessons": {"lab"},
    "explain": set(),
    "doctor": {
        "explain", "runtime", "sweep", "flanneld", "node", "datastore", "plugins", "attachment", "ipam", "packetfilter",
        "kernel", "netlink", "config", "spec", "plugin_table",
    },
    "walk": {"packetfilter", "kernel", "netlink"},
    "plan": {
        "explain", "runtime", "packetfilter", "kernel", "netlink", "plugin_table",
        "sweep",  # netns_scan: mounted namespaces
    },
    "cli": {
        "doctor", "explain", "plan", "walk", "runtime", "sweep", "flanneld", "lab", "protocol", "dispatch", "node", "datastore",
        "lessons", "packetfilter",
        "kernel", "netlink", "config", "spec", "plugin_table",
        "attachment", "ipam",  # explain: records and reservations
        "agent", "dhcp",  # the table of options of every program
    },
}  # fmt: skip
"""A package, or a module of the root, and what it may import besides itself and the ground."""

NARROW = {
    ("datastore", "node"): {"cni_py.node.log"},
    ("cli", "agent"): {"cni_py.agent.options"},
    ("cli", "dhcp"): {"cni_py.dhcp.daemon_options"},
}
"""Exceptions: from these packages, only these modules."""

LIBRARIES = {
    "pyroute2": [],  # integration/generate reads its definitions, tests compare with it (docs: decision 0012)
    "etcd3": ["cni_py/datastore/etcd.py"],
    "grpc": ["cni_py/datastore/etcd.py"],
    "urllib3": ["cni_py/datastore/kubernetes/api.py"],
    "re2": ["cni_py/flanneld/pattern.py"],
    "subprocess": ["cni_py/flanneld/backends/extension.py", "cni_py/datastore/kubernetes/exec.py", "cni_py/lab/"],
    "rich": ["cni_py/cli/explain.py", "cni_py/cli/walk.py"],
    "pydantic": ["cni_py/config/", "cni_py/datastore/kubernetes/", "cni_py/flanneld/"],
}
"""A library, and the only places that may import it."""

SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_name(source: Path) -> str:
    return ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(source): source for source in SOURCES}


@cache
def imports(source: Path) -> list[tuple[int, str]]:
    """Line and full dotted name of everything that the file imports, inside functions and for the type checker too."""
    package = source.relative_to(ROOT).parent.parts
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def ours(source: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each module of cni_py that the file imports; a name from a module counts as the module."""
    for line, name in imports(source):
        if name.startswith("cni_py."):
            yield line, name if name in MODULES else name.rpartition(".")[0]


def package_of(module: str) -> str:
    """The package below cni_py, or the module of the root."""
    return module.split(".")[1] if "." in module else ""


def test_every_package_is_in_the_table_and_no_other() -> None:
    packages = {package_of(module) for module in MODULES} - {""}
    assert packages == ALLOWED.keys() | GROUND
    assert set().union(*ALLOWED.values()) <= ALLOWED.keys()


@pytest.mark.parametrize("package", sorted({*ALLOWED, *GROUND}))
def test_package_imports_only_what_the_table_allows(package: str) -> None:
    allowed = {package, "", *GROUND, *ALLOWED.get(package, ())}
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {imported}"
        for module, source in MODULES.items()
        if package_of(module) == package
        for line, imported in ours(source)
        if package_of(imported) not in allowed
        or ((package, package_of(imported)) in NARROW and imported not in NARROW[package, package_of(imported)])
    ]
    assert wrong == []


def test_docs_have_every_package() -> None:
    """The table of docs/architecture.md has each package and module of the ground, README's each package."""
    page, readme = (ROOT / "docs/architecture.md").read_text(), (ROOT / "README.md").read_text()
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert {name for name in (*ALLOWED, *GROUND) if f"`{name}`" not in rows} == set()
    table = "".join(line.split("|")[1] for line in readme.splitlines() if line.startswith("| `"))
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {name for name in packages if f"{name}/" not in table} == set()


def test_table_runs_down() -> None:
    """Check that the table itself has no circle: a package is never both above and below another."""
    assert list(TopologicalSorter(ALLOWED).static_order())


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {module: {imported for _, imported in ours(source)} - {"cni_py", module} for module, source in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_is_imported_only_where_it_belongs(library: str) -> None:
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {name}"
        for source in SOURCES
        for line, name in imports(source)
        if (name == library or name.startswith(library + "."))
        and not any(str(source.relative_to(ROOT)).startswith(place) for place in LIBRARIES[library])
    ]
    assert wrong == []


EXECUTES = {
    "cni_py/program.py": "plugins and daemons: a path, or a tool of find_system()",
    "cni_py/lab/": "tools of lab/programs.py, which it finds in the system's directories",
    "cni_py/cli/lab_commands.py": "lab exec: the user's command",
    "cni_py/datastore/kubernetes/exec.py": "the credential plugin that a kubeconfig names, searched for in PATH as kubectl does",
    "cni_py/flanneld/backends/extension.py": "the user's commands, as Go's flanneld executes them",
}
"""Places that execute programs, and where the names come from: no place searches the caller's PATH for a tool of the system."""
EXECUTING = re.compile(r"(posix_spawnp?|exec[lv]p?e?|system|popen|Popen|run|call|check_call|check_output)\Z")
PROCESSES = {"os", "posix", "subprocess"}


def executions(source: Path) -> Iterator[int]:
    """Line of each call that executes a program."""
    for node in ast.walk(ast.parse(source.read_text())):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and EXECUTING.match(called.attr) and ast.unparse(called.value) in PROCESSES:
            yield called.lineno


def test_programs_are_executed_where_the_table_says() -> None:
    found = {str(source.relative_to(ROOT)): list(executions(source)) for source in SOURCES}
    places = {name for name, lines in found.items() if lines}
    assert {name for name in places if not name.startswith(tuple(EXECUTES))} == set()
    assert all(any(name.startswith(place) for name in places) for place in EXECUTES)
