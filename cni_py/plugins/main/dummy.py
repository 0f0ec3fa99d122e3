"""dummy: a link in the sandbox that leads nowhere, with addresses.

Owns: CNI_IFNAME in the sandbox, the leased addresses. Source: containernetworking/plugins plugins/main/dummy/dummy.go.
"""

from __future__ import annotations

from cni_py.attachment import delegate, sandbox_link
from cni_py.errors import InvalidConfig
from cni_py.kernel import virtual_link
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.netlink.socket import open_host
from cni_py.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.config.models import DummyConfig
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

CONFIG = "DummyConfig"
KIND = "dummy"


def add(call: Call, config: DummyConfig) -> Result:
    """Create the link. Spec section 2, ADD; order as in the Go plugin."""
    require_ipam(config)
    with (
        open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns,
        open_in(netns) as sandbox,
        Undo() as undo,
    ):
        sandbox_link.create(undo, call, netns, sandbox, virtual_link.dummy())
        # Go-compatible: the network's "dns" is not returned (dummy.go, cmdAdd)
        return sandbox_link.finish(undo, call, config, netns, sandbox, has_dns_of_ipam=True)


def delete(call: Call, config: DummyConfig) -> None:
    """Delete everything that ADD may have made; absence is success."""
    sandbox_link.delete(call, config, KIND)


def check(call: Call, config: DummyConfig) -> None:
    """Compare everything that ADD set with the actual state."""
    from cni_py.attachment import check as attached

    require_ipam(config)
    with attached.Opened(call, config) as opened:
        opened.check_configured(opened.check_end(KIND))


def status(call: Call, config: DummyConfig) -> None:
    """Check the configuration, the kernel and the IPAM plugin."""
    from cni_py.kernel.features import require_kind

    require_ipam(config)
    with open_host() as host:
        require_kind(host, KIND)
    delegate.check_ready(call, config)


def gc(call: Call, config: DummyConfig) -> None:
    """Delete what belongs to attachments of this network that no longer exist."""
    sandbox_link.delete_stale(call, config, KIND)


def require_ipam(config: DummyConfig) -> None:
    """Raises: InvalidConfig."""
    if not config.ipam.type:
        raise InvalidConfig(
            "dummy interface requires an IPAM configuration", '"ipam.type" is missing', 'set "ipam": {"type": "host-local", …}'
        )
