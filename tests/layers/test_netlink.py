"""Netlink sockets and the kernel's numbers: read from the sources; nothing is imported.

One place reads such a socket, and so one place knows of interrupted dumps; one place has the numbers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRANSPORT, CONSTANTS = "cni_py/netlink/socket.py", "cni_py/netlink/constants.py"
FAMILY = {"AF_NETLINK", "NETLINK_ROUTE", "NETLINK_NETFILTER", "NETLINK_GENERIC"}
NETLINK_PACKAGES = ("cni_py/netlink/", "cni_py/kernel/", "cni_py/packetfilter/", "cni_py/sweep/")
OTHER_SOCKETS: set[str] = set()
"""Files of these packages that read sockets of other families."""


@cache
def sources() -> dict[str, ast.Module]:
    """Every file of cni_py."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted((ROOT / "cni_py").rglob("*.py"))}


def places(tree: ast.AST, name: str, family: bool) -> Iterator[str]:
    """Yield places where a file creates a netlink socket, or reads any socket if ``family`` is set."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = ast.unparse(node.args[0]).rpartition(".")[2] if node.args else ""
        if called == "socket" and first in {"AF_NETLINK", "16"}:
            yield f"{name}:{node.lineno} creates a netlink socket"
        if family and called.startswith("recv") and name not in OTHER_SOCKETS:
            yield f"{name}:{node.lineno} reads a socket"


def test_one_module_creates_and_reads_netlink_sockets() -> None:
    found = [
        place
        for name, tree in sources().items()
        if name != TRANSPORT
        for place in places(tree, name, name.startswith(NETLINK_PACKAGES))
    ]
    assert found == []


def test_the_transport_itself_would_be_found() -> None:
    assert len(list(places(sources()[TRANSPORT], TRANSPORT, family=True))) == 3  # two receive, one creates


def assigned(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each constant of a module."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(name, ast.Name) and name.id.isupper():
                    yield node.lineno, name.id.lstrip("_")


def test_the_kernels_numbers_are_defined_once() -> None:
    names = [name for _, name in assigned(sources()[CONSTANTS])]
    assert len(names) == len(set(names))
    again = [
        f"{file}:{line} {name}"
        for file, tree in sources().items()
        if file != CONSTANTS
        for line, name in assigned(tree)
        if name in names
    ]
    assert again == []


def test_every_number_is_used() -> None:
    used = {
        alias.name
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "cni_py.netlink.constants"
        for alias in node.names
    }
    in_tests = {"NFT_MSG_GETGEN"}
    assert {name for _, name in assigned(sources()[CONSTANTS])} - used == in_tests
