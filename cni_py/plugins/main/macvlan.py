"""macvlan: a link in the sandbox with a MAC address of its own, on a link of the host.

Owns: CNI_IFNAME in the sandbox, the leased addresses. Source: containernetworking/plugins plugins/main/macvlan/macvlan.go.
"""

from __future__ import annotations

from cni_py.attachment import delegate, master, sandbox_link
from cni_py.errors import InvalidConfig
from cni_py.kernel import virtual_link
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import MacvlanConfig
    from cni_py.kernel.virtual_link import NewLink
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "MacvlanConfig"
KIND = "macvlan"


def add(call: Call, config: MacvlanConfig) -> Result:
    """Create the link on its master. Spec section 2, ADD; order as in the Go plugin."""
    new = wanted(call, config)
    with (
        open_host() as host,
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        where = sandbox if config.link_in_container else host
        below = master.find(where, config.master)
        master.check_mtu(config.mtu, below)
        sandbox_link.create(undo, call, netns, where, new, below)
        return sandbox_link.finish(undo, call, config, netns, sandbox, sandbox_link.NOTIFY)


def delete(call: Call, config: MacvlanConfig) -> None:
    """Delete everything that ADD may have made; absence is success, and the master is not needed."""
    sandbox_link.delete(call, config, KIND)


def check(call: Call, config: MacvlanConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    from cni_py.attachment import check as attached

    new = wanted(call, config)
    with attached.Opened(call, config) as opened:
        end = opened.check_end(KIND)
        opened.check_master(end, config)
        modes = virtual_link.MACVLAN_MODES
        opened.check_choice(end, "mode", modes, new.data["IFLA_MACVLAN_MODE"], end.data.get("IFLA_MACVLAN_MODE"))
        if config.ipam.type:
            opened.check_configured(end)


def status(call: Call, config: MacvlanConfig) -> None:
    """Check the configuration, the kernel, the master and the IPAM plugin."""
    wanted(call, config)
    master.check_ready(config.master, config.link_in_container, KIND)
    delegate.check_ready(call, config)


def gc(call: Call, config: MacvlanConfig) -> None:
    """Delete what belongs to attachments of this network that no longer exist."""
    sandbox_link.delete_stale(call, config, KIND)


def wanted(call: Call, config: MacvlanConfig) -> NewLink:
    """The link, as configured. Pure. Raises: InvalidConfig, InvalidEnvironment."""
    mode = config.mode or "bridge"
    if mode not in virtual_link.MACVLAN_MODES:
        raise InvalidConfig(f'unknown macvlan mode: "{mode}"', '"mode"', f"one of {', '.join(virtual_link.MACVLAN_MODES)}")
    return virtual_link.macvlan(mode, config.bcqueuelen, config.mtu, sandbox_link.mac_of(call, config))
