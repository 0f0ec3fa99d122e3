"""ipvlan: a link in the sandbox that shares the MAC address of a link of the host.

Owns: CNI_IFNAME in the sandbox, the leased addresses. Source: containernetworking/plugins plugins/main/ipvlan/ipvlan.go.
"""

from __future__ import annotations

from cni_py.attachment import delegate, master, sandbox_link
from cni_py.errors import InvalidConfig
from cni_py.kernel import virtual_link
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.spec.result import from_json
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import IpvlanConfig
    from cni_py.kernel.virtual_link import NewLink
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "IpvlanConfig"
KIND = "ipvlan"


def add(call: Call, config: IpvlanConfig) -> Result:
    """Create the link on its master. Spec section 2, ADD; order as in the Go plugin.

    Behind another plugin the master, and without IPAM the addresses, come from the previous result.
    """
    new = wanted(config)
    previous = from_json(config.prev_result) if config.prev_result else None
    name = config.master or (master_in(previous) if previous else "")
    given = previous if previous and previous.ips and not config.ipam.type else None
    with (
        open_host() as host,
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        where = sandbox if config.link_in_container else host
        sandbox_link.create(undo, call, netns, where, new, master.find(where, name))
        return sandbox_link.finish(undo, call, config, netns, sandbox, sandbox_link.NOTIFY, needs_ipam=True, given=given)


def delete(call: Call, config: IpvlanConfig) -> None:
    """Delete everything that ADD may have made; absence is success, and the master is not needed."""
    sandbox_link.delete(call, config, KIND)


def check(call: Call, config: IpvlanConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    from cni_py.attachment import check as attached

    new = wanted(config)
    with attached.Opened(call, config) as opened:
        end = opened.check_end(KIND)
        opened.check_master(end, config)
        modes = virtual_link.IPVLAN_MODES
        opened.check_choice(end, "mode", modes, new.data["IFLA_IPVLAN_MODE"], end.data.get("IFLA_IPVLAN_MODE"))
        opened.check_configured(end)


def status(call: Call, config: IpvlanConfig) -> None:
    """Check the configuration, the kernel, the master and the IPAM plugin."""
    wanted(config)
    master.check_ready(config.master, config.link_in_container, KIND)
    delegate.check_ready(call, config)


def gc(call: Call, config: IpvlanConfig) -> None:
    """Delete what belongs to attachments of this network that no longer exist."""
    sandbox_link.delete_stale(call, config, KIND)


def wanted(config: IpvlanConfig) -> NewLink:
    """The link, as configured. Pure. Raises: InvalidConfig."""
    mode = config.mode or "l2"
    if mode not in virtual_link.IPVLAN_MODES:
        raise InvalidConfig(f'unknown ipvlan mode: "{mode}"', '"mode"', f"one of {', '.join(virtual_link.IPVLAN_MODES)}")
    if config.mtu < 0:
        raise InvalidConfig(f"invalid MTU {config.mtu}", '"mtu" is negative')
    return virtual_link.ipvlan(mode, config.mtu)


def master_in(previous: Result) -> str:
    """The only interface of the previous result. Pure. Raises: InvalidConfig."""
    names = [interface.name for interface in previous.interfaces]
    if len(names) != 1 or not names[0]:
        raise InvalidConfig(
            "chained master failure. PrevResult lacks a single named interface",
            f"it has {', '.join(names) or 'none'}",
            'set "master" to the name of a link',
        )
    return names[0]
