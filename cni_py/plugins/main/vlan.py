"""vlan: a VLAN of a link of the host, in the sandbox.

Owns: CNI_IFNAME in the sandbox, the leased addresses. Source: containernetworking/plugins plugins/main/vlan/vlan.go.
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
    from cni_py.config.models import VlanConfig
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "VlanConfig"
KIND = "vlan"


def add(call: Call, config: VlanConfig) -> Result:
    """Create the VLAN on its master. Spec section 2, ADD; order as in the Go plugin."""
    check_config(config)
    with (
        open_host() as host,
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        where = sandbox if config.link_in_container else host
        below = master.find(where, config.master)
        master.check_mtu(config.mtu, below)
        sandbox_link.create(undo, call, netns, where, virtual_link.vlan(config.vlan_id, config.mtu), below)
        return sandbox_link.finish(undo, call, config, netns, sandbox)


def delete(call: Call, config: VlanConfig) -> None:
    """Delete everything that ADD may have made; absence is success, and the master is not needed."""
    sandbox_link.delete(call, config, KIND)


def check(call: Call, config: VlanConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    from cni_py.attachment import check as attached

    check_config(config)
    with attached.Opened(call, config) as opened:
        end = opened.check_end(KIND)
        opened.check_master(end, config)
        opened.found.expect(f'VLAN of "{end.name}"', config.vlan_id, end.data.get("IFLA_VLAN_ID"), attached.RECREATE)
        opened.check_configured(end)


def status(call: Call, config: VlanConfig) -> None:
    """Check the configuration, the kernel, the master and the IPAM plugin."""
    check_config(config)
    master.check_ready(config.master, config.link_in_container, KIND)
    delegate.check_ready(call, config)


def gc(call: Call, config: VlanConfig) -> None:
    """Delete what belongs to attachments of this network that no longer exist."""
    sandbox_link.delete_stale(call, config, KIND)


def check_config(config: VlanConfig) -> None:
    """Raises: InvalidConfig."""
    if not config.master:
        raise InvalidConfig(
            '"master" field is required. It specifies the host interface name to create the VLAN for', '"master" is missing'
        )
    if not config.ipam.type:
        raise InvalidConfig(
            "failed to execute IPAM delegate: no plugin name provided",
            '"ipam.type" is missing',
            'set "ipam": {"type": "host-local", …}',
        )
    if not 0 <= config.vlan_id <= 4094:
        # Go-compatible: the sentence says 4095 (vlan.go, loadConf)
        raise InvalidConfig(
            f"invalid VLAN ID {config.vlan_id} (must be between 0 and 4095 inclusive)", '"vlanId"', "the last VLAN is 4094"
        )
