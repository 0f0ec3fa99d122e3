"""Lists that are read while other processes change them: the kernel marks such a dump, and it is never taken for whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from time import monotonic

import pytest

from cni_py.errors import KernelRefused
from cni_py.kernel.link import list_links
from cni_py.netlink.constants import NLM_F_DUMP_INTR
from cni_py.netlink.socket import Netlink, open_host
from support.namespaces import Host

STANDING = {f"standing{number}" for number in range(80)}
ENOUGH, SECONDS = 5, 20.0
"""Lists are read until so many were interrupted, and no longer than this."""


def churn(name: str) -> int:
    """Run in a process of its own: a veth comes and goes, as fast as the kernel lets it."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.execvp(
            "sh", ["sh", "-c", f"yes 'link add {name} type veth peer name {name}p\nlink del {name}' | ip -force -batch -"]
        )
    finally:
        os._exit(1)


@pytest.fixture
def busy(host: Host) -> Iterator[Host]:
    """A host with links enough for a dump of several datagrams."""
    host.run("".join(f"ip link add {name} type bridge\n" for name in sorted(STANDING)))
    return host


def listed() -> tuple[int, int, int, set[str]]:
    """List links while two processes change them.

    Returns: how many lists were read, how many dumps were marked, how many of those were taken for whole, and the
    names of links that were missing from a list.
    """
    marked: dict[int, int] = {}
    plain = Netlink.answers

    def answers(self: Netlink, first: int, last: int) -> Iterator[tuple[int, int, int, bytes]]:
        for kind, flags, sequence, body in plain(self, first, last):
            marked[sequence] = marked.get(sequence, 0) | flags & NLM_F_DUMP_INTR
            yield kind, flags, sequence, body

    Netlink.answers = answers  # type: ignore[method-assign]
    children = [churn("come"), churn("go")]
    lists = taken = 0
    missing: set[str] = set()
    try:
        with open_host() as netlink:
            until = monotonic() + SECONDS
            while sum(map(bool, marked.values())) < ENOUGH and monotonic() < until:
                try:
                    names = {link.name for link in list_links(netlink)}
                except KernelRefused:  # interrupted each time
                    continue
                lists += 1
                taken += bool(marked[max(marked)])
                missing |= STANDING - names
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return lists, sum(map(bool, marked.values())), taken, missing


def test_interrupted_dump_is_never_taken_for_whole(busy: Host) -> None:
    lists, marked, taken, missing = busy.do(listed)
    assert marked > 0, f"nothing was interrupted in {lists} lists: the test shows nothing"
    assert lists > 0
    assert taken == 0
    assert missing == set()
