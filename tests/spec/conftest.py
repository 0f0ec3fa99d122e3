"""The hosts of the spec's table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.namespaces import Host, Sandbox
from support.recorded import unexplained_in
from support.spec_cases import BOTH_FAMILIES, EXECUTABLE, delete_sandbox, new_sandbox, plugin_of, provide_links
from support.warm import WarmHost


def assert_explained(host: Host) -> None:
    """Every change in the journals of all cases is one that ``cni-py explain`` knows."""
    # there are none if no case has changed anything
    journals = host.run("find /run/cni-py/journal -type f -exec cat '{}' + 2>/dev/null", check=False)
    assert unexplained_in(journals.split("\n")) == []


@pytest.fixture(scope="session")
def warm_node(bin_dir: Path) -> Iterator[Host]:
    with WarmHost(bin_dir) as host:
        host.write_subnet_env(BOTH_FAMILIES)
        yield host
        assert_explained(host)


@pytest.fixture(scope="session")
def executing_node(bin_dir: Path) -> Iterator[Host]:
    with Host(bin_dir) as host:
        host.write_subnet_env(BOTH_FAMILIES)
        yield host
        assert_explained(host)


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Host:
    """One host for all tests: each has a sandbox and a container id of its own, or changes nothing."""
    is_executing = getattr(request, "param", None) == EXECUTABLE
    made: Host = request.getfixturevalue("executing_node" if is_executing else "warm_node")
    provide_links(made, plugin_of(request))
    return made


@pytest.fixture
def sandbox(node: Host, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    made = new_sandbox(node, plugin_of(request))
    yield made
    delete_sandbox(node, made)
