"""The link of a main plugin that has nothing on the host: a macvlan, ipvlan, VLAN, dummy or tap in the sandbox.

Owns: CNI_IFNAME in the sandbox, the leased addresses. The kernel deletes it with the sandbox; until then DEL finds it by its
name and kind, and GC by the record of its attachment.
"""

from __future__ import annotations

from errno import EEXIST

from cni_py.attachment import delegate, interface, record
from cni_py.errors import InvalidConfig, KernelRefused
from cni_py.journal import note
from cni_py.kernel import virtual_link
from cni_py.kernel.link import explained, get_link, set_up
from cni_py.spec.result import Result, dns_from_config
from cni_py.undo import Attempts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from cni_py.attachment.interface import Parameter
    from cni_py.config.models import MacArgs, MainConfig
    from cni_py.kernel.link import Link
    from cni_py.kernel.netns import NetNS
    from cni_py.kernel.virtual_link import NewLink
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.undo import Undo

    class WithMac(Protocol):
        """Configuration with a MAC address."""

        mac: str
        runtime_config: MacArgs


NOTIFY = (("ipv4", "arp_notify", "1"), ("ipv6", "ndisc_notify", "1"))
"""Parameters of an interface: its neighbours learn its MAC address when it comes up, or when that changes."""


# ---- ADD --------------------------------------------------------------------------------------


def create(undo: Undo, call: Call, netns: NetNS, where: Rtnl, new: NewLink, master: Link | None = None) -> None:
    """Create the link, down; ``where``: a socket of the namespace of ``master``. Raises: NotAvailable, KernelRefused."""
    master_name = master.name if master else "none"
    create_by(undo, call, new.kind, netns, lambda: virtual_link.create(where, netns, call.ifname, new, master), master_name)


def create_by(undo: Undo, call: Call, kind: str, netns: NetNS, create: Callable[[], object], master: str = "") -> None:
    """Create a link of this kind by a function that fails with EEXIST if the name is taken. Raises: CniError."""
    try:
        create()
    except KernelRefused as error:
        if error.errno != EEXIST:  # then it is another's; otherwise perhaps only the acknowledgement was lost
            _delete_if_made(call, kind)
        with explained("link", netns, name=call.ifname, netns=call.netns, kind=kind, master=master):
            raise
    undo.on_failure("the interface", interface.delete, call)


def _delete_if_made(call: Call, kind: str) -> None:
    try:
        interface.delete(call, lambda end: end.kind == kind)
    except KernelRefused as error:
        note(f'"{call.ifname}" may have leaked: {error}')


def finish(
    undo: Undo,
    call: Call,
    config: MainConfig,
    netns: NetNS,
    sandbox: Rtnl,
    parameters: Sequence[Parameter] = (),
    *,
    needs_ipam: bool = False,
    given: Result | None = None,
    has_dns_of_ipam: bool = False,
) -> Result:
    """Lease addresses for CNI_IFNAME and configure it; without ``ipam.type`` only set it up. Raises: CniError.

    Args:
        parameters: of an interface with addresses.
        needs_ipam: an interface without addresses is an error.
        given: addresses and routes, instead of the IPAM plugin's.
        has_dns_of_ipam: the result has the IPAM plugin's DNS settings instead of the network's.

    Returns: the result, with this interface alone.
    """
    end = get_link(sandbox, call.ifname)
    result = Result()
    if given or needs_ipam or config.ipam.type:
        result = on_interface(given) if given else delegate.lease(undo, call, config)
        interface.set_parameters(netns, call.ifname, parameters)
        interface.configure(netns, sandbox, end, result)
    else:
        set_up(sandbox, end)
    made = interface.described(get_link(sandbox, call.ifname), call.netns)
    return result.replace(interfaces=(made,), dns=result.dns if has_dns_of_ipam else dns_from_config(config.dns))


def on_interface(result: Result) -> Result:
    """The result with every address on its first interface. Pure."""
    return result.replace(ips=tuple(ip.replace(interface=0) for ip in result.ips))


def mac_of(call: Call, config: WithMac) -> str:
    """The configured MAC address in the kernel's form: of the capability, CNI_ARGS, or the configuration. Pure.

    Raises: InvalidConfig, InvalidEnvironment.
    """
    args = call.known_pairs("MAC") if call.verb == "ADD" else {}
    text = config.runtime_config.mac or args.get("MAC", "") or config.mac
    try:
        return interface.parse_mac(text)
    except InvalidConfig as error:
        raise InvalidConfig(f"invalid args {text[:40]} for MAC addr: {error.msg}", error.details, error.hint) from error


# ---- DEL and GC -------------------------------------------------------------------------------


def delete(call: Call, config: MainConfig, kind: str) -> None:
    """Delete the link, if it is of this kind and no other network's, then release its addresses. Raises: Incomplete."""
    delete_by(call, config, lambda of: _delete(of, kind))


def delete_stale(call: Call, config: MainConfig, kind: str) -> None:
    """Delete the links of stale attachments in live sandboxes, and release their addresses. Raises: Incomplete."""
    delete_stale_by(call, config, lambda of: _delete(of, kind))


def delete_by(call: Call, config: MainConfig, remove: Callable[[Call], object]) -> None:
    """Remove the interface by this function, then release its addresses. Raises: Incomplete."""
    attempts = Attempts()
    delegate.release_from_link(attempts, call, config)
    with attempts.attempt("the interface"):
        remove(call)
    delegate.release(attempts, call, config)
    attempts.raise_if_failed("DEL")


def delete_stale_by(call: Call, config: MainConfig, remove: Callable[[Call], object]) -> None:
    """Do the same, for GC, for the stale attachments of the network. Raises: Incomplete."""
    attempts = Attempts()
    delegate.release_stale_from_links(attempts, call, config)
    for stale in record.stale_calls(call):
        with attempts.attempt(f'"{stale.ifname}" of container {stale.container_id}'):
            remove(stale)
    delegate.release_stale(attempts, call, config)
    attempts.raise_if_failed("GC")


def _delete(call: Call, kind: str) -> None:
    call = record.with_sandbox(call)
    interface.delete(call, lambda end: end.kind == kind and not record.is_anothers_interface(call))
