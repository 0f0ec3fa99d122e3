"""A child process in another network namespace asks the kernel about that one, over sockets of its own."""

from __future__ import annotations

import os
from collections.abc import Callable

from cni_py.kernel.netns import CLONE_NEWNET
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.plan.system import unshare
from support.namespaces import Host

TABLE = "inet of_the_parent"


def by_netlink() -> bool:
    return nfnetlink.exists(TABLE)


def by_library() -> bool:
    with libnftables.borrowed() as nft:
        return bool(nft.list_json(f"list table {TABLE}"))


def seen_by_child() -> list[tuple[bool, int]]:
    """Return for each way to ask what the parent sees, and a child in a new namespace: its exit status, 1 if it sees the table."""
    with libnftables.borrowed() as nft:
        nft.run(f"add table {TABLE}")
    return [(sees(), _status_of_child(sees)) for sees in (by_netlink, by_library)]


def _status_of_child(sees: Callable[[], bool]) -> int:
    child = os.fork()
    if child == 0:
        status = 2
        try:
            unshare(CLONE_NEWNET)
            status = int(sees())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_child_does_not_use_the_parents_sockets(host: Host) -> None:
    assert host.do(seen_by_child) == [(True, 0), (True, 0)]
