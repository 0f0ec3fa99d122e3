"""loopback: the sandbox's ``lo`` up. Source: containernetworking/plugins plugins/main/loopback.

Owns: the state of ``lo`` in the sandbox. CNI_IFNAME is not used.
"""

from __future__ import annotations

from cni_py.errors import CheckFailed, InvalidConfig, KernelRefused, SandboxGone
from cni_py.kernel.address import list_addresses
from cni_py.kernel.link import Link, find_link, set_down, set_up
from cni_py.kernel.netns import open_in, open_sandbox
from cni_py.spec.result import Interface, IPConfig, Result, from_json
from cni_py.spec.versions import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cni_py.config.models import LoopbackConfig
    from cni_py.netlink.socket import Rtnl
    from cni_py.spec.call import Call

CONFIG = "LoopbackConfig"
NO_MAC = "00:00:00:00:00:00"


def add(call: Call, config: LoopbackConfig) -> Mapping[str, Any]:
    """Set ``lo`` up; a previous result is returned unchanged."""
    if config.prev_result is not None:
        from_json(config.prev_result)
    with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        lo = _lo(sandbox)
        if not lo.is_up:
            set_up(sandbox, lo)
        addresses = list_addresses(sandbox, lo)
    strange = [str(a) for a in addresses if not a.is_loopback]
    if strange:
        raise InvalidConfig(f'"lo" of "{call.netns}" has an address that is not a loopback address: {", ".join(strange)}')
    if config.prev_result is not None:
        return {"cniVersion": call.cni_version, **call.conf["prevResult"]}
    result = Result(
        interfaces=(Interface("lo", NO_MAC, lo.mtu, call.netns),),
        ips=tuple(IPConfig(address, interface=0) for address in addresses),
    )
    # Go-compatible: the form of 1.0.0 under every older version's number (plugins/main/loopback/loopback.go)
    form = call.cni_version if at_least(call.cni_version, "1.0.0") else "1.0.0"
    return result.as_version(form) | {"cniVersion": call.cni_version}


def delete(call: Call, config: LoopbackConfig) -> None:
    """Set ``lo`` down; a deleted namespace is success."""
    if not call.netns:
        return
    try:
        with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
            set_down(sandbox, _lo(sandbox))
    except SandboxGone:
        pass


def check(call: Call, config: LoopbackConfig) -> None:
    """Check that ``lo`` is up."""
    with open_sandbox(call.netns, call.may_be_host, call.sandbox_fd) as netns, open_in(netns) as sandbox:
        if not _lo(sandbox).is_up:
            raise CheckFailed(
                f'"lo" of "{call.netns}" is down', "expected up, found down", f"nsenter --net={call.netns} ip link set lo up"
            )


def gc(call: Call, config: LoopbackConfig) -> None:
    """Do nothing: ``lo`` is deleted with its namespace."""


def status(call: Call, config: LoopbackConfig) -> None:
    """Succeed: it is always ready."""


def _lo(sandbox: Rtnl) -> Link:
    lo = find_link(sandbox, "lo")
    if lo is None:
        raise KernelRefused('the sandbox has no "lo"')
    return lo
