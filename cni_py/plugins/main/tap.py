"""tap: a persistent TAP device in the sandbox, for a virtual machine or another program that opens it there.

Owns: CNI_IFNAME in the sandbox, the leased addresses. Source: containernetworking/plugins plugins/main/tap/tap.go.
"""

from __future__ import annotations

from cni_py.attachment import delegate, sandbox_link
from cni_py.errors import InvalidConfig
from cni_py.kernel import tap
from cni_py.kernel.link import find_link, get_link, set_mac, set_master, set_mtu
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import TapConfig
    from cni_py.kernel.link import Link
    from cni_py.kernel.tap import Tap
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "TapConfig"
NOTIFY = (("ipv4", "arp_notify", "1"),)


def add(call: Call, config: TapConfig) -> Result:
    """Create the device, as a port of a bridge of the sandbox if one is named. Spec section 2, ADD."""
    mac, new = sandbox_link.mac_of(call, config), wanted(config)
    with (
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        bridge = find_bridge(sandbox, config.bridge)
        label = config.selinux_context
        sandbox_link.create_by(undo, call, tap.KIND, netns, lambda: tap.create(netns, call.ifname, new, label))
        end = get_link(sandbox, call.ifname)
        if config.mtu and not is_made_by_netlink(config):
            set_mtu(sandbox, end, config.mtu)
        if mac:
            set_mac(sandbox, end, mac)
        if bridge:
            set_master(sandbox, end, bridge)
        return sandbox_link.finish(undo, call, config, netns, sandbox, NOTIFY)


def delete(call: Call, config: TapConfig) -> None:
    """Delete everything that ADD may have made; absence is success."""
    sandbox_link.delete(call, config, tap.KIND)


def check(call: Call, config: TapConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    from cni_py.attachment import check as attached

    sandbox_link.mac_of(call, config)
    with attached.Opened(call, config) as opened:
        end = opened.check_end(tap.KIND)
        opened.found.expect(f'properties of "{end.name}"', words(wanted(config)), words(tap.tap_of(end)), attached.RECREATE)
        if config.bridge:
            bridge = find_bridge(opened.sandbox, config.bridge)
            found = find_link(opened.sandbox, end.master) if end.master else None
            opened.found.expect(f'bridge of "{end.name}"', bridge and bridge.name, found and found.name)
        if config.ipam.type:
            opened.check_configured(end)


def status(call: Call, config: TapConfig) -> None:
    """Check the configuration, the kernel and the IPAM plugin."""
    sandbox_link.mac_of(call, config)
    tap.require()
    delegate.check_ready(call, config)


def gc(call: Call, config: TapConfig) -> None:
    """Delete what belongs to attachments of this network that no longer exist."""
    sandbox_link.delete_stale(call, config, tap.KIND)


def wanted(config: TapConfig) -> Tap:
    """The device, as configured. Pure."""
    by_netlink = is_made_by_netlink(config)
    return tap.Tap(config.multi_queue, by_netlink and not config.multi_queue, by_netlink, config.owner, config.group)


def is_made_by_netlink(config: TapConfig) -> bool:
    """Return whether Go makes the device in its other way, by which packets have headers and ``mtu`` has no effect. Pure.

    Go-compatible: programs that open the device expect these headers (tap.go, createLinkWithNetlink).
    """
    return config.owner is not None and config.group is not None and not config.selinux_context


def words(of: Tap | None) -> str:
    return " ".join(of.words) if of else "no TAP device"


def find_bridge(sandbox: Rtnl, name: str) -> Link | None:
    """Return the bridge of the sandbox; None for "". Raises: InvalidConfig if there is none of this name."""
    bridge = find_link(sandbox, name) if name else None
    if name and bridge is None:
        command = " ".join((*sandbox.enter, "ip -br link"))
        raise InvalidConfig(f"failed to get bridge {name}: Link not found", '"bridge" names no link of the sandbox', command)
    return bridge
