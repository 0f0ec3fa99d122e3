"""Bulk changes: the journal has a line for each, and rejections are reported by item.

A node of a large network has a route, an ARP and an FDB entry for each peer. One request at a time,
each waiting for its acknowledgement, would take seconds; here the kernel alone sets the pace.

    change_many(rtnl, ("ip", "route", "replace"), items, request, settled=frozenset()) -> list[Refusal]
    Refusal(item, error: KernelRefused)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from errno import ENODEV
from typing import Generic, Protocol, TypeVar

from cni_py import journal
from cni_py.errors import KernelRefused
from cni_py.kernel.link import find_ifindex
from cni_py.netlink.socket import Rtnl
from cni_py.plural import counted

Request = tuple[bytes, int, int]
"""Message without its header, kind, flags."""


class Item(Protocol):
    """Object to change: a route, a neighbour, an FDB entry."""

    @property
    def device(self) -> str:
        """Name of the link that it belongs to; "": none."""
        ...

    def words(self) -> list[str]:
        """Return the arguments of ``ip`` or ``bridge``, after "add" or "del"."""
        ...


T = TypeVar("T", bound=Item)


@dataclass(frozen=True, slots=True)
class Refusal(Generic[T]):
    """An item that could not be changed. The error holds the command and the kernel's words."""

    item: T
    error: KernelRefused


def change_many(
    rtnl: Rtnl,
    command: tuple[str, ...],
    items: Iterable[T],
    request: Callable[[T, int], Request],
    settled: frozenset[int] = frozenset(),
) -> list[Refusal[T]]:
    """Change all items, in order. Returns: those that the kernel rejected.

    Args:
        command: the words before the item's own.
        request: an item and the ifindex of its device (0: none) as a request.
        settled: error numbers that mean that nothing is left to do.

    Raises: KernelRefused if the requests could not be sent at all.
    """
    todo = list(items)
    ifindexes = {name: _ifindex(rtnl, name) for name in {item.device for item in todo}}
    present = [item for item in todo if ifindexes[item.device] is not None]
    try:
        errors = rtnl.change_many([request(item, ifindexes[item.device] or 0) for item in present])
    except OSError as error:
        words = f'could not send {counted(len(present), "request")}: "{" ".join(command)}"'
        raise KernelRefused(words, error.strerror or str(error), errno=error.errno or 0) from error
    outcomes: list[tuple[T, int, str]] = [
        (item, ENODEV, f'link "{item.device}" does not exist') for item in todo if ifindexes[item.device] is None
    ]
    for index, item in enumerate(present):
        refused = errors.get(index)
        outcomes.append((item, refused.errno or 0, refused.strerror or "") if refused else (item, 0, ""))
    refusals, ours = [], journal.current()
    for item, errno, said in outcomes:
        failed = errno if errno not in settled else 0
        if failed or (ours is not None and ours.has_room()):
            line = " ".join([journal.quote(word) for word in (*rtnl.enter, *command, *item.words())])
            _write(line, said if failed else "")
            if failed:
                refusals.append(Refusal(item, KernelRefused(f'the kernel refused: "{line}"', said, errno=failed)))
    return refusals


def _write(line: str, failure: str) -> None:
    ours = journal.current()
    if ours is not None:
        ours.write(f"{line}  # failed: {failure}" if failure else line)


def _ifindex(rtnl: Rtnl, name: str) -> int | None:
    """Return the link's ifindex, 0 without a name, None if it does not exist."""
    if not name:
        return 0
    kept = rtnl.ifindexes
    if kept is None:
        return find_ifindex(rtnl, name) or None
    if name not in kept and (found := find_ifindex(rtnl, name)):
        kept[name] = found
    return kept.get(name)
