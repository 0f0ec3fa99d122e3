"""Previous result of a chain, and the host end of the interface that it describes: for meta plugins.

Owns nothing. Source: CNI spec section 2, "prevResult".
"""

from __future__ import annotations

from cni_py.errors import InvalidConfig
from cni_py.kernel.link import find_link
from cni_py.spec.result import from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call
    from cni_py.spec.result import Result

IFB_ALIAS = "cni-ifb:"
"""Prefix of the alias of an ifb; not that of a host end, which proves that a pod is alive (sweep/liveness.py)."""


def prev_result(raw: Mapping[str, Any] | None, call: Call, message: str = "must be called as chained plugin") -> Result:
    """Return the result of the plugin in front. Raises: InvalidConfig if there is none; DecodingFailure.

    Args:
        message: the sentence of the Go plugin.
    """
    if not raw:
        raise InvalidConfig(message, "there is no prevResult", f'put "{call.plugin}" behind another plugin in "plugins"')
    return from_json(raw)


def host_end(host: Rtnl, end: Link, prev: Result) -> Link:
    """Return the host end of the veth whose other end is in the sandbox. Raises: InvalidConfig, KernelRefused."""
    port = find_link(host, end.peer) if end.kind == "veth" and end.peer else None
    if port is None or port.kind != "veth" or port.peer != end.ifindex:
        details = f'interface "{end.name}" was not a veth interface, it is {end.kind or "of no kind"}'
        raise InvalidConfig(
            f"container interface {end.name} has no veth peer",
            details if end.kind != "veth" else f'the other end of "{end.name}" is not on the host',
            "put it behind bridge, ptp or flannel",
        )
    if not any(interface.name == port.name and not interface.sandbox for interface in prev.interfaces):
        names = ", ".join(interface.name for interface in prev.interfaces if not interface.sandbox)
        raise InvalidConfig(
            "no veth peer of container interface found in host ns",
            f'prevResult has {names or "no interface of the host"}, not "{port.name}"',
        )
    return port
