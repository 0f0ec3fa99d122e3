"""The link that the sandbox's link is made on: of a macvlan, an ipvlan or a VLAN. Owns nothing.

It is on the host, or with ``linkInContainer`` in the sandbox.
"""

from __future__ import annotations

from cni_py.errors import InvalidConfig, NotAvailable
from cni_py.kernel.link import find_link
from cni_py.kernel.route import default_interfaces
from cni_py.netlink.socket import open_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl


def find(rtnl: Rtnl, name: str) -> Link:
    """Return the link of this name; "": that of the default route, of IPv4 if there is one. Raises: InvalidConfig."""
    if not name:
        return _of_default_route(rtnl)
    link = find_link(rtnl, name)
    if link is None:
        command = " ".join((*rtnl.enter, "ip -br link"))
        raise InvalidConfig(f'failed to lookup master "{name}": Link not found', '"master" names no link', command)
    return link


def _of_default_route(rtnl: Rtnl) -> Link:
    found = (find_link(rtnl, ifindex) for version in (4, 6) for ifindex in default_interfaces(rtnl, version))
    link = next((link for link in found if link is not None), None)
    if link is None:
        raise InvalidConfig("no default route interface found", '"master" is missing', 'set "master" to the name of a link')
    return link


def check_mtu(mtu: int, master: Link) -> None:
    """Raises: InvalidConfig if it is negative or larger than the master's."""
    if not 0 <= mtu <= master.mtu:
        raise InvalidConfig(
            f"invalid MTU {mtu}, must be [0, master MTU({master.mtu})]", f'"mtu": the master is "{master.name}"'
        )


def check_ready(name: str, is_in_sandbox: bool, kind: str) -> None:
    """Check for STATUS that the kernel has links of this kind, and that the master exists. Raises: NotAvailable."""
    from cni_py.kernel.features import require_kind

    with open_host() as host:
        require_kind(host, kind)
        if is_in_sandbox:
            return
        try:
            find(host, name)
        except InvalidConfig as error:
            raise NotAvailable(error.msg, error.details, error.hint) from error
