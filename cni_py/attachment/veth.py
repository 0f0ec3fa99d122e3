"""The veth of an attachment: one end in the sandbox, the other on the host, with its owner as alternative name.

Owns: veths whose host end has the mark ``cni:<container id>:<ifname>:<network>``: an alternative name, or on kernels
without those an alias. By it DEL, GC and the sweep find the host end whatever became of the sandbox, and ADD and DEL of one
attachment leave the veth of another one alone.
"""

from __future__ import annotations

from errno import EEXIST
from time import monotonic, sleep

from cni_py.attachment import interface, record
from cni_py.attachment.record import MARK
from cni_py.errors import InvalidEnvironment, KernelRefused
from cni_py.journal import note
from cni_py.kernel import sysctl
from cni_py.kernel.link import AlternativeNameTaken, create_veth, delete_link, find_link, get_link, list_links
from cni_py.netlink.socket import open_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.undo import Undo

_DELETION = 2.0
"""Seconds that the kernel may take to delete the links of a namespace that was deleted."""


def create(
    undo: Undo, host: Rtnl, netns: NetNS, call: Call, *, mtu: int = 0, mac: str = "", master: Link | None = None
) -> Link:
    """Create both ends, down; the one in the sandbox is CNI_IFNAME. See :func:`cni_py.kernel.link.create_veth`.

    The host accepts no router advertisements of the pod. Returns: the host end.

    Raises: KernelRefused, InvalidEnvironment if the attachment has a host end already.
    """

    def attempt() -> str:
        return create_veth(host, netns, call.ifname, mark_of(call), mtu=mtu, mac=mac, master=master)

    try:
        name = attempt()
    except AlternativeNameTaken:
        _wait_for_deletion(host, call)
        name = attempt()
    except KernelRefused as error:
        if error.errno == EEXIST:
            _refuse_second(host, call)
        raise
    undo.on_failure("the veth", delete_link, host, name)
    sysctl.prefer(f"net/ipv6/conf/{name}/accept_ra", "0")
    return get_link(host, name)


def _wait_for_deletion(host: Rtnl, call: Call) -> None:
    """Wait while the kernel deletes the host end whose namespace was deleted: it does so a moment later.

    A container that is restarted under its own id comes within that moment. Raises: InvalidEnvironment if the host end stays.
    """
    deadline = monotonic() + _DELETION
    while list_links(host, mark_of(call)):
        if monotonic() > deadline:
            _refuse_second(host, call)
        sleep(0.02)


def _refuse_second(host: Rtnl, call: Call) -> None:
    """Raises: InvalidEnvironment if the attachment has a host end: a second ADD without a DEL in between."""
    for link in list_links(host, mark_of(call)):
        raise InvalidEnvironment(
            f'"{call.ifname}" has been allocated to {call.container_id}, duplicate allocation is not allowed',
            f'CNI_CONTAINERID and CNI_IFNAME: the host end "{link.name}" leads into a namespace that exists',
            f"see the attachment: cni-py explain {call.container_id}",
        )


def delete(call: Call) -> None:
    """Delete the veth by its end in the sandbox or, if that cannot be found, by the mark of its host end.

    The runtime need not name the namespace, which may no longer exist; another process may have renamed the interface.
    Absence is success. Raises: KernelRefused.
    """
    with open_host() as host:
        if not interface.delete(call, lambda end: not is_anothers(host, end, call)):
            for link in list_links(host, mark_of(call)):
                delete_link(host, link.name)


def delete_stale(network: str, is_stale: Callable[[str, str], bool]) -> None:
    """Delete the veths of the network whose attachment is stale (``record.stale_test()``), for GC. Raises: KernelRefused."""
    with open_host() as host:
        # a mark that is too long for the kernel is cut and names no owner, but a record may give the same one
        recorded = {MARK + record.mark_of(*owner, network): owner for owner in record.remembered(network)}
        for link in list_links(host):
            mark = record.mark_on(link)
            owner = recorded.get(mark) or owner_in(mark, network)
            if owner and is_stale(*owner):
                delete_link(host, link.name)


def is_anothers(host: Rtnl, end: Link, call: Call) -> bool:
    """Return whether the host end's mark names another attachment: a network that was refused this interface name."""
    port = find_link(host, end.peer) if end.kind == "veth" else None
    mark = record.mark_on(port) if port is not None and port.peer == end.ifindex else ""
    if port is None or mark in ("", mark_of(call)):
        return False
    note(f'"{end.name}" is left: its host end "{port.name}" belongs to "{mark}"')
    return True


def mark_of(call: Call) -> str:
    """The owner, as ``ip link`` shows it of a host end."""
    return MARK + record.mark_of(call.container_id, call.ifname, call.network)


def owners_on_host(network: str) -> list[tuple[str, str]]:
    """Container id and interface name of every host end of this network. Raises: KernelRefused."""
    with open_host() as host:
        owners = [owner_in(record.mark_on(link), network) for link in list_links(host)]
    return [owner for owner in owners if owner]


def owner_in(mark: str, network: str) -> tuple[str, str] | None:
    """Container id and interface name in a mark; None if it is of another network or was cut because of its length."""
    parts = mark.removeprefix(MARK).split(":") if mark else []
    return (parts[0], parts[1]) if len(parts) == 3 and parts[2] == network else None
